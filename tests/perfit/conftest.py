"""Fixtures of the method's tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A small byte-level BPE tokenizer with a ChatML template. Treat it as read-only."""
    from .tiny import tiny_tokenizer as make

    return make()
