"""A client's failure as a record, not an exit code: a failing pod would stop the other clients and the round."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from perfit.errors import PerfitError, TrainingDiverged
from perfit.protocol import cut

T = TypeVar("T")

_OUT_OF_MEMORY = (
    "out of memory\n  fix: lower training.batch_size (and raise gradient_accumulation) or training.sequence_length, "
    "set training.gradient_checkpointing, or give the client's tier more memory"
)


@dataclass(frozen=True)
class Failure:
    """Why an action has no result."""

    reason: str


def failure_as_record(action: Callable[[], T]) -> T | Failure:
    """Return what the action returns, or why it failed.

    A reason quotes only perfit's own messages. Any other exception's text may contain records and stays in the pod's
    log.
    """
    try:
        return action()
    except PerfitError as error:
        return Failure(cut(str(error)))
    except MemoryError:
        return Failure(_OUT_OF_MEMORY)
    except Exception as error:
        traceback.print_exc()
        # torch: OutOfMemoryError on an accelerator, a plain RuntimeError of its allocator on the CPU.
        out_of_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        return Failure(_OUT_OF_MEMORY if out_of_memory else cut(_reason(error)))


def _reason(error: Exception) -> str:
    if isinstance(error, TrainingDiverged):
        return f"{error}\n  fix: lower training.learning_rate, and look at the client's records"
    return f"{type(error).__name__}, see the log of this client's pod"
