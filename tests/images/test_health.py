"""The health command, in this environment: it has what both images have."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest


def health(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "perfit_components.health", *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize(("image", "distribution"), [("server", "numpy"), ("client", "torch")])
def test_health_prints_versions(image, distribution):
    ended = health(image)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)[distribution] == importlib.metadata.version(distribution)


def test_the_server_s_health_imports_no_torch():
    assert "torch" not in json.loads(health("server").stdout)


def test_a_module_that_cannot_be_imported_is_named_with_the_fix(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError('libfreetype is missing')")
    ended = health("server", PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines() == [
        "error: matplotlib.figure cannot be imported: libfreetype is missing",
        "  fix: build the images again: make images",
    ]


@pytest.mark.parametrize("arguments", [(), ("torch",)])
def test_an_unknown_image_is_an_error_that_lists_them(arguments):
    ended = health(*arguments)
    assert ended.returncode == 1
    assert "give one of server, client" in ended.stderr
