"""The protocol of a round: what a client starts from, what it sends and keeps, and what the server merges.

It is written once, here. The simulation (:mod:`perfit.simulation`) and the steps of the pipelines only move the vectors
between its functions, in memory or through the store.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from perfit.adapter import SparseAdapter
from perfit.aggregation import Cohort
from perfit.exchange import Exchange, Packed, Transfer, pack
from perfit.methods import VALUES, AfterTuning, ClientStart, Mix, Roles, Tuned, Vectors
from perfit.methods.method import Score, share_all
from perfit.scratch import Scratch
from perfit.seeds import derive_seed
from perfit.space import LoraSpace
from perfit.spec import Client, FederationSpec
from perfit.updates import Update


@dataclass(frozen=True)
class Received:
    """What a client receives in a round.

    Args:
        positions: bool, shape (N,): those that it exchanges, some of its shared ones.
        vectors: float32, of the length of the positions, by name; none if it exchanges nothing.
    """

    positions: np.ndarray
    vectors: Vectors = field(default_factory=dict)

    @classmethod
    def by(cls, download: Transfer) -> Received:
        """Return what a client receives by a download."""
        return cls(download.positions, download.unpack() if download.positions.any() else {})


@dataclass(frozen=True)
class ClientRound:
    """A client's side of a round, around its training.

    Args:
        spec: The federation.
        space: The expanded space of N positions.
        held: The client's architecture: bool, shape (N,).
        round: From 1.
    """

    spec: FederationSpec
    space: LoraSpace
    held: np.ndarray
    round: int

    @cached_property
    def roles(self) -> Roles:
        """What the client trains and shares."""
        return self.spec.roles(self.space, self.held)

    @cached_property
    def active(self) -> np.ndarray:
        """The positions that the client trains in this round: bool, shape (N,)."""
        turns = trained_in_turn(self.spec, self.space, self.held)
        return turns[(self.round - 1) % len(turns)]

    @cached_property
    def initial(self) -> np.ndarray:
        """The values that all clients start from: float32, shape (N,), zero off the architecture."""
        return np.where(self.held, self.space.initial_values(self.spec.training.seed), np.float32(0))

    @property
    def exchanged_unknown(self) -> np.ndarray:
        """What the client exchanges if the round was planned without its architecture: bool, shape (N,)."""
        if exchanges_unknown(self.spec, self.round):
            return self.roles.shared
        return np.zeros(self.space.size, dtype=bool)

    def unknown(self) -> Received:
        """Return what the client receives in such a round: the state that a federation begins with, which it knows."""
        positions = self.exchanged_unknown
        if not positions.any():
            return Received(positions)
        downloads, _ = split_state(self.spec, initial_state(self.spec, self.space))
        return Received(positions, {name: vector[positions] for name, vector in downloads.items()})

    def carried(self, kept: Vectors, held: np.ndarray) -> Vectors:
        """Return what the client kept while its architecture was ``held``, at the positions that it trains now.

        Positions that are new to it start as in its first round: with the initial values, and zero under other names.
        What it kept at positions that it does not hold any more is lost.

        Args:
            kept: By name, each float32, of the length of the positions that it trained.
            held: bool, shape (N,).
        """
        if held is self.held or np.array_equal(held, self.held):
            return kept
        before, now = self.spec.roles(self.space, held).trained, self.roles.trained
        carried = {}
        for name, vector in kept.items():
            dense = self.initial.copy() if name == VALUES else np.zeros_like(self.initial)
            dense[before] = vector
            carried[name] = dense[now]
        return carried

    def begin(self, received: Received, kept: Vectors, score: Score | None = None) -> ClientStart:
        """Return what the client begins with.

        Exchanged positions start from the server's values; the others start from the client's own last values or, in
        its first round, from the initial values.

        Args:
            received: What the server sent.
            kept: What :meth:`finish` returned to keep in the client's last round, at the trained positions; see
                :meth:`carried`.
            score: For methods with a ``start`` hook.
        """
        method, roles = self.spec.algorithm, self.roles
        exchanged = received.positions[roles.trained]
        own = kept.get(VALUES, self.initial[roles.trained])
        spread = {name: kept.get(name, np.zeros_like(own)).copy() for name in method.downloads}
        spread[VALUES] = own.copy()
        for name, vector in received.vectors.items():
            spread[name][exchanged] = vector
        values, own_weight = spread[VALUES], None
        if method.start and score and not np.array_equal(own, values):
            mix = method.start(self.spec.method, own, values, score)
            values, own_weight = mix.values, mix.weight
        return ClientStart(values.astype(np.float32), spread, kept, own_weight)

    def end(self, start: ClientStart, tuned: np.ndarray, score: Score | None = None) -> Mix:
        """Return what the client has after its training, which gave the values ``tuned`` (float32, shape (T,)).

        The weight is None where the method leaves no choice.
        """
        method = self.spec.algorithm
        if method.end and score and not np.array_equal(tuned, start.values):
            mix = method.end(self.spec.method, tuned, start.values, score)
            return Mix(mix.values.astype(np.float32), mix.weight)
        return Mix(tuned, None)

    def dense(self, values: np.ndarray) -> np.ndarray:
        """Return all N positions, float32, of a client whose trained positions have ``values``, shape (T,)."""
        dense = self.initial.copy()
        dense[self.roles.trained] = values
        return dense

    def adapter(self, values: np.ndarray) -> SparseAdapter:
        """Return the personal adapter of a client whose trained positions have ``values``, shape (T,)."""
        return SparseAdapter(self.space, self.held, self.dense(values)[self.held])

    def finish(
        self, received: Received, start: ClientStart, tuned: Tuned, seed: int, end: np.ndarray | None = None
    ) -> tuple[Transfer, Vectors]:
        """Return what the client uploads, and what it keeps: its values, and what the method's ``after`` hook asks for.

        Args:
            received: What the server sent.
            start: What :meth:`begin` returned.
            tuned: The result of the training.
            seed: Of the rounding.
            end: The values that :meth:`end` returned, which the client keeps; without them the tuned ones.
        """
        method, exchange = self.spec.algorithm, self.spec.exchange
        after = method.after(self.spec.method, start, tuned) if method.after else AfterTuning()
        kept = {VALUES: tuned.values if end is None else end, **after.kept}
        updated = (received.positions & self.active)[self.roles.trained]
        for name in after.shared.keys() & after.kept.keys():
            kept[name] = np.where(updated, kept[name], start.kept.get(name, np.float32(0)))
        vectors = {VALUES: tuned.values, **after.shared}
        if exchange.sends_changes:
            vectors[VALUES] = tuned.values - start.received[VALUES]
        sent = updated.copy()
        sent[updated] = exchange.largest(vectors[VALUES][updated])
        positions = np.zeros(self.space.size, dtype=bool)
        positions[self.roles.trained] = sent
        return Transfer(positions, _pack(exchange, {name: v[sent] for name, v in vectors.items()}, seed)), kept


@dataclass(frozen=True)
class Reach:
    """Finds what a client trains and exchanges in a round from its packed mask.

    Args:
        spec: The federation.
        space: The expanded space of N positions.
        round: From 1.
        exchanged: The positions that the round exchanges, packed: uint8, shape (ceil(N / 8),).
    """

    spec: FederationSpec
    space: LoraSpace
    round: int
    exchanged: np.ndarray

    def positions(self, mask: np.ndarray, known: bool) -> tuple[np.ndarray, np.ndarray]:
        """Return what a client trains, and what it exchanges.

        Args:
            mask: Its architecture, packed.
            known: Whether the server knew it when it planned the round.

        Returns:
            Packed masks, uint8, shape (ceil(N / 8),).
        """
        method = self.spec.algorithm
        active = shared = mask
        if method.roles is not share_all or method.turns:  # else a byte a position would take most of the time
            side = ClientRound(self.spec, self.space, np.unpackbits(mask, count=self.space.size).view(bool), self.round)
            active, shared = np.packbits(side.active), np.packbits(side.active & side.roles.shared)
        if known:
            return active, shared & self.exchanged
        return active, shared if exchanges_unknown(self.spec, self.round) else np.zeros_like(shared)


def exchanges_unknown(spec: FederationSpec, round: int) -> bool:
    """Return whether a round exchanges values with clients whose architecture the server does not know.

    In the first round it does, and the server alone sees them. In a later one, or if masks go first, such a client
    trains alone and uploads its architecture.
    """
    return round == 1 and not spec.exchange.masks_first


def trained_in_turn(spec: FederationSpec, space: LoraSpace, held: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return what a client trains in the first round, in the second, and so on from the first again.

    Args:
        spec: The federation.
        space: The expanded space of N positions.
        held: The client's architecture: bool, shape (N,).

    Returns:
        One mask or several, each bool, shape (N,).
    """
    trained, turns = spec.roles(space, held).trained, spec.algorithm.turns
    return tuple(trained & turn for turn in turns(space)) if turns else (trained,)


def initial_state(spec: FederationSpec, space: LoraSpace) -> Vectors:
    """Return the server's vectors before the first round, each float32 of shape (N,)."""
    return spec.algorithm.init(space.initial_values(spec.training.seed))


def split_state(spec: FederationSpec, state: Vectors) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the vectors of which clients receive their part, and the server's own."""
    downloads = spec.algorithm.downloads
    own = {name: vector for name, vector in state.items() if name not in downloads}
    return {name: state[name] for name in downloads}, own


def plain_architecture(spec: FederationSpec, space: LoraSpace, client: Client) -> np.ndarray | None:
    """Return a client's architecture if it follows from its rank: bool, shape (N,); None if the client searches."""
    return space.plain_mask(spec.rank_of(client)) if spec.search is None else None


def exchanged_positions(
    spec: FederationSpec, space: LoraSpace, architectures: Iterable[tuple[np.ndarray, int]]
) -> np.ndarray:
    """Return the positions that clients of a round exchange as far as they share them.

    Args:
        spec: The federation.
        space: The expanded space of N positions.
        architectures: Those that the server knows, bool, shape (N,), each with the number of the round's clients that
            have it; consumed one at a time.

    Returns:
        bool, shape (N,): the positions that at least ``exchange.holders`` of them share.
    """
    holders = np.zeros(space.size, dtype=np.uint32)
    for held, clients in architectures:
        np.add(holders, clients, out=holders, where=spec.roles(space, held).shared)
    return holders >= spec.exchange.holders


def download(spec: FederationSpec, state: Vectors, positions: np.ndarray, round: int, client: Client) -> Transfer:
    """Return what a client downloads. Without a search, all clients of a rank download the same.

    Args:
        spec: The federation.
        state: The server's vectors, each float32 of shape (N,).
        positions: bool, shape (N,): those that the client exchanges.
        round: From 1.
        client: The client.
    """
    whose = ("client", client.id) if spec.search else ("rank", spec.rank_of(client))
    seed = derive_seed(spec.training.seed, "download", round, *whose)
    downloads, _ = split_state(spec, state)
    return Transfer(positions, _pack(spec.exchange, {key: v[positions] for key, v in downloads.items()}, seed))


def update_of(spec: FederationSpec, state: Vectors, updated: np.ndarray, transfer: Transfer, samples: int) -> Update:
    """Return the update that a client's upload amounts to.

    Changes are those of the server's values as they are, not as they were rounded for the download: so its rounding
    does not add up over the rounds.

    Args:
        spec: The federation.
        state: The server's vectors at the start of the round, each float32 of shape (N,).
        updated: bool, shape (N,): the positions that the client exchanges and has trained in this round.
        transfer: What it uploaded, at some of them.
        samples: Number of its training records.
    """
    vectors = transfer.unpack()
    if spec.exchange.sends_changes:
        values = state[VALUES][updated]
        values[transfer.positions[updated]] += vectors[VALUES]
        vectors[VALUES] = values
    return Update.at(updated, vectors, samples)


def new_cohort(
    spec: FederationSpec,
    space: LoraSpace,
    state: Vectors,
    release: Callable[[], None] = lambda: None,
    scratch: Scratch | None = None,
) -> Cohort:
    """Return the cohort of a round that starts from the server's vectors ``state``; updates are added to it.

    ``release`` is called whenever a few megabytes of the vectors and updates have been read; averages are kept in
    ``scratch``, or in memory.
    """
    method = spec.algorithm
    return Cohort(
        method.uploads,
        {VALUES: state[VALUES]},
        lambda: _population(spec, space),
        spec.aggregation,
        weighted=method.weighted,
        min_holders=spec.exchange.holders,
        release=release,
        scratch=scratch,
    )


def merge(spec: FederationSpec, space: LoraSpace, state: Vectors, cohort: Cohort) -> Vectors:
    """Return the server's next vectors, each float32 of shape (N,)."""
    return spec.algorithm.merge(spec.method, space, state, cohort)


def _pack(exchange: Exchange, vectors: Vectors, seed: int) -> dict[str, Packed]:
    return {name: pack(vector, exchange.dtype, derive_seed(seed, name)) for name, vector in vectors.items()}


def _population(spec: FederationSpec, space: LoraSpace) -> np.ndarray:
    """Count the clients of the federation that share each position; every client holds a plain LoRA of its rank."""
    if spec.search is not None:
        raise NotImplementedError("the server does not know the architectures of clients that are not in the round")
    ranks: Mapping[int, int] = Counter(spec.rank_of(client) for client in spec.clients)
    population = np.zeros(space.size, dtype=np.int64)
    for rank, clients in ranks.items():
        population[spec.roles(space, space.plain_mask(rank)).shared] += clients
    return population
