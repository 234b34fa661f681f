"""A federation on disk, an empty cluster that kubectl talks to, and the command."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from perfit.errors import PerfitError
from perfit_pipelines.deploy import register

from ..kubernetes_api import KubernetesApi, kubernetes_api


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a federation file, outside of any git work tree; no cluster is known."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PERFIT_HOME", str(tmp_path / ".perfit"))
    write_federation(tmp_path / "federation.yaml")
    return tmp_path


@pytest.fixture
def cluster(place: Path) -> Iterator[KubernetesApi]:
    """The cluster of the kubeconfig, with the namespace of runs."""
    with kubernetes_api(Path(os.environ["KUBECONFIG"])) as api:
        api.add({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow"}})
        yield api


@pytest.fixture
def deploy() -> Callable[..., str]:
    """A function that runs ``perfit deploy`` on the federation file and returns what it printed."""
    app = typer.Typer()
    app.callback()(lambda: None)
    register(app)

    def run(*arguments: str | Path) -> str:
        result = CliRunner().invoke(app, ["deploy", *map(str, arguments)])
        if isinstance(result.exception, PerfitError):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    return run


def write_federation(file: Path, **sections) -> Path:
    """Write a federation of two clients, whose store is the one that the overlays create."""
    tree = {
        "name": "tiny",
        "model": "owner/model",
        "store": "s3://perfit",
        "clients": [{"id": "ann", "data": "owner/ann:train"}, {"id": "bob", "data": "owner/bob:train"}],
        **sections,
    }
    file.write_text(yaml.safe_dump(tree))
    return file
