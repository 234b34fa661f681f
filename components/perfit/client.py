"""A client's work on its own machine: load model and records, search for its architecture, tune its values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from perfit import processes
from perfit.adapter import SparseAdapter
from perfit.checkpoint import CheckpointFile, Checkpoints, training_hash
from perfit.errors import PerfitError, TrainingDiverged
from perfit.evaluation import example_losses, perplexity
from perfit.examples import ExampleSet, load_examples, split_held_out
from perfit.exchange import Transfer
from perfit.lora import compact, expand, read_values, set_dense
from perfit.methods import ClientStart, Tuned, Vectors
from perfit.methods.method import Score
from perfit.models import load_model, load_tokenizer, prepare_model
from perfit.round import ClientRound, Received
from perfit.search import search_architecture
from perfit.seeds import derive_seed
from perfit.space import LoraSpace
from perfit.spec import Client, FederationSpec
from perfit.training import OnStep, StatefulCallback, train

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase

VALIDATION_FRACTION = 0.125
"""Of a client's training records, what methods with a ``start`` hook set aside: the same records in all rounds."""


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
class ClientResult:
    """The result of a client's round.

    Args:
        adapter: The personal adapter.
        exchanged: bool, shape (N,): the positions that the client exchanged with the server.
        updated: bool, shape (N,): those of them that it trained in this round.
        upload: What it sent, at some of these.
        samples: Number of its training records.
        kept: What the client keeps until its next round, by name, each float32 of shape (T,).
        losses: Loss of every step, nats per response token.
        perplexity_before: Held-out perplexity under the values that the round started from.
        perplexity_after: Held-out perplexity under the personal adapter.
        own_weight: The weight of its own last values in what it started from; None if its method does not choose it.
        tuned_weight: That of the tuned values in what it has now, the rest being what it started from; likewise.
    """

    adapter: SparseAdapter
    exchanged: np.ndarray
    updated: np.ndarray
    upload: Transfer
    samples: int
    kept: Vectors
    losses: list[float]
    perplexity_before: float
    perplexity_after: float
    own_weight: float | None
    tuned_weight: float | None


def load_expanded(spec: FederationSpec, cache: Path) -> ExpandedModel:
    """Load the base model and put the expanded LoRA on it.

    Raises:
        PerfitError: The model or a target module does not exist.
    """
    return load_prepared(spec, prepare_model(spec.model, cache))


def load_prepared(spec: FederationSpec, source: str) -> ExpandedModel:
    """Load the base model from its prepared directory, and put the expanded LoRA on it.

    Raises:
        PerfitError: It is no model, or a target module does not exist.
    """
    base = load_model(source, spec.training.precision, spec.training.quantization)
    model, space = expand(base, spec.expanded_lora)
    return ExpandedModel(model, load_tokenizer(source), space)


def load_client_data(
    spec: FederationSpec,
    client: Client,
    tokenizer: PreTrainedTokenizerBase,
    fetch: Callable[[str], str] = lambda uri: uri,
) -> ClientData:
    """Read and tokenise a client's records. If it has no held-out data of its own, a fraction is held out.

    Args:
        spec: Gives the sequence length and how to treat bad records.
        client: The client.
        tokenizer: The base model's tokenizer.
        fetch: Turns a data URI into something that :func:`perfit.records.read_records` reads.

    Raises:
        PerfitError: The data are missing or unusable.
    """
    if client.data is None:
        raise PerfitError(
            f"the records of client {client.id!r} are not known here: it is of the remote tier {client.tier!r}",
            "its owner runs it: perfit client --data; or put it into a tier of pods, and name its data",
        )

    def load(uri: str) -> ExampleSet:
        return load_examples(fetch(uri), tokenizer, spec.training.sequence_length, spec.data.bad_records, uri)

    examples = load(client.data)
    if client.held_out:
        return ClientData(examples, load(client.held_out))
    seed = derive_seed(spec.training.seed, "held-out")  # Of no client: what several have is on one side in all of them.
    return ClientData(*split_held_out(examples, spec.data.held_out_fraction, seed))


def find_architecture(
    model: ExpandedModel,
    spec: FederationSpec,
    client: Client,
    data: ClientData,
    on_step: OnStep | None = None,
    checkpoint: CheckpointFile | None = None,
) -> np.ndarray:
    """Return a client's architecture, bool, shape (N,): the result of a search, or a plain LoRA if there is no search.

    Args:
        model: A search overwrites its LoRA.
        spec: The federation.
        client: The client.
        data: Its records; used only by a search.
        on_step: Reports the progress of the search.
        checkpoint: Where the search keeps its last checkpoint; None for no checkpoints.

    Raises:
        TrainingDiverged: The loss is not finite.
    """
    if spec.search is None:
        return model.space.plain_mask(spec.rank_of(client))
    return _search(model, spec, client, 0, data, model.space.initial_values(spec.training.seed), on_step, checkpoint)


def search_again(
    model: ExpandedModel,
    spec: FederationSpec,
    client: Client,
    round: int,
    data: ClientData,
    held: np.ndarray,
    received: Received,
    kept: Vectors,
    on_step: OnStep | None = None,
    checkpoint: CheckpointFile | None = None,
) -> np.ndarray:
    """Return the architecture that a client has after a round, bool, shape (N,); the arguments are those of its round.

    It does not follow from the round's tuning. What the server sent is at the client's own positions alone, so that a
    search from the global values starts from the initial ones off its architecture: A as drawn, B zero.

    Raises:
        PerfitError: Of some module only A or only B would be left.
        TrainingDiverged: The loss is not finite.
    """
    start = model.space.initial_values(spec.training.seed)
    if spec.search.start == "global":
        side = ClientRound(spec, model.space, held, round)
        start[side.roles.trained] = side.begin(received, kept).values
    return _search(model, spec, client, round, data, start, on_step, checkpoint)


def _search(
    model: ExpandedModel,
    spec: FederationSpec,
    client: Client,
    round: int,
    data: ClientData,
    start: np.ndarray,
    on_step: OnStep | None,
    checkpoint: CheckpointFile | None,
) -> np.ndarray:
    """Search from given values, float32, shape (N,); round 0 is the search before a client's first round."""
    whose = "" if spec.search.metric == "common" else client.id
    again = (round,) if round else ()
    return search_architecture(
        model.peft,
        model.space,
        _training_parts(spec, data)[0].examples,
        model.tokenizer,
        spec.search,
        spec.training,
        initial=start,
        rank=spec.rank_of(client),
        seed=derive_seed(spec.training.seed, "search", whose, *again),
        on_step=on_step,
        checkpoints=_checkpoints(checkpoint, model, spec, client, round, data, spec.search.steps, {"search": start}),
    )


def run_client(
    model: ExpandedModel,
    spec: FederationSpec,
    client: Client,
    round: int,
    data: ClientData,
    held: np.ndarray,
    received: Received,
    kept: Vectors,
    on_step: OnStep | None = None,
    checkpoint: CheckpointFile | None = None,
) -> ClientResult:
    """Run a client's round: begin, tune, finish.

    Args:
        model: Its LoRA is overwritten.
        spec: The federation.
        client: The client.
        round: From 1.
        data: The client's records.
        held: Its architecture: bool, shape (N,).
        received: What the server sent.
        kept: What the client kept from its last round, at the trained positions; empty in its first.
        on_step: Reports the progress of the tuning.
        checkpoint: Where the tuning keeps its last checkpoint; None for no checkpoints.

    Raises:
        PerfitError: Several processes have come to different values.
        TrainingDiverged: The loss or the held-out perplexity is not finite.
    """
    side = ClientRound(spec, model.space, held, round)
    examples, validation = _training_parts(spec, data)
    score = _scorer(model, side, validation, spec.training.batch_size) if validation else None
    start, active = side.begin(received, kept, score), side.active[side.roles.trained]
    inputs = {"held": held, "values": start.values, "exchanged": received.positions}
    inputs |= {f"received/{name}": vector for name, vector in received.vectors.items()}
    inputs |= {f"kept/{name}": vector for name, vector in kept.items()}
    checkpoints = _checkpoints(checkpoint, model, spec, client, round, data, spec.training.steps, inputs)
    with compact(model.peft, model.space, side.dense(start.values), side.active) as vectors:
        before = checkpoints.measured("perplexity_before", lambda: _held_out_perplexity(model, spec, data))
        gradients = _Gradients(spec, vectors, _at(start, active))
        losses = train(
            model.peft,
            examples.examples,
            model.tokenizer,
            spec.training.of_round(round),
            steps=spec.training.steps,
            seed=derive_seed(spec.training.seed, "tune", round, client.id),
            on_step=on_step,
            callbacks=[gradients],
            checkpoints=checkpoints,
        )
        values, gradient = start.values.copy(), np.zeros_like(start.values)
        values[active], gradient[active] = read_values(vectors), gradients.mean()
        processes.check_alike("tuned values", values)
    end = side.end(start, values, score)
    after = evaluate(model, spec, data, side.dense(end.values))
    if not math.isfinite(before + after):
        raise TrainingDiverged(f"held-out perplexity is {before:g} before and {after:g} after tuning")
    seed = derive_seed(spec.training.seed, "upload", round, client.id)
    upload, kept = side.finish(received, start, Tuned(values, gradient), seed, end.values)
    return ClientResult(
        adapter=side.adapter(end.values),
        exchanged=received.positions,
        updated=received.positions & side.active,
        upload=upload,
        samples=len(examples.examples),
        kept=kept,
        losses=losses,
        perplexity_before=before,
        perplexity_after=after,
        own_weight=start.own_weight,
        tuned_weight=end.weight,
    )


def evaluate(model: ExpandedModel, spec: FederationSpec, data: ClientData, values: np.ndarray) -> float:
    """Return a client's held-out perplexity under dense values (float32, shape (N,))."""
    set_dense(model.peft, model.space, values)
    return _held_out_perplexity(model, spec, data)


def _checkpoints(
    file: CheckpointFile | None,
    model: ExpandedModel,
    spec: FederationSpec,
    client: Client,
    round: int,
    data: ClientData,
    steps: int,
    inputs: Vectors,
) -> Checkpoints:
    """Return the checkpoints of a training, which are none if it is too short. Round 0 is the first search."""
    every = spec.training.checkpoint_steps
    if file is None or every is None or steps <= every:
        return Checkpoints()
    training = training_hash(spec, client, round, (data.train, data.held_out), inputs)
    # At most 17 bytes a position (values, two moments, scores, mask), 26 a loss, and the names of the tensors.
    return Checkpoints(file, training, every, limit=20 * model.space.size + 32 * steps + 2**24)


def _training_parts(spec: FederationSpec, data: ClientData) -> tuple[ExampleSet, ExampleSet | None]:
    """Return a client's records to train on, and those to validate on; None if its method has no use for them."""
    if spec.algorithm.start is None or len(set(data.train.digests)) < 2:
        return data.train, None
    return split_held_out(data.train, VALIDATION_FRACTION, derive_seed(spec.training.seed, "validation"))


def _held_out_perplexity(model: ExpandedModel, spec: FederationSpec, data: ClientData) -> float:
    return perplexity(model.peft, data.held_out.examples, model.tokenizer, spec.training.batch_size)


def _scorer(model: ExpandedModel, side: ClientRound, validation: ExampleSet, batch_size: int) -> Score:
    def score(values: np.ndarray) -> np.ndarray:
        set_dense(model.peft, model.space, side.dense(values))
        return example_losses(model.peft, validation.examples, model.tokenizer, batch_size)

    return score


class _Gradients(StatefulCallback):
    """Before each optimiser step, sums up the gradients and then adds the method's correction to them.

    Args:
        spec: Gives the method and its options.
        vectors: The trainable vector of each matrix.
        start: What the client began with, at the positions of the vectors.
    """

    def __init__(self, spec: FederationSpec, vectors: dict[str, nn.Parameter], start: ClientStart):
        self._method, self._options = spec.algorithm, spec.method
        self._vectors = list(vectors.values())
        self._sums = [torch.zeros_like(vector) for vector in self._vectors] if self._method.after else []
        self._starts = _blocks(start, self._vectors) if self._method.correction else []
        self._steps = spec.training.steps

    def state(self) -> dict[str, torch.Tensor]:
        return {f"gradients/{i}": total for i, total in enumerate(self._sums)}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        with torch.no_grad():
            for total, vector in zip(self._sums, self._vectors, strict=False):
                total += vector.grad
            for start, vector in zip(self._starts, self._vectors, strict=False):
                vector.grad += self._method.correction(self._options, vector, start)

    def mean(self) -> np.ndarray:
        """Return the mean gradient of all steps, float32, shape (T,); zero if the method does not use it."""
        if not self._sums:
            return np.zeros(sum(vector.numel() for vector in self._vectors), dtype=np.float32)
        return np.concatenate([(total / self._steps).float().cpu().numpy() for total in self._sums])


def _blocks(start: ClientStart, vectors: Sequence[nn.Parameter]) -> list[ClientStart]:
    """Split what a client began with into one start per vector, with tensors on the vector's device."""
    ends = np.cumsum([vector.numel() for vector in vectors])[:-1]

    def split(array: np.ndarray) -> list[Any]:
        parts = np.split(array, ends)
        return [torch.from_numpy(part.copy()).to(v.device) for part, v in zip(parts, vectors, strict=True)]

    values = split(start.values)
    received = {name: split(vector) for name, vector in start.received.items()}
    kept = {name: split(vector) for name, vector in start.kept.items()}
    return [
        replace(
            start,
            values=values[i],
            received={name: parts[i] for name, parts in received.items()},
            kept={name: parts[i] for name, parts in kept.items()},
        )
        for i in range(len(values))
    ]


def _at(start: ClientStart, positions: np.ndarray) -> ClientStart:
    """Return what a client began with at some of its T trained positions (bool, shape (T,))."""
    received = {name: vector[positions] for name, vector in start.received.items()}
    kept = {name: vector[positions] for name, vector in start.kept.items()}
    return ClientStart(start.values[positions], received, kept, start.own_weight)
