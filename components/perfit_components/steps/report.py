"""The report of a federation up to a round, and the round's scalar metrics."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from perfit.adapter_file import load_header, load_mask
from perfit.errors import PerfitError
from perfit.report import last_tunings, render_report, scalar_metrics
from perfit.space import LoraSpace
from perfit_components.steps.opening import OpenFederation, open_federation

_MASKS_DRAWN = 100


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

    Masks are drawn for the first 100 clients, so that memory does not grow with the federation.

    Raises:
        StoreError: The store cannot be reached.
        PerfitError: No round is committed.
    """
    summaries = [summary for summary in opened.store.summaries() if summary["round"] <= last]
    if not summaries:
        raise PerfitError(f"federation {opened.spec.name!r} has no committed round yet", "run a round first")
    space, masks = _masks(opened, summaries)
    return RoundReport(render_report(opened.spec, summaries, space, masks), scalar_metrics(summaries[-1]))


def _masks(opened: OpenFederation, summaries: list[dict]) -> tuple[LoraSpace, dict[str, np.ndarray]]:
    _, space = load_header(opened.store.read_global(opened.store.read_head()))
    tunings = list(last_tunings(summaries).items())[:_MASKS_DRAWN]
    return space, {
        client: load_mask(opened.store.get_mask(client, record["mask_sha256"]))[2] for client, record in tunings
    }
