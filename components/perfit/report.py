"""The report of a federation, one HTML page that needs nothing else, and the scalar metrics of a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import combinations_with_replacement
from typing import Any

import numpy as np

from perfit.mask_statistics import chance_overlap, densities, jaccard
from perfit.space import LoraSpace
from perfit.spec import Client, Federation

NAMED_CLIENTS = 8
"""Up to here each client has a line of its own in the figures; more are drawn as median and quartiles."""

HEATMAP_CLIENTS = 100
"""Up to here mask overlaps are a heat map, beyond a histogram."""

OVERLAP_CLIENTS = 200
"""The histogram is over at most this many clients, evenly spaced in the order of the federation file."""

OPEN_ROWS, FIRST_ROWS, MOST_ROWS = 30, 20, 1000
"""Tables of more rows than the first are folded below a part of as many as the second; none has more than the third."""

_BARS = 40
_REASON_CHARACTERS = 300
_RANKS_TOLD_APART = 3
_FLOAT32_BYTES = 4


def last_tunings(summaries: Sequence[dict]) -> dict[str, dict]:
    """Return the last record of each client that has delivered, with its ``round``.

    Args:
        summaries: One a committed round, in order.
    """
    return {
        record["client"]: record | {"round": summary["round"]}
        for summary in summaries
        for record in _trained(summary)
    }


def scalar_metrics(summary: dict) -> dict[str, float]:
    """Return a round's metrics under flat names.

    Perplexities and the last loss are means over the clients that delivered, absent where nobody did; bytes are sums.
    """
    trained = _trained(summary)
    metrics = {
        "clients_delivered": len(trained),
        "clients_participating": len(summary["clients"]),
        "bytes_up": sum(record["bytes_up"] for record in trained),
        "bytes_down": sum(record["bytes_down"] for record in trained),
        "positions_held_fraction": summary["positions_held"] / summary["positions"],
    }
    if trained:
        for when in ("round_0", "before", "after"):
            metrics[f"perplexity_{when}_mean"] = np.mean([record["perplexity"][when] for record in trained])
        metrics["loss_last_mean"] = np.mean([record["losses"][-1] for record in trained])
    return {name: float(value) for name, value in metrics.items()}


def render_report(
    federation: Federation, summaries: Sequence[dict], space: LoraSpace, masks: Mapping[str, np.ndarray]
) -> str:
    """Return the report as one self-contained HTML page; the same input gives the same bytes.

    Args:
        federation: What was run.
        summaries: One a committed round, in order.
        space: The expanded space of N positions.
        masks: Each client's architecture by its id, bool, shape (N,); used one at a time.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"perplexity": _perplexity, "percent": _percent, "bytes": _bytes}
    template = files("perfit").joinpath("report.html.j2").read_text(encoding="utf-8")
    rows = _client_rows(federation, summaries, space)
    names = [row["client"] for row in rows]
    traffic = [_traffic(summary, space) for summary in summaries]
    failures = list(_failures(summaries))
    return environment.from_string(template).render(
        federation=federation,
        space=space,
        summaries=summaries,
        metrics=scalar_metrics(summaries[-1]) if summaries else None,
        rows=rows,
        named=len(rows) <= NAMED_CLIENTS,
        traffic=traffic,
        failures=failures,
        failure_counts=_count_failures(summaries),
        history=_history_figures(names, summaries),
        overlap=_overlap(names, federation, space, masks),
        density=_density(names, federation, space, masks),
        bytes_figure=_bytes_figure(traffic),
        open_rows=OPEN_ROWS,
        first_rows=FIRST_ROWS,
        most_rows=MOST_ROWS,
        bars=_BARS,
    )


# --- tables


def _trained(summary: dict) -> list[dict]:
    return [record for record in summary["clients"] if record["status"] == "trained"]


def _client_rows(federation: Federation, summaries: Sequence[dict], space: LoraSpace) -> list[dict[str, Any]]:
    """Describe each client of the federation file, then those that took part and have since left it."""
    records: dict[str, list[dict]] = {client.id: [] for client in federation.clients}
    for summary in summaries:
        for record in summary["clients"]:
            records.setdefault(record["client"], []).append(record | {"round": summary["round"]})
    last_round = summaries[-1]["round"] if summaries else 0
    known = {client.id: client for client in federation.clients}
    return [
        _client_row(name, known.get(name), found, federation, space, last_round) for name, found in records.items()
    ]


def _client_row(
    name: str, client: Client | None, records: list[dict], federation: Federation, space: LoraSpace, last_round: int
) -> dict[str, Any]:
    trained = [record for record in records if record["status"] == "trained"]
    latest = trained[-1] if trained else None
    if records:
        tier, rank = records[-1]["tier"], records[-1]["rank"]
    else:
        tier, rank = client.tier, federation.rank_of(client)
    current = records[-1] if records and records[-1]["round"] == last_round else None
    return {
        "client": name,
        "tier": tier,
        "rank": rank,
        "budget": space.budget(rank),
        "latest": latest,
        "change": latest["perplexity"]["after"] / latest["perplexity"]["round_0"] - 1 if latest else None,
        "bytes_up": sum(record["bytes_up"] for record in trained),
        "bytes_down": sum(record["bytes_down"] for record in trained),
        "status": current["status"] if current else "not drawn",
        "reason": _cut(current["reason"]) if current else None,
    }


def _traffic(summary: dict, space: LoraSpace) -> dict[str, Any]:
    trained = _trained(summary)
    return {
        "round": summary["round"],
        "delivered": len(trained),
        "up": sum(record["bytes_up"] for record in trained),
        "down": sum(record["bytes_down"] for record in trained),
        "dense": sum(_FLOAT32_BYTES * space.budget(record["rank"]) for record in trained),
    }


def _failures(summaries: Sequence[dict]) -> Iterator[dict]:
    for summary in reversed(summaries):
        for record in summary["clients"]:
            if record["status"] != "trained":
                yield record | {"round": summary["round"], "reason": _cut(record["reason"])}


def _count_failures(summaries: Sequence[dict]) -> list[tuple[int, dict[str, int]]]:
    counts = [(s["round"], Counter(r["status"] for r in s["clients"] if r["status"] != "trained")) for s in summaries]
    return [(number, dict(sorted(count.items()))) for number, count in counts if count]
