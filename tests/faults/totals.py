"""What the trials of a session did, and what must never have happened."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Collection

EFFORT = int(os.environ.get("PERFIT_FAULTS_EFFORT", "1"))
"""How many times as many random trials as in CI; above 1, steps are killed at every operation of the store."""
SEED = int(os.environ.get("PERFIT_FAULTS_SEED", "0"))

_ROWS = (
    "trials",
    "faults injected",
    "rounds committed",
    "reads checked",
    "hostile objects",
    "refused",
    "accepted as they follow the plan",
    "peak memory of an honest round, MiB",
    "peak memory of a hostile round, MiB",
    "updates lost",
    "torn reads",
    "differing objects",
    "wrongly accepted",
    "aggregator failures",
)


class Totals:
    """Counters of a session, by row."""

    def __init__(self):
        self._counts, self._lock = Counter(dict.fromkeys(_ROWS, 0)), threading.Lock()

    def count(self, row: str, number: int = 1) -> None:
        with self._lock:
            self._counts[row] += number

    def never(self, row: str, found: Collection) -> None:
        """Count what must not happen, and fail if it did."""
        self.count(row, len(found))
        assert not found, f"{row}: {found}"

    def largest(self, row: str, number: int) -> None:
        with self._lock:
            self._counts[row] = max(self._counts[row], number)

    def lines(self) -> list[str]:
        return [f"{row:<40}{self._counts[row]:>12,}" for row in _ROWS]

    def __bool__(self) -> bool:
        return any(self._counts.values())


TOTALS = Totals()
