#!/usr/bin/env bash
# Makes a base image like python:3.11-slim-bookworm from Debian's own packages, where no image registry is reachable.
#
#   images/ci/base.sh IMAGE
#
# Needs root and debootstrap. The file system is kept in $PERFIT_CI_CACHE (/var/cache/perfit-ci) for the next time.
set -euo pipefail

image=$1
cache=${PERFIT_CI_CACHE:-/var/cache/perfit-ci}
archive=$cache/debian-bookworm-python3.11.tar

bootstrap() {
    work=$(mktemp -d "$cache/bootstrap.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$work/root" > "$work/log" ||
        { tail -n 20 "$work/log" >&2; return 1; }
    ln -s python3 "$work/root/usr/bin/python"
    rm -rf "$work"/root/var/cache/apt/*.bin "$work"/root/var/cache/apt/archives/*.deb "$work"/root/var/lib/apt/lists/* \
        "$work"/root/usr/share/{doc,man,locale}/*
    tar --numeric-owner -C "$work/root" -cf "$work/archive" .
    mv "$work/archive" "$archive"
}

mkdir -p "$cache"
[ -f "$archive" ] || bootstrap
docker import --change 'CMD ["python3"]' "$archive" "$image" > /dev/null
