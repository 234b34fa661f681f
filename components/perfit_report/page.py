"""The report of a federation as one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from perfit.protocol import RoundSummary
from perfit.space import LoraSpace
from perfit.spec import FederationSpec
from perfit_report import sections, tables
from perfit_report.round_figures import RAW_LOSSES, SMOOTHING
from perfit_report.settings import settings, versions
from perfit_report.style import FAINT_LINES
from perfit_report.summaries import RoundTimes, moves, records_by_client, scalar_metrics
from perfit_report.templates import template

LIMITS = {"open": 30, "first": 20, "most": 1000}
"""A table of more than ``open`` rows shows the ``first`` ones and folds away the rest, up to ``most``; a long list of
names ends after the ``first`` ones."""


def render_report(
    spec: FederationSpec,
    summaries: Sequence[RoundSummary],
    space: LoraSpace,
    masks: Mapping[str, np.ndarray],
    times: Sequence[RoundTimes] = (),
) -> str:
    """Return the report as one self-contained HTML page; the same input gives the same bytes.

    Args:
        spec: What was run.
        summaries: One per committed round, in order.
        space: The expanded space of N positions.
        masks: Each client's architecture by its id, bool, shape (N,); read one at a time, and only if clients search.
        times: Of each round; none on the page that a round leaves in the store, which has the same bytes each time that
            it is drawn.
    """
    clients = tables.client_rows(spec, summaries, space)
    traffic = tables.traffic(summaries, space)
    return template("report.html.j2").render(
        spec=spec,
        settings=settings(spec),
        versions=versions(),
        times=list(zip(summaries, times, strict=False))[::-1],
        summaries=summaries,
        metrics=scalar_metrics(summaries[-1]) if summaries else {},
        clients=clients,
        least_improved=sorted((row for row in clients if row.latest), key=lambda row: -row.change),
        has_parts=any(row.has_parts for row in clients),
        is_shared=any(record.shared for summary in summaries for record in summary.trained),
        traffic=traffic,
        total=tables.total(traffic),
        failures=tables.failures(summaries),
        moves=moves(summaries)[::-1],
        limited=[(summary.round, row) for summary in reversed(summaries) for row in summary.limited],
        figures=_figures([row.client for row in clients], spec, summaries, space, masks, traffic),
        limits=LIMITS | {"bars": sections.BARS, "smoothing": SMOOTHING, "faint": FAINT_LINES, "raw": RAW_LOSSES},
        named=len(clients) <= sections.NAMED_CLIENTS,
        modules=len(space.layers()),
        not_sampled=tables.NOT_SAMPLED,
    )


def _figures(
    names: Sequence[str],
    spec: FederationSpec,
    summaries: Sequence[RoundSummary],
    space: LoraSpace,
    masks: Mapping[str, np.ndarray],
    traffic: Sequence[tables.Traffic],
) -> dict[str, Any]:
    delivered = records_by_client(summaries)
    records = {name: delivered.get(name, {}) for name in names}
    # Without a search a client holds the first rows and columns of its rank: its mask has nothing to show.
    architectures = {} if spec.search is None else masks
    return {
        "perplexity": sections.perplexity_section(records, [summary.round for summary in summaries]),
        "loss": sections.loss_section(records),
        "overlap": sections.overlap_section(names, architectures, space),
        "density": sections.density_section(names, architectures, space),
        "bytes": sections.bytes_section(traffic),
    }
