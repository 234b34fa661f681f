#!/usr/bin/env bash
# Builds perfit-client and perfit-server with docker, podman or buildah, whichever is there.
#
#   images/build.sh [client] [server]
#
# Set by environment variables, all optional:
#   CONTAINER_TOOL  docker, podman or buildah
#   IMAGE_PREFIX    before the names, e.g. registry.example.com/perfit/
#   IMAGE_TAG       the project's version unless given
#   BASE            base image: Debian or its like, with Python 3.11; see the Dockerfiles for the default
#   WHEELS          a directory of wheels to prefer to the index's, e.g. torch without CUDA
#   PIP_INDEX_URL   an index instead of PyPI
#   CA_BUNDLE       certificates that pip trusts while it builds, behind a TLS proxy; they stay out of the images
#   SOURCE_URL      where the source is, for the images' labels
#   BUILD_FLAGS     more for `build`, e.g. --network=host
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)

find_tool() {
    local tool
    for tool in ${CONTAINER_TOOL:-docker podman buildah}; do
        command -v "$tool" && return
    done
    echo "error: no container tool found. fix: install docker, podman or buildah, or set CONTAINER_TOOL" >&2
    return 1
}

# The copy that is built from: what .dockerignore lets through, with this machine's wheels and settings of pip.
make_context() {
    local install=$1/images/install
    tar -C "$root" --exclude='__pycache__' --exclude='*.egg-info' --exclude=pipelines/perfit_pipelines/manifests -cf - \
        .dockerignore pyproject.toml constraints.txt LICENSE README.md components pipelines/perfit_pipelines \
        images/install images/client images/server | tar -C "$1" -xf -
    if [ -n "${WHEELS:-}" ]; then
        mkdir "$install/wheels"
        cp "$WHEELS"/*.whl "$install/wheels/"
        echo "find-links = /build/install/wheels" >> "$install/pip.conf"
    fi
    if [ -n "${PIP_INDEX_URL:-}" ]; then
        echo "index-url = $PIP_INDEX_URL" >> "$install/pip.conf"
    fi
    if [ -n "${CA_BUNDLE:-}" ]; then
        cp "$CA_BUNDLE" "$install/ca-bundle.crt"
        echo "cert = /build/install/ca-bundle.crt" >> "$install/pip.conf"
    fi
}

revision() {
    local commit
    commit=$(git -C "$root" rev-parse HEAD 2> /dev/null) || { echo unknown; return; }
    [ -z "$(git -C "$root" status --porcelain -- components pipelines images pyproject.toml constraints.txt)" ] || commit+=-dirty
    echo "$commit"
}

build() {
    local name=perfit-$1 flags=(--build-arg "VERSION=$version" --build-arg "REVISION=$(revision)")
    flags+=(--build-arg "SOURCE=${SOURCE_URL:-unknown}")
    [ -z "${BASE:-}" ] || flags+=(--build-arg "BASE=$BASE")
    # By default podman and buildah write the OCI format, which has no place for HEALTHCHECK, and buildah one layer.
    case $tool in *podman | *buildah) flags+=(--format=docker --layers) ;; esac
    # shellcheck disable=SC2086  # BUILD_FLAGS are several words
    "$tool" build "${flags[@]}" ${BUILD_FLAGS:-} -f "$context/images/$1/Dockerfile" \
        -t "${IMAGE_PREFIX:-}$name:${IMAGE_TAG:-$version}" "$context"
}

tool=$(find_tool)
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' "$root/pyproject.toml")
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
make_context "$context"
for image in "${@:-client server}"; do
    for one in $image; do build "$one"; done
done
