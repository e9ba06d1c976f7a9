# syntax=docker/dockerfile:1
# Builds the image with Docker or BuildKit; `make image` builds the same image without them. Keep in sync with image/build.sh.
#
#   docker build --build-arg REVISION="$(git rev-parse HEAD)" --tag workflow-run-stop-operator:0.1.0 .

FROM rust:1.95-bookworm AS builder
WORKDIR /src
# ca-certificates is already installed. Its own files contain only the public authorities; /etc/ssl may contain others.
RUN cat /usr/share/ca-certificates/mozilla/*.crt >/ca-certificates.crt
COPY . .
# Linked statically, since the image contains no libraries. With --target, the flags do not apply to build scripts.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(rustc -vV | sed -n 's/^host: //p')" && \
    RUSTFLAGS='-C target-feature=+crt-static' \
    cargo build --release --locked --target "$target" --bin workflow-run-stop-operator && \
    cp "target/$target/release/workflow-run-stop-operator" /workflow-run-stop-operator

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="workflow-run-stop-operator" \
      org.opencontainers.image.description="A Kubernetes operator that stops Amperity workflow runs, once" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=builder /ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
COPY --from=builder /workflow-run-stop-operator /workflow-run-stop-operator
# For glibc: buffers of this size or more are returned to the system when they are freed.
ENV MALLOC_MMAP_THRESHOLD_=65536
USER 65532:65532
WORKDIR /
ENTRYPOINT ["/workflow-run-stop-operator"]
