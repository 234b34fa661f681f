"""The protocol of a round: what a client starts from, what it sends and keeps, and what the server merges.

It is written once, here. The simulation (:mod:`perfit.simulation`) and the steps of the pipelines only move the vectors
between its functions, in memory or through the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from perfit.adapter import SparseAdapter
from perfit.adapter_file import to_wire
from perfit.aggregation import Cohort
from perfit.methods import VALUES, AfterTuning, ClientStart, Roles, Tuned, Vectors
from perfit.methods.method import Score
from perfit.space import LoraSpace
from perfit.spec import FederationSpec
from perfit.updates import Update


@dataclass(frozen=True)
class ClientRound:
    """A client's side of a round, around its training.

    Args:
        spec: The federation.
        space: The expanded space of N positions.
        held: The client's architecture: bool, shape (N,).
    """

    spec: FederationSpec
    space: LoraSpace
    held: np.ndarray

    @cached_property
    def roles(self) -> Roles:
        """What the client trains and shares."""
        return self.spec.algorithm.roles(self.space, self.held)

    @cached_property
    def initial(self) -> np.ndarray:
        """The values that all clients start from: float32, shape (N,), zero off the architecture."""
        return np.where(self.held, self.space.initial_values(self.spec.training.seed), np.float32(0))

    def begin(self, received: Vectors, kept: Vectors, score: Score | None = None) -> ClientStart:
        """Return what the client begins with.

        Shared positions start from the server's values; personal ones start from the client's own last values or, in
        its first round, from the initial values.

        Args:
            received: What the server sent, at the shared positions; empty if nothing is shared.
            kept: What :meth:`finish` returned to keep in the client's last round, at the trained positions.
            score: For methods with a ``start`` hook.
        """
        method, roles = self.spec.algorithm, self.roles
        own = kept.get(VALUES, self.initial[roles.trained])
        shared = roles.shared[roles.trained]
        spread = {name: np.zeros(own.size, dtype=np.float32) for name in method.downloads}
        for name, vector in received.items():
            spread[name][shared] = vector
        values = np.where(shared, spread[VALUES], own)
        if method.start and score:
            values = method.start(self.spec.method, own, values, score)
        return ClientStart(values.astype(np.float32), spread, kept)

    def dense(self, values: np.ndarray) -> np.ndarray:
        """Return all N positions, float32, of a client whose trained positions have ``values``, shape (T,)."""
        dense = self.initial.copy()
        dense[self.roles.trained] = values
        return dense

    def adapter(self, values: np.ndarray) -> SparseAdapter:
        """Return the personal adapter of a client whose trained positions have ``values``, shape (T,)."""
        return SparseAdapter(self.space, self.held, self.dense(values)[self.held])

    def finish(self, start: ClientStart, tuned: Tuned, samples: int) -> tuple[Update, Vectors]:
        """Return the update for the server, rounded to the type on the wire, and what the client keeps.

        The client keeps what the method's ``after`` hook asks for. It also keeps its values if some of them are
        personal, or if the method has a ``start`` hook.
        """
        method, roles = self.spec.algorithm, self.roles
        after = method.after(self.spec.method, start, tuned) if method.after else AfterTuning()
        kept = dict(after.kept)
        if roles.personal or method.start:
            kept[VALUES] = tuned.values
        shared = roles.shared[roles.trained]
        vectors = {VALUES: tuned.values, **after.shared}
        rounded = {
            name: to_wire(vector[shared], self.spec.wire_dtype).astype(np.float32) for name, vector in vectors.items()
        }
        return Update(roles.shared, rounded, samples), kept


def initial_state(spec: FederationSpec, space: LoraSpace) -> Vectors:
    """Return the server's vectors before the first round, each float32 of shape (N,)."""
    return spec.algorithm.init(space.initial_values(spec.training.seed))


def split_state(spec: FederationSpec, state: Vectors) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the vectors that clients read, and the server's own."""
    downloads = spec.algorithm.downloads
    own = {name: vector for name, vector in state.items() if name not in downloads}
    return {name: state[name] for name in downloads}, own


def received_by(roles: Roles, downloads: Vectors) -> dict[str, np.ndarray]:
    """Return what a client receives: the entries of the downloads at its shared positions."""
    return {name: vector[roles.shared] for name, vector in downloads.items()}


def new_cohort(spec: FederationSpec, space: LoraSpace, state: Vectors) -> Cohort:
    """Return the cohort of a round that starts from the server's vectors ``state``; updates are added to it."""
    method = spec.algorithm
    return Cohort(
        method.uploads,
        {VALUES: state[VALUES]},
        lambda: _population(spec, space),
        spec.aggregation,
        weighted=method.weighted,
    )


def merge(spec: FederationSpec, state: Vectors, cohort: Cohort) -> Vectors:
    """Return the server's next vectors, each float32 of shape (N,)."""
    return spec.algorithm.merge(spec.method, state, cohort)


def _population(spec: FederationSpec, space: LoraSpace) -> np.ndarray:
    """Count the clients of the federation that share each position; every client holds a plain LoRA of its rank."""
    if spec.search is not None:
        raise NotImplementedError("the server does not know the architectures of clients that are not in the round")
    ranks: Mapping[int, int] = Counter(spec.rank_of(client) for client in spec.clients)
    population = np.zeros(space.size, dtype=np.int64)
    for rank, clients in ranks.items():
        population[spec.algorithm.roles(space, space.plain_mask(rank)).shared] += clients
    return population
