"""The processes of one client's training: several divide each batch among them, one does it alone.

Who starts several has set up torch.distributed, with gloo for what is on the CPU; where it is not set up there is one
process, and nothing here does anything.
"""

from __future__ import annotations

import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from perfit.errors import PerfitError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class ProcessLost(PerfitError):
    """Another of the processes has gone, so that this one cannot go on."""


@contextmanager
def lost_are_named() -> Iterator[None]:
    """Within the context, what the libraries raise when another process has gone is a :class:`ProcessLost`."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, _distributed().DistError) or "gloo" in str(error):
            raise ProcessLost(
                "another process of the client has gone without a word: it was killed, or its node was lost",
                "see how the pods of its job ended; if memory was short, give the client's tier more",
            ) from error
        raise


def count() -> int:
    """Return how many processes train together."""
    return _distributed().get_world_size() if _are_several() else 1


def index() -> int:
    """Return the number of this process among them, from 0."""
    return _distributed().get_rank() if _are_several() else 0


def of_first(make: Callable[[], T]) -> T:
    """Return in every process what ``make`` returns in the first; it is not called in the others."""
    if not _are_several():
        return make()
    held = [make() if index() == 0 else None]
    _distributed().broadcast_object_list(held, src=0)
    return held[0]


def total(values: torch.Tensor) -> torch.Tensor:
    """Return the sum over the processes of a tensor on the CPU, which is changed."""
    if _are_several():
        _distributed().all_reduce(values)
    return values


def check_alike(what: str, values: np.ndarray) -> None:
    """Check that all processes have the same array.

    Raises:
        PerfitError: They have not; in all of them.
    """
    if not _are_several():
        return
    digests = [None] * count()
    _distributed().all_gather_object(digests, hashlib.sha256(np.ascontiguousarray(values)).hexdigest())
    if len(set(digests)) > 1:
        raise PerfitError(
            f"the {len(digests)} processes of the client have come to {len(set(digests))} different {what}",
            "train on nodes of one kind; if they are, train in one process (tiers.<name>.nodes: 1) and report it",
        )


def share_of(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """Return the batch size and the number of batches a step with which each process trains its share of a step.

    A step has ``batch_size * accumulation`` examples, a multiple of ``processes``. A process holds at most
    ``batch_size`` of them at once.

    >>> share_of(8, 1, 2), share_of(2, 8, 4), share_of(4, 3, 2)
    ((4, 1), (2, 2), (3, 2))
    """
    examples = batch_size * accumulation // processes
    size = max(size for size in range(1, min(batch_size, examples) + 1) if examples % size == 0)
    return size, examples // size


class Shares:
    """A batch sampler: of each step's examples, in the order of a sampler, those of one process in batches.

    All processes have the same number of batches, of which the last of a pass over the examples may be empty.

    Args:
        order: The indices of all examples, in another order each time.
        size: Number of examples in a batch.
        batches: Number of batches in a step.
        process: Of which process, from 0.
        processes: How many there are.
    """

    def __init__(self, order: Sequence[int], size: int, batches: int, process: int, processes: int):
        self._order, self._size, self._batches = order, size, batches
        self._process, self._processes = process, processes

    def __len__(self) -> int:
        steps, rest = divmod(len(self._order), self._size * self._batches * self._processes)
        return steps * self._batches + math.ceil(rest / self._processes / self._size)

    def __iter__(self) -> Iterator[list[int]]:
        order, whole = list(self._order), self._size * self._batches * self._processes
        for start in range(0, len(order), whole):
            step = order[start : start + whole]
            share = step[self._process :: self._processes]
            for at in range(0, math.ceil(len(step) / self._processes), self._size):
                yield share[at : at + self._size]


def _are_several() -> bool:
    # Without torch there is nothing to ask, and planning must not import it.
    return "torch" in sys.modules and _distributed().is_available() and _distributed().is_initialized()


def _distributed():
    import torch.distributed

    return torch.distributed
