"""A client's failure as a record, not an exit code: a failing pod would stop the other clients and the round."""

from __future__ import annotations

import re
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, TypeVar

from perfit.errors import PerfitError, TrainingDiverged, log_error
from perfit.processes import ProcessLost
from perfit.protocol import cut

T = TypeVar("T")

_OUT_OF_MEMORY = (
    "out of memory\n  fix: lower training.batch_size (and raise gradient_accumulation) or training.sequence_length, "
    "set training.gradient_checkpointing, or give the client's tier more memory"
)
_NO_MEMORY = re.compile(
    r"can't allocate memory|cannot allocate memory|bad_alloc|could not create a memory"
    r"|failed to map segment|cannot map zero-fill pages|returned NULL without setting an exception",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Failure:
    """Why an action has no result.

    Args:
        reason: In perfit's words.
        status: As in a client's record.
        interrupted: Whether it would have gone on, had its pod or another of its processes stayed.
    """

    reason: str
    status: Literal["failed", "out_of_memory"] = "failed"
    interrupted: bool = False


class Stopped(BaseException):
    """The task was told to stop; no ``except Exception`` of a library on the way may keep it.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int):
        super().__init__(_STOPS[number])
        self.number = number


_STOPS = {
    signal.SIGTERM: "the task was told to stop (its pod was deleted, evicted or preempted)\n"
    "  fix: run the round again; who delivered does not train again",
    signal.SIGALRM: "the client took longer than participation.client_deadline_seconds\n"
    "  fix: raise it, lower training.steps, or give the client's tier more",
}


_AGAIN_S = 1
"""Until ``Stopped`` is raised again: Python drops an exception that comes in a destructor or a callback of C."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Within the context, SIGTERM and the alarm of :func:`stop_after` raise ``Stopped`` until it ends, with the reason.

    Only a process's main thread gets signals; elsewhere nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    numbers: list[int] = []

    def stop(number, frame) -> None:
        numbers.append(number)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_S, _AGAIN_S)
        raise Stopped(numbers[0])

    before = {number: signal.signal(number, stop) for number in _STOPS}
    try:
        yield
    finally:
        signal.alarm(0)
        for number, handler in before.items():
            signal.signal(number, handler)


def stop_after(seconds: int | None) -> None:
    """Stop what runs in :func:`stoppable` in so many seconds; None for never."""
    if threading.current_thread() is threading.main_thread():
        signal.alarm(seconds or 0)


def failure_as_record(action: Callable[[], T]) -> T | Failure:
    """Return what the action returns, or why it failed or was stopped.

    A reason quotes only perfit's own messages. Any other exception's text, also that of the cause of one of ours, may
    contain records and stays in the pod's log.
    """
    try:
        return action()
    except Stopped as stopped:
        return Failure(str(stopped), interrupted=stopped.number == signal.SIGTERM)
    except Exception as error:
        if _is_out_of_memory(error):
            log_error("out of memory", error)
            return Failure(_OUT_OF_MEMORY, "out_of_memory")
        if not isinstance(error, PerfitError):
            traceback.print_exc()
            return Failure(cut(_reason(error)))
        if error.__cause__ is not None:
            log_error("the cause", error.__cause__)
        return Failure(cut(str(error)), interrupted=isinstance(error, ProcessLost))


def _is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, is an allocation that failed.

    On an accelerator torch raises OutOfMemoryError, on the CPU a plain RuntimeError; libraries in C++ and Rust have
    words of their own. A module that is imported without enough memory fails in dlopen, or in C without a word.
    """
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            return True
        if isinstance(error, (RuntimeError, OSError, ImportError, SystemError)) and _NO_MEMORY.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    if isinstance(error, TrainingDiverged):
        return f"{error}\n  fix: lower training.learning_rate, and look at the client's records"
    return f"{type(error).__name__}, see the log of this client's pod"
