"""What a client does in its own pod: load the model and its records, search its architecture, tune its values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from perfit.adapter import SparseAdapter
from perfit.data import ExampleSet, load_examples, split_held_out
from perfit.errors import TrainingDiverged
from perfit.evaluation import perplexity
from perfit.lora import compact, expand, read_values, set_dense
from perfit.memory import check_tier, memory_need
from perfit.models import load_model, load_tokenizer, model_skeleton, prepare_model
from perfit.search import search_architecture
from perfit.seeds import derive_seed
from perfit.space import LoraSpace
from perfit.spec import Client, Federation
from perfit.training import OnStep, train

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ExpandedModel:
    """The frozen base model with the expanded LoRA on it, its tokenizer, and the space of positions."""

    peft: PeftModel
    tokenizer: PreTrainedTokenizerBase
    space: LoraSpace


@dataclass(frozen=True)
class ClientData:
    """A client's tokenised records, which never leave its pod."""

    train: ExampleSet
    held_out: ExampleSet


@dataclass(frozen=True)
class Tuning:
    """What a round of local tuning gave.

    Args:
        adapter: The tuned values on the client's mask.
        losses: Of every step, nats per response token.
        perplexity_before: Held-out, under the values that the round started from.
        perplexity_after: Held-out, under the tuned values.
    """

    adapter: SparseAdapter
    losses: list[float]
    perplexity_before: float
    perplexity_after: float


def inspect_model(federation: Federation, cache: Path) -> LoraSpace:
    """Return the expanded space of a federation's model, without loading its weights, once every tier can hold it.

    Raises:
        PerfitError: The model or a target module does not exist, or a tier has too little memory.
    """
    model = model_skeleton(prepare_model(federation.model, cache))
    space = expand(model, federation)[1]
    for name in federation.tiers_in_use():
        rank = max(federation.rank_of(client) for client in federation.clients if client.tier == name)
        check_tier(name, federation.tiers[name], memory_need(model, space, federation, rank))
    return space


def load_expanded(federation: Federation, cache: Path) -> ExpandedModel:
    """Load the base model and put the expanded LoRA on it.

    Raises:
        PerfitError: The model or a target module does not exist.
    """
    source = prepare_model(federation.model, cache)
    model, space = expand(load_model(source, federation.training.precision), federation)
    return ExpandedModel(model, load_tokenizer(source), space)


def load_client_data(
    federation: Federation,
    client: Client,
    tokenizer: PreTrainedTokenizerBase,
    fetch: Callable[[str], str] = lambda uri: uri,
) -> ClientData:
    """Read and tokenise a client's records; without held-out data of its own, a fraction is held out.

    Args:
        federation: Gives the sequence length and how bad records are met.
        client: Whose data.
        tokenizer: Of the base model.
        fetch: Turns a data URI into something that :func:`perfit.data.read_records` reads.

    Raises:
        PerfitError: The data are missing, or no use.
    """

    def load(uri: str) -> ExampleSet:
        length, bad_records = federation.training.sequence_length, federation.data.bad_records
        return load_examples(fetch(uri), tokenizer, length, bad_records)

    examples = load(client.data)
    if client.held_out:
        return ClientData(examples, load(client.held_out))
    seed = derive_seed(federation.training.seed, "held-out", client.id)
    return ClientData(*split_held_out(examples, federation.data.held_out_fraction, seed))


def find_mask(
    model: ExpandedModel,
    federation: Federation,
    client: Client,
    data: ClientData,
    initial: np.ndarray,
    on_step: OnStep | None = None,
) -> np.ndarray:
    """Search a client's personal architecture; see :func:`perfit.search.search_architecture`."""
    _use_threads(federation, client)
    return search_architecture(
        model.peft,
        model.space,
        data.train.examples,
        model.tokenizer,
        federation.method,
        federation.training,
        initial=initial,
        rank=federation.rank_of(client),
        seed=derive_seed(federation.training.seed, "search", client.id),
        on_step=on_step,
    )


def tune(
    model: ExpandedModel,
    federation: Federation,
    client: Client,
    round: int,
    data: ClientData,
    start: SparseAdapter,
    on_step: OnStep | None = None,
) -> Tuning:
    """Train a client's own values for one round.

    Raises:
        TrainingDiverged: The loss or the held-out perplexity is not finite.
    """
    _use_threads(federation, client)
    with compact(model.peft, start) as vectors:
        before = _held_out_perplexity(model, federation, data)
        losses = train(
            model.peft,
            data.train.examples,
            model.tokenizer,
            federation.training,
            steps=federation.training.steps,
            seed=derive_seed(federation.training.seed, "tune", round, client.id),
            on_step=on_step,
        )
        after = _held_out_perplexity(model, federation, data)
        if not math.isfinite(before + after):
            raise TrainingDiverged(f"held-out perplexity is {before:g} before and {after:g} after the tuning")
        adapter = SparseAdapter(start.space, start.mask, read_values(vectors))
    return Tuning(adapter, losses, before, after)


def evaluate(
    model: ExpandedModel, federation: Federation, client: Client, data: ClientData, values: np.ndarray
) -> float:
    """Return a client's held-out perplexity under dense values (float32, shape (N,))."""
    _use_threads(federation, client)
    set_dense(model.peft, model.space, values)
    return _held_out_perplexity(model, federation, data)


def _held_out_perplexity(model: ExpandedModel, federation: Federation, data: ClientData) -> float:
    return perplexity(model.peft, data.held_out.examples, model.tokenizer, federation.training.batch_size)


def _use_threads(federation: Federation, client: Client) -> None:
    # torch sees all cores of a node, not a pod's share; sums on the CPU also depend on how many threads share them.
    torch.set_num_threads(federation.tiers[client.tier].threads)
