"""The report of a federation up to a round, and the round's scalar metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from perfit.errors import PerfitError
from perfit.protocol import RoundSummary
from perfit.space import LoraSpace
from perfit_components.steps.context import FederationContext, base_of, place_of
from perfit_components.steps.contribution import read_mask
from perfit_report import Move, RoundTimes, last_records, moves, render_report, scalar_metrics
from perfit_storage import Blob


@dataclass(frozen=True)
class RoundReport:
    """A page of HTML, numbers by name, and how far the last of its rounds moved; None if nobody shared anything."""

    html: str
    metrics: dict[str, float]
    move: Move | None


def draw_report(
    context: FederationContext, summaries: Sequence[RoundSummary], times: Sequence[RoundTimes] = ()
) -> RoundReport:
    """Draw the report of the first rounds.

    Args:
        context: The federation.
        summaries: Of these rounds, in order.
        times: When each was planned and committed, which is no part of a record; none on the page in the store.

    Raises:
        PerfitError: There are none, or the store cannot be reached.
    """
    if not summaries:
        raise PerfitError(f"federation {context.spec.name!r} has no committed round yet", "run a round first")
    space = context.downloads(base_of(context.store.read_head())).space
    with TemporaryDirectory() as directory:
        masks = _Masks(Path(directory), space)
        for client, record in (last_records(summaries) if context.spec.search else {}).items():
            mask = read_mask(context.store, client, record.mask_digest, space)
            if mask is not None:
                masks.add(client, mask)
        html = render_report(context.spec, summaries, space, masks, times)
    return RoundReport(html, scalar_metrics(summaries[-1]), moves(summaries)[-1] if summaries[-1].changes else None)


def round_times(context: FederationContext, summaries: Sequence[RoundSummary]) -> list[RoundTimes]:
    """Ask the store when committed rounds were planned and committed.

    Args:
        context: The federation.
        summaries: Of its rounds from the first on, in order.

    Raises:
        PerfitError: The store cannot be reached, or something of the rounds is lost.
    """
    times = []
    after = context.base_after(summaries[-1].round) if summaries else None
    for summary in reversed(summaries):
        blob = Blob(after.summary.key, after.summary.digest)
        times.append(RoundTimes(*context.store.round_times(place_of(summary), blob)))
        after = summary.base
    return times[::-1]


def report_unfinished(round: int, served: int, participants: int) -> RoundReport:
    """Say how far a round is that takes several runs."""
    text = f"Round {round}: {served} of {participants} participants have been served. The next run serves others."
    return RoundReport(f"<!doctype html><title>Round {round}</title><p>{text}</p>\n", {}, None)


class _Masks(Mapping[str, np.ndarray]):
    """Clients' masks, in files: memory does not grow with the federation, and no client can change them any more."""

    def __init__(self, directory: Path, space: LoraSpace):
        self._directory, self._size, self._files = directory, space.size, {}

    def add(self, client: str, mask: np.ndarray) -> None:
        self._files[client] = self._directory / client
        np.packbits(mask).tofile(self._files[client])

    def __getitem__(self, client: str) -> np.ndarray:
        return np.unpackbits(np.fromfile(self._files[client], np.uint8), count=self._size).view(bool)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
