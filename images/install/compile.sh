#!/bin/sh
# Compiles a directory's modules: nobody can write beside them at run time. Without time stamps, the bytes depend on the
# sources alone; unchecked, since an image's sources do not change.
set -eu

# A package may carry a file in a newer Python's grammar. It is left uncompiled, as pip would leave it.
python3 -m compileall -q -j 0 --invalidation-mode unchecked-hash "$1" || echo "some files of $1 are not compiled"
