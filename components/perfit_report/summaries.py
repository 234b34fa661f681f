"""What the summaries of a federation's rounds say: who delivered what, and the scalar metrics of a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from perfit.protocol import RoundSummary, UpdateRecord


@dataclass(frozen=True)
class Move:
    """How far a round moved the global values, and which update moved furthest from them.

    Args:
        round: From 1.
        change: Root mean square of the change of the global values.
        growth: That over the same of the round before; None if there is none.
        client: Whose update moved furthest.
        furthest: Root mean square of that update's change, before limits.
        times_median: That over the median of the round's updates; None if the median is 0.
    """

    round: int
    change: float
    growth: float | None
    client: str
    furthest: float
    times_median: float | None

    def __str__(self) -> str:
        growth = "" if self.growth is None else f", {self.growth:.3g} times the round before"
        times = "" if self.times_median is None else f", {self.times_median:.3g} times the median update"
        return (
            f"the global values moved by {self.change:.3g} (root mean square{growth}), "
            f"the update of {self.client} by {self.furthest:.3g}{times}"
        )


@dataclass(frozen=True)
class RoundTimes:
    """When a round's plan and its summary were written, in seconds since 1970 by the store's clock.

    No record holds a time, so that a step that runs twice writes the same bytes.
    """

    planned: float
    committed: float

    @property
    def seconds(self) -> float:
        """From the plan to the commit, pauses between runs included; 0 if the clock went back."""
        return max(0.0, self.committed - self.planned)


def moves(summaries: Sequence[RoundSummary]) -> list[Move]:
    """Return how far each round moved, but for those in which nobody shared anything.

    Args:
        summaries: One per committed round, in order.
    """
    rows, before = [], 0.0
    for summary in summaries:
        if summary.changes:
            client = max(summary.changes, key=summary.changes.__getitem__)
            furthest, median = summary.changes[client], float(np.median([*summary.changes.values()]))
            growth = summary.change / before if before else None
            times = furthest / median if median else None
            rows.append(Move(summary.round, summary.change, growth, client, furthest, times))
        before = summary.change
    return rows


def records_by_client(summaries: Sequence[RoundSummary]) -> dict[str, dict[int, UpdateRecord]]:
    """Return the records of each client that has delivered, by round.

    Args:
        summaries: One per committed round, in order.
    """
    records: dict[str, dict[int, UpdateRecord]] = {}
    for summary in summaries:
        for record in summary.trained:
            records.setdefault(record.client, {})[summary.round] = record
    return records


def last_records(summaries: Sequence[RoundSummary]) -> dict[str, UpdateRecord]:
    """Return the last record of each client that has delivered, by client.

    Args:
        summaries: One per committed round, in order.
    """
    return {client: records[max(records)] for client, records in records_by_client(summaries).items()}


def client_metrics(record: UpdateRecord) -> dict[str, float]:
    """Return the metrics of a client's round under flat names.

    The perplexities are of the base model (round 0), of what the client started from (before) and of its personal
    adapter (after), the loss a mean over the round's steps. Weights are absent if the method chooses none.
    """
    weights = {name: getattr(record, name) for name in ("own_weight", "tuned_weight")}
    counts = ("samples", "held_out_records", "skipped_records", "truncated_records", "budget", "shared")
    metrics = {
        **{f"perplexity_{when}": getattr(record.perplexity, when) for when in ("round_0", "before", "after")},
        "loss_mean": np.mean(record.losses),
        "loss_last": record.losses[-1],
        **{name: getattr(record, name) for name in ("bytes_up", "bytes_down", *counts)},
        **{name: weight for name, weight in weights.items() if weight is not None},
    }
    return {name: float(value) for name, value in metrics.items()}


def scalar_metrics(summary: RoundSummary) -> dict[str, float]:
    """Return a round's metrics under flat names.

    Perplexities and the last loss are means over the clients that delivered, weights over those that chose one; each
    is absent if there are none. Bytes are sums.
    """
    trained = summary.trained
    metrics = {
        "round": summary.round,
        "clients_delivered": len(trained),
        "clients_participating": len(summary.clients),
        "bytes_up": sum(record.bytes_up for record in trained),
        "bytes_down": sum(record.bytes_down for record in trained),
        "positions_held_fraction": summary.positions_held / summary.positions,
        "positions_shared_fraction": summary.positions_shared / summary.positions,
    }
    if trained:
        for when in ("round_0", "before", "after"):
            metrics[f"perplexity_{when}_mean"] = np.mean([getattr(record.perplexity, when) for record in trained])
        for name in ("own_weight", "tuned_weight"):
            if weights := [w for record in trained if (w := getattr(record, name)) is not None]:
                metrics[f"{name}_mean"] = np.mean(weights)
        metrics["loss_last_mean"] = np.mean([record.losses[-1] for record in trained])
    return {name: float(value) for name, value in metrics.items()}
