"""Fixtures of the command's and the pipelines' tests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from ..warm_python import warm_python
from .commands import Home, Result, make_home


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Let tasks use one thread each, also in libraries with their own setting."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session", autouse=True)
def nothing_of_the_user(tmp_path_factory) -> Iterator[None]:
    """Let no command work on what the user of this machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFIT_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_tasks(one_thread, nothing_of_the_user, tmp_path_factory) -> Iterator[None]:
    """Let no task of KFP's local runner import torch again."""
    with warm_python(tmp_path_factory.mktemp("warm")):
        yield


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> str:
    """The directory of a random Llama of two layers, with its tokenizer."""
    from ..perfit.tiny import save_llama

    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def home(tiny_llama, tmp_path) -> Home:
    """A federation of two clients of unequal rank in two tiers, over two rounds; nothing has run."""
    return make_home(tmp_path, tiny_llama)


@pytest.fixture
def make(tiny_llama, tmp_path) -> Callable[..., Home]:
    """A function that makes such a home with other sections in its federation file."""
    return lambda **sections: make_home(tmp_path, tiny_llama, **sections)


@pytest.fixture(scope="session")
def trained(tiny_llama, tmp_path_factory) -> Home:
    """A home whose federation has run to its end in this process, without the pipeline. Leave it as it is."""
    home = make_home(tmp_path_factory.mktemp("trained"), tiny_llama)
    home.site.run()
    return home


@dataclass(frozen=True)
class Finished:
    """A home whose federation has run to its end, what that command printed, and how long it took."""

    home: Home
    result: Result
    seconds: float


@pytest.fixture(scope="session")
def finished(tiny_llama, tmp_path_factory) -> Finished:
    """``perfit run`` on a file store. Leave the home as it is."""
    home = make_home(tmp_path_factory.mktemp("finished"), tiny_llama)
    started = time.monotonic()
    result = home.stored("run", home.file)
    assert result.code == 0, result.err
    return Finished(home, result, time.monotonic() - started)
