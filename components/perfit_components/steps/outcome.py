"""A client's failure as a record, not as an exit code: one failing pod would stop its siblings and the round."""

from __future__ import annotations

import traceback
from collections.abc import Callable

from perfit.errors import PerfitError, TrainingDiverged
from perfit_components.log_lines import format_failure
from perfit_storage import StoreError

TRAINED, SEARCHED, FAILED = "trained", "searched", "failed"


def softly(client_id: str, action: Callable[[], dict]) -> dict:
    """Return what the action returns, or a record of status ``failed`` with the reason.

    A reason quotes our own messages alone. The text of any other exception stays in the pod's log: it may hold records.
    """
    try:
        return action()
    except (PerfitError, StoreError) as error:
        reason = str(error)
    except MemoryError:
        reason = _OUT_OF_MEMORY
    except Exception as error:
        # torch: OutOfMemoryError on an accelerator, a plain RuntimeError of its allocator on the CPU.
        out_of_memory = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
        reason = _OUT_OF_MEMORY if out_of_memory else _reason(error)
        traceback.print_exc()
    print(format_failure(client_id, reason), flush=True)
    return {"client": client_id, "status": FAILED, "reason": reason}


_OUT_OF_MEMORY = (
    "out of memory\n  fix: lower training.batch_size (and raise gradient_accumulation) or training.sequence_length, "
    "set training.gradient_checkpointing, or give the client's tier more memory"
)


def _reason(error: Exception) -> str:
    if isinstance(error, TrainingDiverged):
        return f"{error}\n  fix: lower training.learning_rate, and look at the client's records"
    return f"{type(error).__name__}, see the log of this client's pod"


def brief(record: dict) -> dict[str, str]:
    """Return what a task hands on to the aggregator: the rest of a record is in the store."""
    return {key: str(record.get(key) or "") for key in ("client", "status", "reason")}
