# Owns the commands of this repository; `make` without a target lists them.
# Never hides what it runs: each target calls cargo, or prints what it does instead. Only cargo, rustup, Go programs and, for a bench, pip download anything.

.DEFAULT_GOAL := help
.PHONY: help check rustdoc package demo test simulate mutants bench bench-more bench-job soak build image e2e plugin fmt fmt-check clippy msrv crd chart-docs api-docs pictures check-drift tools control-plane

CRD := crds/workflowrunstops.yaml
CHART := charts/workflow-run-stop-operator
API := docs/api.md

VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)
IMAGE ?= localhost/workflow-run-stop-operator:$(VERSION)
ARCH ?= $(patsubst aarch64,arm64,$(patsubst x86_64,amd64,$(shell uname -m)))
PLUGIN_URI ?= https://example.invalid/kubectl-stop_run-$(VERSION)-linux-$(ARCH).tar.gz
ARCHIVE := target/image/workflow-run-stop-operator-$(VERSION)-$(ARCH).tar

# Builds all programs at once, so that they share their dependencies, and prints the path of the one with this name. The
# path comes from cargo's output, because users can choose its target folder.
program = cargo build --locked --workspace --bins --message-format=json-render-diagnostics | \
  sed -n 's|.*"executable":"\([^"]*/$(1)\)".*|\1|p'
operator = operator=$$($(call program,workflow-run-stop-operator)) && [ -n "$$operator" ]

help: ## Lists these commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "make %-13s%s\n", $$1, $$2}' Makefile

demo: tools control-plane ## Runs the operator on four examples; KEEP=1 leaves everything running until Ctrl-C
	@[ -d "$${CARGO_TARGET_DIR:-target}/debug" ] || echo 'cargo: building the operator and the demo, once: about 3 minutes on 2 cores' >&2
	@demo=$$($(call program,demo)) && [ -n "$$demo" ] && exec "$$demo" $(if $(filter-out 0,$(KEEP)),--keep)

# Most tests wait for timers and processes, so twelve threads fit two cores.
test: tools control-plane ## Runs all tests, also against a real API server, with helm, Prometheus and the health checks of Flux and Argo CD
	@[ -d "$${CARGO_TARGET_DIR:-target}/debug" ] || echo 'cargo: building the operator and its tests, once: about 4 minutes on 2 cores' >&2
	helm=$${HELM:-$$(sh tests/lab/node/build.sh helm)/bin/helm} && \
	  prometheus=$${PROMETHEUS:-$$(sh tests/lab/prometheus/build.sh)} && \
	  HELM=$$helm PROMETHEUS=$$prometheus RUST_TEST_THREADS=$${RUST_TEST_THREADS:-12} cargo test --workspace --locked
	cd tests/gitops && GOWORK=off CGO_ENABLED=0 go test -mod=readonly ./...

# The inner loop: it needs neither Go nor a control plane. nextest ends a test that hangs; without nextest, cargo runs the same
# tests.
check: fmt-check clippy ## Checks format and lints, and runs the unit, table and structure tests
	PROPTEST_CASES=$${PROPTEST_CASES:-32} \
	  cargo $$(cargo nextest --version >/dev/null 2>&1 && echo nextest run || echo test) --locked --lib --bins --test pure \
	  --package workflow-run-stop-operator --package workflow-run-stop-api --package workflow-run-stop-common \
	  --package kubectl-stop-run

simulate: tools ## Runs the deterministic simulation: SEEDS=20000, LARGE_SEEDS=1000, FIRST_SEED=0, DEPARTURES=2; SEED=17, LARGE_SEED=17 or PLAN=74:1,79:1 replays one
	SEEDS=$${SEEDS:-20000} LARGE_SEEDS=$${LARGE_SEEDS:-1000} DEPARTURES=$${DEPARTURES:-2} \
	  cargo test --locked --profile simulate --features fault-injection --test simulation \
	  $(if $(SEED),no_schedule_breaks,$(if $(LARGE_SEED),no_large_schedule,$(if $(PLAN),no_schedule_with))) -- --nocapture

# The core. These are not in .cargo/mutants.toml, since cargo-mutants adds the files of the command line to those listed there.
MUTATED := src/reconcile/** src/amperity/** api/src/conditions.rs api/src/workflow_run.rs

# Cheap tests first: each stage builds only its own tests, and tests only the mutants that no earlier stage caught. The
# dependencies are built once, in a folder of their own.
mutants: tools ## Lists changes of the core that no test detects: takes hours, or less with ONLY=src/reconcile/decide.rs
	@command -v cargo-mutants >/dev/null || { echo 'cargo-mutants is missing: cargo install cargo-mutants --locked' >&2; exit 1; }
	@rm -rf target/mutants/mutants.out target/mutants/mutants.out.old
	for tests in --lib --test=pure --test=simulation; do \
	  CARGO_TARGET_DIR=$(CURDIR)/target/mutants/build RUST_BACKTRACE=0 FAILURES=1 SEEDS=$${SEEDS:-300} \
	  PROPTEST_CASES=$${PROPTEST_CASES:-64} nice cargo mutants --iterate --package workflow-run-stop-operator --package workflow-run-stop-api \
	    $(foreach files,$(or $(ONLY),$(MUTATED)),--file '$(files)') \
	    $$(printf -- '--cargo-arg=%s ' $$tests) || case $$? in 2 | 3) ;; *) exit 1 ;; esac; \
	done

# The folder of the results of `make bench`.
BENCH_OUT ?= $(CURDIR)/target/bench
small := $(filter-out 0,$(SMALL))
# A small round only shows that a bench works. Its profile is built faster, and the simulation has built most of it.
run_bench = $(if $(small),SMALL=1) cargo bench --locked $(if $(small),--profile simulate) --bench

bench: tools control-plane ## Compares with a bare loop, Kopf and a Job, measures growth, and writes docs/benchmarks.md; SMALL=1 only shows that it works
	@mkdir -p '$(BENCH_OUT)' && rm -f '$(BENCH_OUT)'/*.md '$(BENCH_OUT)'/growth.svg
	BENCH_OUT='$(BENCH_OUT)' $(run_bench) compare
	BENCH_OUT='$(BENCH_OUT)' QUIET=0 CASES=many,reads SCALE=$(if $(small),100,1000,10000,100000) $(run_bench) scale
	@SMALL='$(SMALL)'; BENCH_OUT='$(BENCH_OUT)'; export SMALL BENCH_OUT; $(bench_job)
	$(if $(small),,bash benches/document.sh '$(BENCH_OUT)')

bench-more: tools control-plane ## Measures what make bench leaves out: the rate limit, hostile answers, and all cases of waiting stops (SCALE, CASES)
	$(run_bench) operator
	$(run_bench) answers $(if $(small),-- text)
	$(if $(small),SCALE=100 CASES=finished) $(run_bench) scale

bench_job = if why=$$(bash tests/lab/node/node.sh check 2>&1); then \
  $(build_image) && sim=$$($(call program,amperity-sim)) && [ -n "$$sim" ] && \
  bash benches/job/job.sh $(ARCHIVE) $(IMAGE) "$$sim"; \
  else printf 'job: skipped: %s\n' "$$why"; fi

bench-job: tools ## Compares the operator with a Job that runs curl, in a real local one-node cluster; needs root
	@$(bench_job)

soak: tools control-plane ## Runs the operator under load and faults: MINUTES=30; SEED=17 repeats the same faults
	cargo bench --locked --bench soak

build: ## Builds the release binary: target/release/workflow-run-stop-operator
	cargo build --release --locked

build_image = bash image/build.sh $(ARCHIVE) $(IMAGE) $(ARCH)

image: tools ## Builds the image without a container engine: target/image/...tar, named by IMAGE, for ARCH=amd64 or arm64
	@$(build_image)

e2e: image ## Runs image and chart in a real local one-node cluster; needs root. KEEP=1 keeps the cluster on failure
	@sim=$$($(call program,amperity-sim)) && [ -n "$$sim" ] && bash tests/e2e/e2e.sh $(ARCHIVE) $(IMAGE) "$$sim"

plugin: tools ## Builds the kubectl plugin and its krew manifest: target/plugin; PLUGIN_URI is the URL that the archive will have, ARCH as above
	@binary=$$(bash image/static.sh kubectl-stop_run $(ARCH)) && bash plugin/pack.sh target/plugin "$$binary" $(VERSION) $(ARCH) $(PLUGIN_URI)

fmt: ## Formats the code
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

clippy:
	cargo clippy --workspace --all-targets --locked -- -D warnings

# If this version is the default toolchain, all other targets build with it, and there is nothing more to check.
msrv: ## Checks that the code builds with the rust-version of Cargo.toml, the oldest that is promised
	@version=$$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml); case $$(rustc --version) in \
	"rustc $$version."*) echo "rustc is the oldest promised version, $$version" ;; \
	*) rustup toolchain install --profile minimal "$$version" && cargo "+$$version" check --workspace --all-targets --locked ;; esac

rustdoc: ## Builds the API documentation of all crates, warnings denied
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet

# A library leaves the version of Kubernetes to its user; to be built alone it needs one.
package: tools ## Checks that workflow-run-stop-api can be published
	K8S_OPENAPI_ENABLED_VERSION=1.33 cargo package --package workflow-run-stop-api --locked --quiet $(if $(ALLOW_DIRTY),--allow-dirty)

# Written to a new file first, so that a failed build does not change the old one.
crd: ## Generates crds/workflowrunstops.yaml and the chart's copy from the Rust types
	@$(operator) && "$$operator" crd >$(CRD).new && mv -f $(CRD).new $(CRD) || { rm -f $(CRD).new; exit 1; }
	@cp $(CRD) $(CHART)/files/crd.yaml

# The version is pinned in the module.
helm_docs = cd tests/lab/go/helm-docs && go tool helm-docs --chart-search-root ../../../../charts --log-level warning

chart-docs: ## Generates the chart's README.md from its values.yaml
	@$(helm_docs)

# The themes for light and dark pages. The version is pinned in the module.
draw = cd tests/lab/go/d2 && GOWORK=off go tool d2 --layout elk --theme 0 --dark-theme 200
PICTURES := overview architecture protocol

pictures: ## Draws docs/images/*.svg from the .d2 files beside them
	@for picture in $(PICTURES); do (file=$$PWD/docs/images/$$picture; $(draw) "$$file.d2" "$$file.svg") || exit 1; done

api_docs = page=$$($(call program,api-docs)) && [ -n "$$page" ]

api-docs: ## Generates docs/api.md from the CustomResourceDefinition
	@$(api_docs) && "$$page" <$(CRD) >$(API).new && mv -f $(API).new $(API) || { rm -f $(API).new; exit 1; }

check-drift: ## Fails if crds/, docs/api.md, the chart's README.md or a picture is out of date
	@$(api_docs) && "$$page" <$(CRD) | diff -u $(API) - || \
	  { echo '$(API) does not match $(CRD): run `make api-docs` and commit the result' >&2; exit 1; }
	@($(helm_docs) --dry-run) | diff -u $(CHART)/README.md - || \
	  { echo '$(CHART)/README.md does not match values.yaml and README.md.gotmpl: run `make chart-docs` and commit the result' >&2; exit 1; }
	@$(operator) && printed=$$("$$operator" crd) || exit 1; printf '%s\n' "$$printed" | diff -u $(CRD) - || \
	  { echo '$(CRD) does not match the output of `workflow-run-stop-operator crd`: run `make crd` and commit the result' >&2; exit 1; }
	@for picture in $(PICTURES); do file=$$PWD/docs/images/$$picture; \
	  ($(draw) --stdout-format svg "$$file.d2" - 2>/dev/null) | cmp - "$$file.svg" || \
	  { echo "docs/images/$$picture.svg does not match its .d2 file: run \`make pictures\` and commit the result" >&2; exit 1; }; done
	@echo '$(CRD), $(API), $(CHART)/README.md and docs/images are up to date'

tools:
	@command -v cargo >/dev/null || { echo 'cargo is missing: install Rust (see rust-version in Cargo.toml)' >&2; exit 1; }
	@command -v cc >/dev/null || { echo 'cc is missing: install a C compiler, which builds the TLS library' >&2; exit 1; }

# Fetches or builds the programs of the control plane if they are missing, and reports that on stderr.
control-plane:
	@sh tests/lab/control-plane/build.sh >/dev/null
