"""What the summaries of a federation's rounds say: who delivered what, and the scalar metrics of a round."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from perfit.protocol import RoundSummary, UpdateRecord


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


def scalar_metrics(summary: RoundSummary) -> dict[str, float]:
    """Return a round's metrics under flat names.

    Perplexities and the last loss are means over the clients that delivered, absent if nobody did; bytes are sums.
    """
    trained = summary.trained
    metrics = {
        "clients_delivered": len(trained),
        "clients_participating": len(summary.clients),
        "bytes_up": sum(record.bytes_up for record in trained),
        "bytes_down": sum(record.bytes_down for record in trained),
        "positions_held_fraction": summary.positions_held / summary.positions,
    }
    if trained:
        for when in ("round_0", "before", "after"):
            metrics[f"perplexity_{when}_mean"] = np.mean([getattr(record.perplexity, when) for record in trained])
        metrics["loss_last_mean"] = np.mean([record.losses[-1] for record in trained])
    return {name: float(value) for name, value in metrics.items()}
