"""Whether enough clients have an architecture for rounds to make sense."""

from __future__ import annotations

from collections.abc import Sequence

from perfit.errors import PerfitError
from perfit_components.steps.opening import open_federation
from perfit_components.steps.outcome import SEARCHED


def check_search(uri: str, statuses: Sequence[dict[str, str]]) -> None:
    """Print the clients whose search failed.

    Raises:
        PerfitError: Fewer clients than a round's minimum have an architecture.
    """
    spec = open_federation(uri).spec
    failed = [status for status in statuses if status["status"] != SEARCHED]
    listing = "\n".join(f"  {status['client']}: {status['reason']}" for status in failed)
    found, minimum = len(statuses) - len(failed), spec.participation.minimum_clients
    print(f"{found} of {len(statuses)} clients have an architecture\n{listing}", flush=True)
    if found < minimum:
        raise PerfitError(
            f"{found} clients have an architecture, participation.minimum_clients is {minimum}:\n{listing}",
            "repair these clients and run again (who has an architecture does not search again)",
        )
