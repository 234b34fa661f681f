"""Fixtures of the cluster's tests: a running Kubeflow Pipelines API, and the command against it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import kfp
import pytest
import typer
import yaml
from click.testing import Result
from typer.testing import CliRunner

from perfit.errors import PerfitError
from perfit_pipelines.cluster.commands import register

from .kfp_api import KfpApi, serving

FEDERATION = {
    "name": "demo",
    "model": "org/model",
    "rounds": 2,
    "store": "s3://bucket/prefix",
    "clients": [
        {"id": "bank", "data": "s3://data/bank.jsonl"},
        {"id": "kitchen", "data": "s3://data/kitchen.jsonl"},
    ],
}
QUICK = ("--poll-interval", "0.01")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch, tmp_path) -> None:
    """Keep this machine's settings for other Kubeflows out of the tests."""
    monkeypatch.setattr(kfp.Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.setenv("COLUMNS", "200")
    for name in ("KF_PIPELINES_ENDPOINT", "KF_PIPELINES_UI_ENDPOINT", "PERFIT_KFP_NAMESPACE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("PERFIT_KFP_TOKEN", "PERFIT_KFP_COOKIES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve() -> Iterator[Callable[..., KfpApi]]:
    """A function that starts a Kubeflow Pipelines with the settings given."""
    with ExitStack() as servers:
        yield lambda **settings: servers.enter_context(serving(KfpApi(**settings)))


@pytest.fixture
def api(serve) -> KfpApi:
    """A Kubeflow Pipelines for one user."""
    return serve()


@pytest.fixture
def file(tmp_path) -> Path:
    """A federation file."""
    return write_federation(tmp_path / "federation.yaml")


def write_federation(path: Path, **sections) -> Path:
    """Write a federation file with some sections replaced."""
    path.write_text(yaml.safe_dump({**FEDERATION, **sections}))
    return path


@dataclass(frozen=True)
class Perfit:
    """The command, aimed at a server."""

    api: KfpApi

    def __call__(self, *arguments: str | Path) -> Result:
        """Run it to completion."""
        app = typer.Typer()
        register(app)
        words = [str(argument) for argument in arguments]
        return CliRunner().invoke(app, words if "--host" in words else [*words, "--host", self.api.url])

    def succeed(self, *arguments: str | Path) -> str:
        """Run it, and return what it printed."""
        result = self(*arguments)
        assert result.exit_code == 0, (result.output, result.exception)
        return result.stdout

    def fail(self, *arguments: str | Path) -> PerfitError:
        """Run it, and return the PerfitError that it ended with."""
        result = self(*arguments)
        assert isinstance(result.exception, PerfitError), (result.output, result.exception)
        return result.exception


@pytest.fixture
def perfit(api) -> Perfit:
    """The command, aimed at ``api``."""
    return Perfit(api)
