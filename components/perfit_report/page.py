"""The report of a federation, one HTML page that needs nothing else, and the scalar metrics of a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from perfit.space import LoraSpace
from perfit.spec import Federation
from perfit_report import sections
from perfit_report.round_figures import RAW_LOSSES, SMOOTHING
from perfit_report.style import FAINT_LINES, byte_unit

LIMITS = {"open": 30, "first": 20, "most": 1000}
"""A table of more rows than ``open`` shows the ``first`` and folds the rest, ``most`` at most; so do lists of names."""

_REASON_CHARACTERS = 300
_FLOAT32_BYTES = 4


def last_tunings(summaries: Sequence[dict]) -> dict[str, dict]:
    """Return the last record of each client that has delivered, with its ``round``.

    Args:
        summaries: One a committed round, in order.
    """
    return {client: found[max(found)] for client, found in _delivered(summaries).items()}


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
    environment.filters |= {
        "bytes": _bytes,
        "count": "{:,.0f}".format,
        "cut": _cut,
        "percent": _percent,
        "perplexity": _perplexity,
    }
    template = files("perfit_report").joinpath("report.html.j2").read_text(encoding="utf-8")
    clients = _clients(federation, summaries, space)
    traffic = [_traffic(summary, space) for summary in summaries]
    return environment.from_string(template).render(
        federation=federation,
        summaries=summaries,
        metrics=scalar_metrics(summaries[-1]) if summaries else {},
        clients=clients,
        least_improved=sorted((c for c in clients if c["latest"]), key=lambda c: -c["change"]),
        traffic=traffic,
        total={key: sum(row[key] for row in traffic) for key in ("delivered", "up", "down", "dense")},
        failures=_failures(summaries),
        figures=_figures([c["client"] for c in clients], federation, summaries, space, masks, traffic),
        limits=LIMITS | {"bars": sections.BARS, "smoothing": SMOOTHING, "faint": FAINT_LINES, "raw": RAW_LOSSES},
        named=len(clients) <= sections.NAMED_CLIENTS,
        modules=len(space.layers()),
    )


def _figures(
    names: Sequence[str],
    federation: Federation,
    summaries: Sequence[dict],
    space: LoraSpace,
    masks: Mapping[str, np.ndarray],
    traffic: Sequence[dict],
) -> dict[str, Any]:
    found = _delivered(summaries)
    delivered = {name: found.get(name, {}) for name in names}
    # Without a search a client holds the first rows and columns of its rank: there is nothing to see in its mask.
    architectures = masks if federation.method.searches else {}
    return {
        "perplexity": sections.perplexity_section(delivered, [summary["round"] for summary in summaries]),
        "loss": sections.loss_section(delivered),
        "overlap": sections.overlap_section(names, architectures, space),
        "density": sections.density_section(names, architectures, space),
        "bytes": sections.bytes_section(traffic),
    }


def _trained(summary: dict) -> list[dict]:
    return [record for record in summary["clients"] if record["status"] == "trained"]


def _delivered(summaries: Sequence[dict]) -> dict[str, dict[int, dict]]:
    """What each client delivered, by client and round."""
    found: dict[str, dict[int, dict]] = {}
    for summary in summaries:
        for record in _trained(summary):
            found.setdefault(record["client"], {})[summary["round"]] = record | {"round": summary["round"]}
    return found


def _clients(federation: Federation, summaries: Sequence[dict], space: LoraSpace) -> list[dict[str, Any]]:
    """Describe the clients of the federation file, then those that took part and have left it since."""
    known = {c.id: {"client": c.id, "tier": c.tier, "rank": federation.rank_of(c)} for c in federation.clients}
    for summary in summaries:
        for record in summary["clients"]:
            known[record["client"]] = {key: record[key] for key in ("client", "tier", "rank")}
    now = {record["client"]: record for record in summaries[-1]["clients"]} if summaries else {}
    delivered = _delivered(summaries)
    return [
        _client(client, delivered.get(name, {}), now.get(name), space) | {"number": number}
        for number, (name, client) in enumerate(known.items(), 1)
    ]


def _client(client: dict, delivered: Mapping[int, dict], now: dict | None, space: LoraSpace) -> dict[str, Any]:
    latest = delivered[max(delivered)] if delivered else None
    return client | {
        "budget": space.budget(client["rank"]),
        "latest": latest,
        "change": latest["perplexity"]["after"] / latest["perplexity"]["round_0"] - 1 if latest else None,
        "up": sum(record["bytes_up"] for record in delivered.values()),
        "down": sum(record["bytes_down"] for record in delivered.values()),
        "status": now["status"] if now else "not drawn",
        "reason": now["reason"] if now else None,
    }


def _traffic(summary: dict, space: LoraSpace) -> dict[str, int]:
    trained = _trained(summary)
    return {
        "round": summary["round"],
        "delivered": len(trained),
        "up": sum(record["bytes_up"] for record in trained),
        "down": sum(record["bytes_down"] for record in trained),
        "dense": sum(_FLOAT32_BYTES * space.budget(record["rank"]) for record in trained),
    }


def _failures(summaries: Sequence[dict]) -> list[dict[str, Any]]:
    """Group failures by round, the last first, status and reason."""
    groups: dict[tuple, list[str]] = {}
    participants = {summary["round"]: len(summary["clients"]) for summary in summaries}
    for summary in reversed(summaries):
        for record in summary["clients"]:
            if record["status"] != "trained":
                key = (summary["round"], record["status"], _cut(record["reason"] or ""))
                groups.setdefault(key, []).append(record["client"])
    return [
        {"round": number, "status": status, "reason": reason, "clients": names, "of": participants[number]}
        for (number, status, reason), names in groups.items()
    ]


def _perplexity(value: float) -> str:
    return f"{value:,.2f}" if value < 1000 else f"{value:,.0f}"


def _percent(fraction: float) -> str:
    """A signed change, with a true minus."""
    return f"{100 * fraction:+.1f}\u202f%".replace("-", "\u2212")


def _bytes(count: int) -> str:
    size, unit = byte_unit(count)
    return f"{count / size:.{1 if size > 1 and count < 100 * size else 0}f}\u202f{unit}"


def _cut(reason: str) -> str:
    return reason if len(reason) <= _REASON_CHARACTERS else f"{reason[:_REASON_CHARACTERS]}…"
