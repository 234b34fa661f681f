#!/bin/sh
# Installs this project's own packages, those that tasks run, into /opt/perfit-packages.
set -eu

export PIP_CONSTRAINT=constraints.txt
/opt/pip/bin/pip wheel --no-cache-dir --no-deps --wheel-dir wheel .
/opt/pip/bin/pip install --no-cache-dir --no-deps --no-compile --target /opt/perfit-packages wheel/*.whl
rm -r /opt/perfit-packages/bin              # the `perfit` command belongs to packages that are not here
sh install/compile.sh /opt/perfit-packages
