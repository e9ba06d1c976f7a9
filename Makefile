# Owns the commands of this repository; `make` alone lists them.
# Never hides anything: each calls cargo, or prints what it does instead. Nothing is downloaded but by cargo and go.

.DEFAULT_GOAL := help
.PHONY: help demo test simulate mutants bench soak build image e2e plugin fmt fmt-check clippy lint crd chart-docs api-docs check-drift tools control-plane

CRD := crds/workflowrunstops.yaml
CHART := charts/workflow-run-stop-operator
API := docs/api.md

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE ?= localhost/workflow-run-stop-operator:$(VERSION)
ARCH ?= $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))
PLUGIN_URI ?= https://example.invalid/kubectl-stop_run-$(VERSION)-linux-$(ARCH).tar.gz
ARCHIVE := target/image/workflow-run-stop-operator-$(VERSION)-$(ARCH).tar

# Builds the programs, all at once so that they share their dependencies, and prints where cargo put the one of this
# name: the folder for what it builds is the user's choice.
program = cargo build --locked --workspace --bins --message-format=json-render-diagnostics | \
  sed -n 's|.*"executable":"\([^"]*/$(1)\)".*|\1|p'
operator = operator=$$($(call program,workflow-run-stop-operator)) && [ -n "$$operator" ]

help: ## Lists these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-13s%s\n", $$1, $$2}' Makefile

demo: tools control-plane ## Shows the operator at work; KEEP=1 leaves everything running until Ctrl-C
	@[ -d "$${CARGO_TARGET_DIR:-target}/debug" ] || echo 'cargo: building the operator and the demo, once: about 3 minutes on 2 cores' >&2
	@demo=$$($(call program,demo)) && [ -n "$$demo" ] && exec "$$demo" $(if $(filter-out 0,$(KEEP)),--keep)

# The tests mostly wait, so that many fit on one core.
test: tools control-plane ## Runs all tests, also against a real API server, with helm, a Prometheus, and what GitOps tools judge by
	@[ -d "$${CARGO_TARGET_DIR:-target}/debug" ] || echo 'cargo: building the operator and its tests, once: about 4 minutes on 2 cores' >&2
	helm=$${HELM:-$$(sh tests/lab/node/build.sh helm)/bin/helm} && \
	  prometheus=$${PROMETHEUS:-$$(sh tests/lab/prometheus/build.sh)} && \
	  HELM=$$helm PROMETHEUS=$$prometheus RUST_TEST_THREADS=$${RUST_TEST_THREADS:-12} cargo test --workspace --locked
	cd tests/gitops && GOWORK=off CGO_ENABLED=0 go test -mod=readonly ./...

simulate: tools ## Runs the deterministic simulation: SEEDS=20000, LARGE_SEEDS=1000, FIRST_SEED=0, DEPARTURES=2; SEED=17, LARGE_SEED=17 or PLAN=74:1,79:1 replays one
	SEEDS=$${SEEDS:-20000} LARGE_SEEDS=$${LARGE_SEEDS:-1000} DEPARTURES=$${DEPARTURES:-2} \
	  cargo test --locked --profile simulate --features fault-injection --test simulation \
	  $(if $(SEED),no_schedule_breaks,$(if $(LARGE_SEED),no_large_schedule,$(if $(PLAN),no_schedule_with))) -- --nocapture

# The core. Not in .cargo/mutants.toml: cargo-mutants adds files of the command line to those there.
MUTATED := src/reconcile/** src/amperity/** api/src/conditions.rs api/src/workflow_run.rs

# The dependencies stay built in a folder of their own, from one call to the next.
mutants: tools ## Lists what can be changed in the core without a test that fails: all of it, for hours, or ONLY=src/reconcile/decide.rs
	@command -v cargo-mutants >/dev/null || { echo 'cargo-mutants is missing: cargo install cargo-mutants --locked' >&2; exit 1; }
	CARGO_TARGET_DIR=$(CURDIR)/target/mutants/build RUST_BACKTRACE=0 SEEDS=$${SEEDS:-300} PROPTEST_CASES=$${PROPTEST_CASES:-64} \
	  nice cargo mutants $(foreach files,$(or $(ONLY),$(MUTATED)),--file '$(files)')

bench: tools control-plane ## Measures latency, pace and memory
	cargo bench --locked --bench operator

soak: tools control-plane ## Runs the operator under load and faults: MINUTES=30, SEED=17 to repeat a plan
	cargo bench --locked --bench soak

build: ## Builds the operator for use: target/release/workflow-run-stop-operator
	cargo build --release --locked

image: tools ## Builds the image without a container engine: target/image/...tar, named by IMAGE, for ARCH=amd64 or arm64
	@bash image/build.sh $(ARCHIVE) $(IMAGE) $(ARCH)

e2e: image ## Runs image and chart in a real one-node cluster on this machine; needs root. KEEP=1 keeps it if it fails
	@sim=$$($(call program,amperity-sim)) && [ -n "$$sim" ] && bash tests/e2e/e2e.sh $(ARCHIVE) $(IMAGE) "$$sim"

plugin: tools ## Builds the kubectl plugin and its krew manifest: target/plugin; PLUGIN_URI is where the archive will be, ARCH as above
	@binary=$$(bash image/static.sh kubectl-stop_run $(ARCH)) && bash plugin/pack.sh target/plugin "$$binary" $(VERSION) $(ARCH) $(PLUGIN_URI)

fmt: ## Formats the code
	cargo fmt --all

lint: fmt-check clippy ## Checks format and lints, warnings denied

fmt-check:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets --locked -- -D warnings

# Written beside it first, so that a failed build leaves it as it was.
crd: ## Writes crds/workflowrunstops.yaml, and the chart's copy, anew, from the Rust types
	@$(operator) && "$$operator" crd >$(CRD).new && mv -f $(CRD).new $(CRD) || { rm -f $(CRD).new; exit 1; }
	@cp $(CRD) $(CHART)/files/crd.yaml

# The program that writes it is pinned in tests/lab/helm-docs.
helm_docs = cd tests/lab/helm-docs && go tool helm-docs --chart-search-root ../../../charts --log-level warning

chart-docs: ## Writes the chart's README.md anew, from its values.yaml
	@$(helm_docs)

api_docs = page=$$($(call program,api-docs)) && [ -n "$$page" ]

api-docs: ## Writes docs/api.md anew, from the CustomResourceDefinition
	@$(api_docs) && "$$page" <$(CRD) >$(API).new && mv -f $(API).new $(API) || { rm -f $(API).new; exit 1; }

check-drift: ## Fails where crds/, docs/api.md or the chart's README.md is not what it is written from
	@$(api_docs) && "$$page" <$(CRD) | diff -u $(API) - || \
	  { echo '$(API) is not what $(CRD) says: run `make api-docs` and commit the result' >&2; exit 1; }
	@($(helm_docs) --dry-run) | diff -u $(CHART)/README.md - || \
	  { echo '$(CHART)/README.md is not what its values.yaml says: run `make chart-docs` and commit the result' >&2; exit 1; }
	@$(operator) && printed=$$("$$operator" crd) || exit 1; printf '%s\n' "$$printed" | diff -u $(CRD) - || \
	  { echo '$(CRD) is not what `workflow-run-stop-operator crd` prints: run `make crd` and commit the result' >&2; exit 1; }
	@echo '$(CRD), $(API) and $(CHART)/README.md are up to date'

tools:
	@command -v cargo >/dev/null || { echo 'cargo is missing: install Rust (see rust-version in Cargo.toml)' >&2; exit 1; }
	@command -v cc >/dev/null || { echo 'cc is missing: install a C compiler, which the TLS library is built with' >&2; exit 1; }

# Builds what is missing and says so; nothing to do otherwise.
control-plane:
	@sh tests/lab/control-plane/build.sh >/dev/null
