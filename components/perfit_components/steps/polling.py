"""How often what others write to the store is looked for: less often while nothing changes, and never in step."""

from __future__ import annotations

import random
from dataclasses import dataclass


@dataclass
class Pace:
    """Pauses between two looks, each shortened by up to a half by chance.

    Args:
        first: Seconds after a change.
        longest: Seconds after a long time without one.
        growth: Factor from one pause to the next.
    """

    first: float = 1.0
    longest: float = 30.0
    growth: float = 1.5

    def __post_init__(self):
        self._next = self.first

    def changed(self) -> None:
        """Begin with the first pause again."""
        self._next = self.first

    def pause(self) -> float:
        """Return the seconds until the next look."""
        pause, self._next = self._next, min(self._next * self.growth, self.longest)
        return min(pause, self.longest) * random.uniform(0.5, 1)
