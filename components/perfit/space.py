"""The expanded LoRA space that all clients of a federation share (PerFIT, arXiv 2402.16919, section 3).

Every position of every LoRA matrix has one index in a flat vector, so that masks, values, scores and running sums are
one-dimensional arrays. The order is that of the model's modules, A before B within a module, each matrix row by row.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from perfit.errors import PerfitError
from perfit.seeds import derive_seed


@dataclass(frozen=True)
class Matrix:
    """One LoRA matrix: A of shape (rank, in features) or B of shape (out features, rank).

    ``name`` is its key in PEFT's adapter file, e.g.
    ``base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight``.
    """

    name: str
    rows: int
    columns: int

    @property
    def is_a(self) -> bool:
        """Whether this is the down-projection A."""
        return self.name.endswith(".lora_A.weight")

    @property
    def layer(self) -> str:
        """The adapted module, e.g. ``model.layers.0.self_attn.q_proj``."""
        return self.name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.rows * self.columns

    @property
    def features(self) -> int:
        """The dimension that is not the rank."""
        return self.columns if self.is_a else self.rows


@dataclass(frozen=True)
class LoraSpace:
    """The positions of a LoRA of rank ``rank`` on every adapted module.

    Args:
        rank: Rank of the expanded LoRA, expansion times the federation's rank.
        matrices: All matrices, A directly before B for each module.
    """

    rank: int
    matrices: tuple[Matrix, ...]

    @cached_property
    def size(self) -> int:
        """Number of positions N."""
        return sum(matrix.size for matrix in self.matrices)

    @cached_property
    def slices(self) -> dict[str, slice]:
        """The part of each matrix in a flat vector of length N, by name."""
        ends = np.cumsum([matrix.size for matrix in self.matrices]).tolist()
        return {m.name: slice(end - m.size, end) for m, end in zip(self.matrices, ends, strict=True)}

    @cached_property
    def a_mask(self) -> np.ndarray:
        """Which positions are in an A matrix: bool, shape (N,). Read-only."""
        mask = np.zeros(self.size, dtype=bool)
        for matrix in self.matrices:
            mask[self.slices[matrix.name]] = matrix.is_a
        mask.setflags(write=False)
        return mask

    def layers(self) -> dict[str, slice]:
        """Return the part of each adapted module, A and B together, by the module's name."""
        layers: dict[str, slice] = {}
        for matrix in self.matrices:
            part = self.slices[matrix.name]
            layers[matrix.layer] = slice(layers.get(matrix.layer, part).start, part.stop)
        return layers

    def counts(self, mask: np.ndarray) -> dict[str, int]:
        """Return how many positions of a mask (bool, shape (N,)) are in each matrix, by name."""
        return {name: np.count_nonzero(mask[part]) for name, part in self.slices.items()}

    def budget(self, rank: int) -> int:
        """Return the number of parameters of a plain LoRA of rank ``rank`` on these modules."""
        return rank * sum(matrix.features for matrix in self.matrices)

    def plain_mask(self, rank: int) -> np.ndarray:
        """Return the bool mask, shape (N,), of a plain LoRA of rank ``rank``: A's first rows, B's first columns."""
        mask = np.zeros(self.size, dtype=bool)
        for matrix in self.matrices:
            block = mask[self.slices[matrix.name]].reshape(matrix.rows, matrix.columns)
            block[(slice(rank),) if matrix.is_a else (slice(None), slice(rank))] = True
        return mask

    def initial_values(self, seed: int) -> np.ndarray:
        """Return the values that all clients start from, float32, shape (N,).

        B is zero and A uniform in +-1/sqrt(in features), as PEFT initialises LoRA (Kaiming with a = sqrt(5)). Row i
        of A is the same whatever the rank, so that a federation of another expansion starts from the same values.
        """
        values = np.zeros(self.size, dtype=np.float32)
        for matrix in self.matrices:
            if matrix.is_a:
                draw = np.random.default_rng(derive_seed(seed, "initial", matrix.name)).random(
                    matrix.size, dtype=np.float32
                )
                values[self.slices[matrix.name]] = (2 * draw - 1) / np.float32(np.sqrt(matrix.columns))
        return values

    def split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Return views of a flat vector of length N as matrices, by name."""
        return {m.name: flat[self.slices[m.name]].reshape(m.rows, m.columns) for m in self.matrices}

    @cached_property
    def text(self) -> str:
        """Names and shapes as JSON, which the hash of a mask begins with."""
        return json.dumps(self.to_list())

    def to_list(self) -> list[list]:
        """Return ``[[name, rows, columns], ...]``, as kept in adapter files."""
        return [[matrix.name, matrix.rows, matrix.columns] for matrix in self.matrices]

    @classmethod
    def from_shapes(cls, shapes: Mapping[str, tuple[int, int]] | Iterable[list]) -> LoraSpace:
        """Build the space from names and shapes in order.

        Raises:
            PerfitError: There is no matrix, or the matrices are not pairs of one rank.
        """
        rows = [(n, *s) for n, s in shapes.items()] if isinstance(shapes, Mapping) else shapes
        matrices = tuple(Matrix(str(name), int(r), int(c)) for name, r, c in rows)
        pairs = list(zip(matrices[::2], matrices[1::2], strict=False))
        ranks = {m.rows if m.is_a else m.columns for m in matrices}
        paired = all(a.is_a and not b.is_a and a.layer == b.layer for a, b in pairs)
        if not matrices or len(matrices) % 2 or len(ranks) != 1 or not paired:
            raise PerfitError(
                f"the {len(matrices)} LoRA matrices are not A, B pairs of one rank (ranks {sorted(ranks)})",
                "adapt linear modules alone, all with the same LoRA rank",
            )
        return cls(ranks.pop(), matrices)
