"""The report of a federation up to a round, and the round's scalar metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from perfit.adapter_file import AdapterFile
from perfit.errors import PerfitError
from perfit_components.steps.context import FederationContext, base_of
from perfit_report import Move, last_records, moves, render_report, scalar_metrics
from perfit_storage import FederationStore


@dataclass(frozen=True)
class RoundReport:
    """A page of HTML, numbers by name, and how far the last of its rounds moved; None if nobody shared anything."""

    html: str
    metrics: dict[str, float]
    move: Move | None


def draw_report(context: FederationContext, last: int) -> RoundReport:
    """Draw the report of all rounds up to ``last``.

    Raises:
        PerfitError: No round is committed, or the store cannot be reached.
    """
    summaries = context.summaries(last)
    if not summaries:
        raise PerfitError(f"federation {context.spec.name!r} has no committed round yet", "run a round first")
    space = context.downloads(base_of(context.store.read_head())).space
    hashes = {client: record.mask_sha256 for client, record in last_records(summaries).items()}
    masks = _StoredMasks(context.store, hashes)
    html = render_report(context.spec, summaries, space, masks)
    move = {move.round: move for move in moves(summaries)}.get(summaries[-1].round)
    return RoundReport(html, scalar_metrics(summaries[-1]), move)


class _StoredMasks(Mapping[str, np.ndarray]):
    """Clients' masks, read from the store one at a time: memory does not grow with the federation."""

    def __init__(self, store: FederationStore, hashes: Mapping[str, str]):
        self._store, self._hashes = store, hashes

    def __getitem__(self, client: str) -> np.ndarray:
        return AdapterFile.parse(self._store.get_mask(client, self._hashes[client])).mask

    def __iter__(self) -> Iterator[str]:
        return iter(self._hashes)

    def __len__(self) -> int:
        return len(self._hashes)
