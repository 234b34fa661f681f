"""What an installed package brings along."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import perfit
from perfit_pipelines.catalog import COMPONENTS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> set[str]:
    """The names of the files in the wheel, built from a copy of the sources without what other builds left."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    ignored = ("*.egg-info", "__pycache__", "./build", "./.*", "./tests", "./shared")
    copy = ["tar", *(f"--exclude={name}" for name in ignored), "-cf", "-", "."]
    with subprocess.Popen(copy, cwd=ROOT, stdout=subprocess.PIPE) as packed:
        subprocess.run(["tar", "-xf", "-"], cwd=source, stdin=packed.stdout, check=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    subprocess.run(command, check=True)
    (file,) = out.glob("*.whl")
    return set(zipfile.ZipFile(file).namelist())


def test_the_wheel_has_the_manifests(wheel):
    manifests = {path.relative_to(ROOT).as_posix() for path in (ROOT / "manifests").rglob("*") if path.is_file()}
    assert len(manifests) > 30
    assert {f"perfit_pipelines/{name}" for name in manifests} <= wheel


def test_the_wheel_has_the_templates(wheel):
    assert {"perfit_pipelines/federation.yaml", "perfit_report/report.html.j2", "perfit_report/style.css.j2"} <= wheel
    assert {f"perfit_pipelines/catalog/{name}.md" for name in ("README", *COMPONENTS)} <= wheel


def test_the_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert perfit.__version__ == project["version"]
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = perfit.nothing
