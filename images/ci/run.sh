#!/usr/bin/env bash
# Builds both images for real and runs tests/images on them, on a Debian machine where no image registry is reachable:
# the base image is made from Debian's packages, and the Docker daemon is this script's own, stopped and wiped at the end.
#
#   images/ci/run.sh [--if-possible]        as root, in a checkout with .venv (make test makes it)
#
# With --if-possible, a machine that cannot have a daemon or a base image is no failure: the reason is printed.
#
# WHEELS (default: PIP_FIND_LINKS, if a directory) should hold torch without CUDA: PyPI's needs gigabytes more. CA_BUNDLE
# (default: PIP_CERT) is for a TLS proxy, see images/build.sh. PERFIT_CI_CACHE keeps the base image, see images/ci/base.sh.
set -euo pipefail
cd "$(dirname "$0")/../.."

optional=${1:-}
python=$PWD/.venv/bin/python
work=$(mktemp -d /var/tmp/perfit-images.XXXXXX)
daemon=
started=$SECONDS

clean_up() {
    local from=$SECONDS
    if [ -n "$daemon" ]; then
        kill "$daemon" 2> /dev/null || true
        wait "$daemon" || true
        umount "$work"/exec/netns/* 2> /dev/null || true    # left behind by the daemon
        umount "$work/data" 2> /dev/null || true
    fi
    rm -rf "$work"
    echo "images: stop the daemon, remove its data: $((SECONDS - from)) s"
    echo "images: all: $((SECONDS - started)) s"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# Runs a command; prints its name, and how long it took. Its output is shown if it fails.
phase() {
    local name=$1 from=$SECONDS
    shift
    if ! "$@" > "$work/output" 2>&1; then
        tail -n 100 "$work/output" >&2
        echo "images: $name failed" >&2
        return 1
    fi
    echo "images: $name: $((SECONDS - from)) s"
}

# A phase that asks for something of the machine.
need() {
    phase "$@" && return
    [ "$optional" = --if-possible ] || exit 1
    echo "images: SKIPPED, nothing was built or tested: this machine could not $1 (see above)"
    exit 0
}

install_tools() {
    command -v dockerd debootstrap > /dev/null && return
    if [ "$(id -u)" != 0 ] || ! command -v apt-get; then
        echo "dockerd and debootstrap are needed. fix: run this as root on Debian, or install them"
        return 1
    fi
    apt-get update
    DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends \
        docker.io debootstrap
}

# Keeps the daemon's data in memory if there is plenty: some disks take minutes to delete that many files.
prefer_memory() {
    mkdir "$work/data"
    if [ "$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo)" -ge 14 ]; then
        mount -t tmpfs -o size=9g,mode=711 perfit-images "$work/data" || echo "on disk"
    fi
}

start_daemon() {
    prefer_memory
    export DOCKER_HOST=unix://$work/docker.sock
    # No bridge, no firewall rules: containers are on the host's network, or have none.
    dockerd --data-root "$work/data" --exec-root "$work/exec" --pidfile "$work/pid" --host "$DOCKER_HOST" \
        --bridge=none --iptables=false > "$work/daemon.log" 2>&1 &
    daemon=$!
    local tries
    for tries in {1..100}; do
        docker info > /dev/null 2>&1 && return
        kill -0 "$daemon" 2> /dev/null || break
        sleep 0.2
    done
    echo "dockerd does not answer after $tries tries"
    tail -n 20 "$work/daemon.log"
    return 1
}

run_tests() {
    PERFIT_TEST_IMAGES="perfit-client:$tag perfit-server:$tag" "$python" -m pytest -q tests/images
}

need "install docker and debootstrap" install_tools
need "start the daemon" start_daemon
need "make the base image" images/ci/base.sh perfit-base:bookworm

tag=$("$python" -c 'import tomllib; print(tomllib.load(open("pyproject.toml", "rb"))["project"]["version"])')
export IMAGE_TAG=$tag BASE=perfit-base:bookworm BUILD_FLAGS="--network=host --progress=plain"
export CA_BUNDLE=${CA_BUNDLE-${PIP_CERT:-}}
[ -n "${WHEELS:-}" ] || [ ! -d "${PIP_FIND_LINKS:-}" ] || export WHEELS=$PIP_FIND_LINKS
# Debian's docker has BuildKit inside; another docker on PATH may want a plugin for it.
export CONTAINER_TOOL=/usr/bin/docker DOCKER_BUILDKIT=1
phase "build perfit-client" images/build.sh client
phase "build perfit-server" images/build.sh server
docker images --format 'images: {{.Repository}}:{{.Tag}} is {{.Size}}'

phase "test" run_tests
df -h "$work/data" | awk 'END {print "images: the daemon keeps " $3 " on " $1}'
grep -E '^SKIPPED|^[0-9]+ passed' "$work/output"
