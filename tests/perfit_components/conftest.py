"""Fixtures of the steps' tests: a tiny model, and a federation that is ready for its first aggregation."""

from __future__ import annotations

import gc
import shutil
import socket
from collections.abc import Callable

import pytest

from .running import THREE, Site, make_spec, write_data


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> str:
    """The directory of a random Llama of two layers, with its tokenizer."""
    from ..perfit.tiny import save_llama

    path = save_llama(tmp_path_factory.mktemp("llama"))
    gc.freeze()  # accelerate collects garbage after every training: slow over all of torch and transformers
    return path


@pytest.fixture
def make_site(tiny_llama, tmp_path) -> Callable[..., Site]:
    """A function that makes a federation with its own data and an empty file store."""
    data = write_data(tmp_path / "data")
    store = (tmp_path / "store").as_uri()
    return lambda **sections: Site(make_spec(tiny_llama, data, **sections), store)


@pytest.fixture(scope="session")
def trained_once(tiny_llama, tmp_path_factory) -> Site:
    """Three clients, tuned for round 1, which is not aggregated yet. Do not change its store."""
    directory = tmp_path_factory.mktemp("trained")
    spec = make_spec(tiny_llama, write_data(directory / "data"), **THREE)
    site = Site(spec, (directory / "store").as_uri()).prepare()
    assert [status["status"] for status in site.train(1)] == ["trained"] * 3
    return site


@pytest.fixture
def trained(trained_once, tmp_path) -> Site:
    """A copy of that federation to work on."""
    copy = Site(trained_once.spec, (tmp_path / "copy").as_uri())
    shutil.copytree(trained_once.root, copy.root)
    return copy


@pytest.fixture
def unreachable_s3(monkeypatch) -> str:
    """The URI of an S3 store without a server: nothing listens at its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-this-test")
    return "s3://bucket/prefix"
