"""The report of a federation up to a round, and the round's scalar metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from perfit.adapter_file import load_header, load_mask
from perfit.errors import PerfitError
from perfit.report import last_tunings, render_report, scalar_metrics
from perfit_components.steps.opening import OpenFederation, open_federation
from perfit_storage import FederationStore


@dataclass(frozen=True)
class RoundReport:
    """A page of HTML, and numbers by name."""

    html: str
    metrics: dict[str, float]


def report(uri: str, round: int) -> RoundReport:
    """Draw the report of all rounds up to ``round`` and keep it in the store.

    Raises:
        StoreError: The store cannot be reached or written.
        PerfitError: No round is committed.
    """
    opened = open_federation(uri)
    drawn = draw_report(opened, round)
    opened.store.put_report(round, drawn.html.encode())
    return drawn


def draw_report(opened: OpenFederation, last: int) -> RoundReport:
    """Draw the report of all rounds up to ``last``.

    Raises:
        StoreError: The store cannot be reached.
        PerfitError: No round is committed.
    """
    summaries = [summary for summary in opened.store.summaries() if summary["round"] <= last]
    if not summaries:
        raise PerfitError(f"federation {opened.spec.name!r} has no committed round yet", "run a round first")
    _, space = load_header(opened.store.read_global(opened.store.read_head()))
    hashes = {client: record["mask_sha256"] for client, record in last_tunings(summaries).items()}
    masks = _StoredMasks(opened.store, hashes)
    return RoundReport(render_report(opened.spec, summaries, space, masks), scalar_metrics(summaries[-1]))


class _StoredMasks(Mapping[str, np.ndarray]):
    """Clients' masks, read from the store one at a time: memory does not grow with the federation."""

    def __init__(self, store: FederationStore, hashes: Mapping[str, str]):
        self._store, self._hashes = store, hashes

    def __getitem__(self, client: str) -> np.ndarray:
        return load_mask(self._store.get_mask(client, self._hashes[client]))[2]

    def __iter__(self) -> Iterator[str]:
        return iter(self._hashes)

    def __len__(self) -> int:
        return len(self._hashes)
