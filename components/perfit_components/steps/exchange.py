"""What each client of a round exchanges with the server, as far as the server knows the clients' architectures."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterHeader, dump_mask, dump_transfer
from perfit.cluster_spec import ClusterClient
from perfit.protocol import Base, Blob, Participant, Plan
from perfit.round import download, exchanged_positions, plain_architecture
from perfit_components.steps.context import FederationContext, StoredVectors
from perfit_components.steps.contribution import read_mask
from perfit_storage import RoundPlace

T, R = TypeVar("T"), TypeVar("R")
_AT_ONCE = 4
"""Clients whose architectures or downloads are read or written at a time."""


def plan_exchange(context: FederationContext, base: Base, place: RoundPlace, clients: Sequence[ClusterClient]) -> Plan:
    """Write what each client of a round downloads; return the round's plan, which names it.

    Every architecture is read twice, so that memory does not grow with the number of clients.

    Args:
        context: The federation's context.
        base: What the round starts from.
        place: Where the round's files are.
        clients: Who takes part.

    Raises:
        PerfitError: What the round starts from is damaged, or the store cannot be reached or written.
    """
    hashes = context.summary_of(base).architectures if base.summary else {}
    planner = _Planner(context, base, place, context.downloads(base), hashes)
    exchanged = exchanged_positions(context.spec, planner.stored.space, planner.architectures(clients))
    return Plan(
        federation=context.spec.name,
        round=place.number,
        base=base,
        participants=planner.participants(clients, exchanged),
        exchanged=planner.put_exchanged(exchanged) if exchanged.any() else None,
    )


def is_exchange_stored(context: FederationContext, plan: Plan) -> bool:
    """Whether the store holds all that a plan names."""
    blobs = {blob.key for blob in (plan.exchanged, *(p.download for p in plan.participants)) if blob}
    return all(_side_by_side(context.store.has_blob, blobs))


def _side_by_side(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield a function's results in the order of the items, computed by a few threads that wait for the store.

    No more of them are kept than the threads have at hand: memory does not grow with the items.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        begun: deque[Future[R]] = deque()
        for item in items:
            begun.append(pool.submit(function, item))
            if len(begun) > _AT_ONCE:
                yield begun.popleft().result()
        while begun:
            yield begun.popleft().result()


@dataclass(frozen=True)
class _Planner:
    """A round that is being planned. ``hashes`` are those of the architectures that the server knows, by client."""

    context: FederationContext
    base: Base
    place: RoundPlace
    stored: StoredVectors
    hashes: Mapping[str, str]

    def architectures(self, clients: Sequence[ClusterClient]) -> Iterator[tuple[np.ndarray, int]]:
        """Yield the architectures that are known, each with the number of clients that have it."""
        if self.context.spec.search is None:
            for rank, count in Counter(map(self.context.spec.rank_of, clients)).items():
                yield self.stored.space.plain_mask(rank), count
        else:
            yield from ((held, 1) for held in _side_by_side(self._architecture, clients) if held is not None)

    def _architecture(self, client: ClusterClient) -> np.ndarray | None:
        """Return a client's architecture; None if it has delivered none, or has changed or removed it since."""
        context, space = self.context, self.stored.space
        if client.id in self.hashes:
            return read_mask(context.store, client.id, self.hashes[client.id], space)
        return plain_architecture(context.spec, space, client)

    def participants(self, clients: Sequence[ClusterClient], exchanged: np.ndarray) -> tuple[Participant, ...]:
        """Write what each client downloads, once a rank if clients do not search; return their entries in the plan."""
        spec = self.context.spec
        if spec.search is None:
            of_rank = {spec.rank_of(client): client for client in clients}
            made = {rank: self._parts(client, exchanged) for rank, client in of_rank.items()}
            parts: Iterable = (made[spec.rank_of(client)] for client in clients)
        else:
            parts = _side_by_side(lambda client: self._parts(client, exchanged), clients)
        return tuple(
            Participant(client=client.id, tier=client.tier, rank=spec.rank_of(client), **part)
            for client, part in zip(clients, parts, strict=True)
        )

    def _parts(self, client: ClusterClient, exchanged: np.ndarray) -> dict[str, str | Blob | None]:
        held, space = self._architecture(client), self.stored.space
        if held is None:
            return {"mask_digest": None, "download": None}
        digest = self.hashes.get(client.id) or mask_hash(space, held)
        shared = self.context.spec.roles(space, held).shared
        blob = self._put_download(client, digest, shared, shared & exchanged) if (shared & exchanged).any() else None
        return {"mask_digest": digest, "download": blob}

    def _put_download(self, client: ClusterClient, digest: str, shared: np.ndarray, positions: np.ndarray) -> Blob:
        spec, store, number = self.context.spec, self.context.store, self.place.number
        budget = self.stored.space.budget(spec.rank_of(client))
        header = AdapterHeader.of_download(spec, client.id, number, budget, digest, self.base.adapter.digest)
        transfer = download(spec, self.stored.vectors, positions, number, client)
        data = dump_transfer(header, shared, transfer)
        if spec.search is None:
            blob = store.put_download_of_rank(self.place, spec.rank_of(client), data)
        else:
            blob = store.put_download(self.place, client.id, data)
        return Blob(key=blob.key, digest=blob.digest)

    def put_exchanged(self, exchanged: np.ndarray) -> Blob:
        """Write the positions that the round exchanges, which the server alone may read."""
        space, count = self.stored.space, int(np.count_nonzero(exchanged))
        header = AdapterHeader.of_server(self.context.spec, space, self.place.number)
        header = replace(header, budget=count, mask_digest=mask_hash(space, exchanged))
        blob = self.context.store.put_exchanged(self.place, dump_mask(header, space, exchanged))
        return Blob(key=blob.key, digest=blob.digest)
