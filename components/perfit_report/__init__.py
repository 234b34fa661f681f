"""The HTML report of a federation, round by round: perplexity, losses, masks and bytes; and a round's scalar metrics.

Reports are drawn from the typed messages of :mod:`perfit.protocol` alone. What depends on the method is asked of its
roles and of the clients' records, never of its name.
"""

from perfit_report.page import render_report
from perfit_report.settings import settings, versions
from perfit_report.summaries import Move, RoundTimes, client_metrics, last_records, moves, scalar_metrics

__all__ = [
    "Move",
    "RoundTimes",
    "client_metrics",
    "last_records",
    "moves",
    "render_report",
    "scalar_metrics",
    "settings",
    "versions",
]
