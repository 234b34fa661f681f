#!/bin/sh
# Installs this project's own packages, those that tasks run, into /opt/perfit-packages.
set -eu

export PIP_CONSTRAINT=constraints.txt
/opt/pip/bin/pip wheel --no-cache-dir --no-deps --wheel-dir wheel .
/opt/pip/bin/pip install --no-cache-dir --no-deps --no-compile --target /opt/perfit-packages wheel/*.whl
rm -r /opt/perfit-packages/bin              # pip's scripts name a Python that stays behind
if [ -d /opt/perfit-packages/perfit_pipelines ]; then
    printf '%s\n' '#!/opt/perfit/bin/python3' 'from perfit_pipelines.cli import main' 'main()' > /opt/perfit/bin/perfit
    chmod 755 /opt/perfit/bin/perfit
fi
sh install/compile.sh /opt/perfit-packages
