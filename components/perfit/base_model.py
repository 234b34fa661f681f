"""A federation's base model as other programs find it, with the tokenizer that makes the federation's prompts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from perfit.chat import chat_template
from perfit.errors import PerfitError
from perfit.model_files import ModelManifest
from perfit.models import cached_model, is_hub_id, load_tokenizer, locate, prepare_model, split_revision

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class BaseModel:
    """What an adapter names as its base.

    Args:
        name: A hub id, or a directory that transformers loads.
        revision: The hub's commit; None for a directory.
        origin: Where it comes from, as a sentence for people.
    """

    name: str
    revision: str | None
    origin: str

    @property
    def is_hub_id(self) -> bool:
        """Whether other machines find it under this name."""
        return self.revision is not None or not os.path.isabs(self.name)


def base_model(manifest: ModelManifest, cache: Path) -> BaseModel:
    """Return the base model of a federation under a name that transformers loads.

    A GGUF file is converted, if it is not in the cache: nothing but this system loads it by the name that it has in a
    federation file.

    Args:
        manifest: What the model consists of.
        cache: Where conversions are kept.

    Raises:
        PerfitError: It is not on this machine.
    """
    model = manifest.model
    if is_hub_id(model):
        name, _ = split_revision(model)
        return BaseModel(name, manifest.commit, f"The base is the hub's {name}, at commit {manifest.commit}.")
    located = os.path.abspath(locate(model))
    if not located.endswith(".gguf"):
        return BaseModel(located, None, f"The base is in the directory {located} of the machine that wrote this.")
    converted = os.path.abspath(prepare_model(model, cache))
    return BaseModel(
        converted,
        None,
        f"The base is the file {model}, which no other program loads by this name. It was converted to float32, and "
        f"the machine that wrote this has the result in {converted}. Elsewhere, copy that directory; the model that "
        "the file was made from has other weights, since a GGUF file's are rounded.",
    )


def portable_tokenizer(manifest: ModelManifest, cache: Path) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a federation's model; its chat template makes the prompts that the clients tuned on.

    Of a hub's model that is not in the cache, the tokenizer alone is downloaded.

    Raises:
        PerfitError: It cannot be had here.
    """
    try:
        source = cached_model(manifest.model, cache, manifest.commit)
        if source is None and is_hub_id(manifest.model):
            tokenizer = load_tokenizer(split_revision(manifest.model)[0], manifest.commit)
        else:
            tokenizer = load_tokenizer(source or prepare_model(manifest.model, cache))
    except ModuleNotFoundError as error:
        raise PerfitError(
            f"the base model's tokenizer needs the Python package {error.name!r}",
            "pip install 'perfit-kubeflow[client]'",
        ) from error
    return with_chat_template(tokenizer)


def with_chat_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Give a tokenizer the chat template that its model was tuned with, which depends on no clock."""
    tokenizer.chat_template = chat_template(tokenizer)
    return tokenizer
