"""The type of a federated tuning method: its roles, its client hooks and its server rule.

Hooks and rule are functions from state to state, on two sides of the trust boundary: a client's hooks see its own
values and gradients, the server's rule sees only the mean of what was shared. Everything else that depends on a method
(budgets, bytes, memory, reports, export) is derived from its :class:`Roles`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from perfit.aggregation import Cohort
from perfit.importance import DrawnMask, MetricName
from perfit.pruning import Scope
from perfit.sections import Section
from perfit.space import LoraSpace

VALUES = "values"
"""The vector that every method has: the LoRA itself."""

Vectors = Mapping[str, np.ndarray]
"""Float32 vectors by name. At the server they have shape (N,): one entry per position of the expanded space."""


@dataclass(frozen=True)
class Roles:
    """What a client does at each of the N positions; ``shared`` lies within ``trained``, ``trained`` within ``held``.

    Off ``held`` the LoRA is zero. Held but not trained is frozen at its initial value. Trained but not shared is
    personal and never leaves the client. Of what is shared, a round exchanges what enough of its clients share.
    A method may train them in turn, some in one round and some in another (:attr:`Method.turns`).

    Args:
        held: bool, shape (N,): the client's architecture.
        trained: bool, shape (N,).
        shared: bool, shape (N,).

    Raises:
        ValueError: The arrays are not masks of one length, each within the one before.
    """

    held: np.ndarray
    trained: np.ndarray
    shared: np.ndarray

    def __post_init__(self):
        masks = (self.held, self.trained, self.shared)
        if any(mask.dtype != bool or mask.shape != self.held.shape or mask.ndim != 1 for mask in masks):
            raise ValueError(f"roles are {[f'{mask.dtype}{mask.shape}' for mask in masks]}, want three bool(N,)")
        within = ((self.trained, self.held), (self.shared, self.trained))
        if any(inner is not outer and (inner > outer).any() for inner, outer in within):
            raise ValueError("roles are not nested: shared must lie within trained, and trained within held")


@dataclass(frozen=True)
class ClientStart:
    """What a client begins a round with, at its T trained positions.

    Correction hooks get one for each LoRA matrix, with torch tensors; the other hooks get all positions, as arrays.

    Args:
        values: float32, shape (T,): what training starts from.
        received: What the server sent, by name, each float32 of shape (T,); where nothing was exchanged, what the
            client kept under the same name; else the initial values, or zero.
        kept: What the client kept from its last round, by name, each float32 of shape (T,); empty in its first round.
        own_weight: The weight of its own last values in ``values``, where a ``start`` hook chose it.
    """

    values: np.ndarray
    received: Vectors = field(default_factory=dict)
    kept: Vectors = field(default_factory=dict)
    own_weight: float | None = None


@dataclass(frozen=True)
class Mix:
    """What a ``start`` or ``end`` hook chose.

    Args:
        values: float32, shape (T,).
        weight: Of the hook's first vector in them, from 0 to 1; None if there was no choice.
    """

    values: np.ndarray
    weight: float | None


@dataclass(frozen=True)
class Tuned:
    """The result of local training, at the T trained positions.

    Args:
        values: float32, shape (T,).
        mean_gradient: float32, shape (T,): gradient of the loss, clipped but not corrected, averaged over the steps;
            zero where it is not the round's turn.
    """

    values: np.ndarray
    mean_gradient: np.ndarray


@dataclass(frozen=True)
class AfterTuning:
    """What a client shares and keeps after its round, besides its values.

    Args:
        shared: Further vectors to share, by name, each of shape (T,); only the shared positions are sent.
        kept: Vectors to keep until the next round, by name, each of shape (T,). One that is shared too keeps its last
            entries, at first zero, where nothing is exchanged: the server would miss their change.
    """

    shared: Vectors = field(default_factory=dict)
    kept: Vectors = field(default_factory=dict)


class MethodOptions(Section):
    """Options of a method; subclasses set ``name`` to a literal that tells methods apart in the federation file."""

    name: str


SearchStart = Literal["initial", "global"]


@dataclass(frozen=True)
class Search:
    """How a client searches for its architecture in the expanded space.

    Args:
        metric: Importance metric of parameters.
        scope: The group within which parameters compete.
        steps: Number of optimiser steps.
        warmup_steps: Number of steps before the first pruning, of ``steps``.
        pruning_iterations: Number of prunings.
        every: After every round that this divides, clients search again; 0 for once, before a client's first round.
        start: What a search again starts from: the initial values, or those that the client began the round with, the
            server's where it exchanges them.
    """

    metric: MetricName
    scope: Scope
    steps: int
    warmup_steps: int
    pruning_iterations: int
    every: int = 0
    start: SearchStart = "initial"

    @property
    def is_drawn(self) -> bool:
        """Whether the architecture is drawn at random, without data and training."""
        return self.metric in get_args(DrawnMask)


def share_all(options: Any, space: LoraSpace, held: np.ndarray) -> Roles:
    """Train and share everything that is held."""
    return Roles(held, held, held)


def keep_mean(options: Any, space: LoraSpace, state: Vectors, cohort: Cohort) -> Vectors:
    """Set each position to the mean over the clients that share it (FedAvg, arXiv 1602.05629)."""
    return {**state, VALUES: cohort.average(VALUES, state[VALUES])}


Score = Callable[[np.ndarray], np.ndarray]
"""What :func:`perfit.evaluation.example_losses` returns for values (float32, shape (T,)) on validation records of the
client's own, always in the same order."""


ChooseMix = Callable[[Any, np.ndarray, np.ndarray, Score], Mix]


@dataclass(frozen=True)
class Method:
    """A federated tuning method.

    Args:
        title: The method's name as papers write it.
        paper: The paper that describes it.
        options: Its section of the federation file; the default of ``name`` is the method's name.
        roles: (options, space, held) -> what a client that holds ``held`` trains and shares.
        turns: (space) -> bool masks, shape (N,): clients train what of their trained positions is in the first mask in
            round 1, in the second in round 2, and so on, from the first again after the last. The others start as ever,
            stay as they are and are not uploaded. None: all are trained in every round.
        search: (options) -> how clients search for their architectures; None for a plain LoRA of the client's rank.
        start: (options, own, shared, score) -> what to start from; ``own`` are a client's last values, ``shared`` those
            with the server's at the exchanged positions. Without it a client starts from ``shared``. It is called only
            where they differ. A client of such a method never trains on its validation records.
        end: (options, tuned, start, score) -> what the client has in the end, and keeps; ``start`` the values that the
            training began with. Without it these are the tuned ones, which are shared in any case. For methods with a
            ``start`` hook.
        correction: (options, values, start) -> what is added to the gradient of a step, after clipping. It is called
            for each LoRA matrix with torch tensors, so it may use only arithmetic operators.
        after: (options, start, tuned) -> what else is shared, and what is kept.
        init: (initial values, shape (N,)) -> the server's state.
        merge: (options, space, state, cohort) -> the server's next state.
        uploads: Names of the vectors that a client shares.
        downloads: Names of the state's vectors that clients receive; the others are the server's own.
        by_position: Whether ``merge`` takes each position by itself, so that a robust rule can replace the mean.
        weighted: Whether the mean weighs clients by their samples; otherwise all count the same.
    """

    title: str
    paper: str
    options: type[MethodOptions]
    roles: Callable[[Any, LoraSpace, np.ndarray], Roles] = share_all
    turns: Callable[[LoraSpace], tuple[np.ndarray, ...]] | None = None
    search: Callable[[Any], Search | None] = lambda options: None
    start: ChooseMix | None = None
    end: ChooseMix | None = None
    correction: Callable[[Any, Any, ClientStart], Any] | None = None
    after: Callable[[Any, ClientStart, Tuned], AfterTuning] | None = None
    init: Callable[[np.ndarray], Vectors] = lambda values: {VALUES: values}
    merge: Callable[[Any, LoraSpace, Vectors, Cohort], Vectors] = keep_mean
    uploads: tuple[str, ...] = (VALUES,)
    downloads: tuple[str, ...] = (VALUES,)
    by_position: bool = True
    weighted: bool = True

    @property
    def name(self) -> str:
        """The method's name in federation files."""
        return self.options.model_fields["name"].default
