"""The report of a federation: one HTML page that needs nothing else, and the scalar metrics of a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from perfit.mask_statistics import chance_overlap, densities, jaccard
from perfit.space import LoraSpace
from perfit.spec import Federation

NAMED_CLIENTS = 8
"""Up to here each client has a line and a colour of its own; more are drawn as median and quartiles."""

HEATMAP_CLIENTS = 100
"""Up to here mask overlaps are a heat map, beyond a histogram."""

OVERLAP_CLIENTS = 200
"""Overlaps of more clients are those of this many, evenly spaced in the order of the federation file."""

OPEN_ROWS = 30
"""Longer tables show a part; the rest is folded."""

MOST_ROWS = 1000
"""No table has more rows."""

REASON_CHARACTERS = 300
"""Longer reasons are cut."""

_BYTES_PER_VALUE = 4


def last_tunings(summaries: Sequence[dict]) -> dict[str, dict]:
    """Return the last record of each client that delivered, with its ``round``.

    Args:
        summaries: One a committed round, in order.
    """
    found: dict[str, dict] = {}
    for summary in summaries:
        found |= {record["client"]: record | {"round": summary["round"]} for record in _trained(summary)}
    return found


def scalar_metrics(summary: dict) -> dict[str, float]:
    """Return a round's metrics under flat names.

    Perplexities and the last loss are means over the clients that delivered, absent where nobody did; bytes are their sums.
    """
    trained = _trained(summary)
    metrics = {
        "clients_delivered": len(trained),
        "clients_participating": len(summary["clients"]),
        "bytes_up": sum(record["bytes_up"] for record in trained),
        "bytes_down": sum(record["bytes_down"] for record in trained),
        "positions_held_fraction": summary["positions_held"] / summary["positions"],
    }
    for when in ("round_0", "before", "after"):
        if trained:
            metrics[f"perplexity_{when}_mean"] = np.mean([record["perplexity"][when] for record in trained])
    losses = [record["losses"][-1] for record in trained if record["losses"]]
    if losses:
        metrics["loss_last_mean"] = np.mean(losses)
    return {name: float(value) for name, value in metrics.items()}


def render_report(
    federation: Federation, summaries: Sequence[dict], space: LoraSpace, masks: Mapping[str, np.ndarray]
) -> str:
    """Return the report as one self-contained HTML page; the same input gives the same bytes.

    Args:
        federation: What was run.
        summaries: One a committed round, in order.
        space: The expanded space of N positions.
        masks: Each client's architecture, bool, shape (N,), by client id; read once each, so it may load them lazily.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "perplexity": _perplexity,
        "percent": _percent,
        "bytes": _bytes,
        "short_reason": _short_reason,
    }
    template = environment.from_string(files("perfit").joinpath("report.html.j2").read_text(encoding="utf-8"))
    names = _client_names(federation, summaries, masks)
    rows = [_client_row(name, federation, summaries) for name in names]
    figures = _history_figures(names, summaries) | _mask_figures(names, federation, space, masks)
    traffic = [_traffic(summary, space) for summary in summaries]
    return template.render(
        federation=federation,
        summaries=summaries,
        metrics=scalar_metrics(summaries[-1]) if summaries else None,
        rows=rows,
        shown=_worth_showing(rows),
        improved=_improved(rows),
        traffic=traffic,
        failures=_failures(summaries),
        figures={name: figure | {"svg": Markup(figure["svg"])} for name, figure in figures.items()},
        bytes_figure=Markup(_bytes_figure(traffic)),
        most_rows=MOST_ROWS,
        open_rows=OPEN_ROWS,
        named=len(names) <= NAMED_CLIENTS,
    )
