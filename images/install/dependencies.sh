#!/bin/sh
# Installs the packages of some extras into /opt/perfit, at the versions of constraints.txt: `dependencies.sh EXTRA...`.
# Runs while an image is built, in a directory with pyproject.toml and constraints.txt.
set -eu

export PIP_CONSTRAINT=constraints.txt
python3 -m venv /opt/pip                    # pip stays out of the image
python3 -m venv --without-pip /opt/perfit
python3 install/requirements.py pyproject.toml "$@" > requirements.txt
pip="/opt/pip/bin/pip --python /opt/perfit/bin/python install --no-cache-dir --no-compile --progress-bar=off"
$pip -r requirements.txt
# Of kfp its executor alone runs here, which needs none of kfp's packages. KFP itself installs it in this way.
$pip --no-deps kfp
sh install/compile.sh /opt/perfit/lib
