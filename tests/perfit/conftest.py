"""Fixtures of the method's tests."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from perfit.cluster_spec import ClusterSpec


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Let torch use one thread, whatever the previous test set."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer with a ChatML template. Treat it as read-only."""
    from .tiny import tiny_tokenizer as make

    return make()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory) -> str:
    """The directory of a random Llama of two layers, with its tokenizer."""
    from .tiny import save_llama

    path = save_llama(tmp_path_factory.mktemp("llama"))
    gc.freeze()  # accelerate collects garbage after every training: slow over all of torch and transformers
    return path


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory) -> str:
    """The directory of a random GPT-2 of two layers, whose linear modules are transformers' Conv1D."""
    from .tiny import save_gpt2

    return save_gpt2(tmp_path_factory.mktemp("gpt2"))


@pytest.fixture(scope="session")
def make_federation(tiny_llama, tmp_path_factory) -> Callable[..., ClusterSpec]:
    """A function that makes a small federation over the tiny Llama; sections given by keyword change it."""
    from .tiny import federation, write_records

    data = tmp_path_factory.mktemp("data")
    for client, count in [("ann", 8), ("bob", 5), ("eve", 6)]:
        write_records(data / f"{client}.jsonl", client, count)
    return lambda **sections: federation(tiny_llama, data, **sections)
