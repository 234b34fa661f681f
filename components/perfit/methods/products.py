"""The products BA of a round's updates, module by module and as thin factors, for rules that do not average A and B."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from perfit.aggregation import Cohort
from perfit.methods.method import VALUES
from perfit.space import LoraSpace


@dataclass(frozen=True)
class Module:
    """An adapted module's part of the space.

    Args:
        part: Its positions.
        rank: The expanded rank.
        rows: Out features.
        columns: In features.
    """

    part: slice
    rank: int
    rows: int
    columns: int

    def factors(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return views of the module's part of a flat vector: B, shape (rows, rank), and A, shape (rank, columns)."""
        a, b = np.split(flat, [self.rank * self.columns])
        return b.reshape(self.rows, self.rank), a.reshape(self.rank, self.columns)


def modules(space: LoraSpace) -> Iterator[Module]:
    """Yield the adapted modules in the order of the space."""
    for part, a, b in zip(space.layers().values(), space.matrices[::2], space.matrices[1::2], strict=True):
        yield Module(part, space.rank, b.rows, a.columns)


def shared_factors(cohort: Cohort, module: Module) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    """Yield each client's factors in a module, as far as enough clients share them, in the order of the clients' ids.

    Only for plain LoRAs: a client of rank r has the first r ranks.

    Yields:
        B, float64 of shape (rows, r), A, float64 of shape (r, columns), and the client's weight.
    """
    shared = cohort.shared[module.part]
    for positions, values, weight in cohort.parts(VALUES, module.part):
        flat = np.zeros(shared.size)
        flat[positions] = values
        b, a = module.factors(np.where(shared, flat, 0))
        rank = np.count_nonzero(shared[positions]) // (module.rows + module.columns)
        yield b[:, :rank], a[:rank], weight
