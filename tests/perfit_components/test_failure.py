"""Failures as records: our own messages in full, of all others only the type."""

from __future__ import annotations

import os
import signal
import time

import numpy as np
import pytest
import torch

from perfit.errors import PerfitError
from perfit.processes import ProcessLost
from perfit.protocol import MAX_REASON
from perfit_components.steps.failure import Failure, failure_as_record, stoppable
from perfit_storage import StoreError


def raising(error: BaseException):
    def action() -> dict:
        raise error

    return action


def test_a_result_is_returned_unchanged():
    assert failure_as_record(lambda: {"status": "trained"}) == {"status": "trained"}


@pytest.mark.parametrize("kind", [PerfitError, StoreError])
def test_our_own_errors_are_reported_in_full(kind):
    assert failure_as_record(raising(kind("it is red", "make it blue"))) == Failure("it is red\n  fix: make it blue")


def test_the_words_of_a_library_below_our_own_error_stay_in_the_log(caplog):
    error = PerfitError("it cannot be read", "repair it")
    error.__cause__ = OSError("My card number is 1234")
    assert failure_as_record(raising(error)).reason == "it cannot be read\n  fix: repair it"
    assert "OSError: My card number is 1234" in caplog.text


def test_other_errors_are_reported_by_type_only(capsys):
    failure = failure_as_record(raising(ValueError("My card number is 1234")))
    assert failure.reason == "ValueError, see the log of this client's pod"
    output = capsys.readouterr()
    assert "1234" not in output.out
    assert "1234" in output.err  # the pod's own log


def test_a_reason_is_cut_and_holds_no_escape():
    reason = failure_as_record(raising(PerfitError("\x1b[31m" + "x" * 5000, "none"))).reason
    assert len(reason) == MAX_REASON
    assert "\x1b" not in reason


@pytest.mark.parametrize("action", [lambda: np.empty(10**15), lambda: torch.empty(10**15)], ids=["numpy", "torch"])
def test_out_of_memory(action):
    assert failure_as_record(action).reason.startswith("out of memory\n  fix: lower training.batch_size")


@pytest.mark.parametrize(
    "error",
    [
        SystemError("<function _find_and_load at 0x7f80> returned NULL without setting an exception"),
        ImportError("/lib/lib.so: failed to map segment from shared object"),
        ImportError("/lib/lib.so: cannot map zero-fill pages"),
    ],
    ids=["C without a word", "dlopen", "its zeros"],
)
def test_an_import_that_runs_out_of_memory(error):
    assert failure_as_record(raising(error)).status == "out_of_memory"


@pytest.mark.parametrize("error", [ImportError("cannot import name 'x'"), SystemError("bad argument"), RuntimeError()])
def test_other_errors_of_these_types_are_none_of_memory(error):
    assert failure_as_record(raising(error)).status == "failed"


def test_an_interrupt_is_not_a_failure():
    with pytest.raises(KeyboardInterrupt):
        failure_as_record(raising(KeyboardInterrupt()))


@pytest.mark.parametrize(("number", "interrupted"), [(signal.SIGTERM, True), (signal.SIGALRM, False)])
def test_what_was_stopped_from_outside_would_have_gone_on(number, interrupted):
    def action() -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    with stoppable():
        failure = failure_as_record(action)
    assert failure.interrupted == interrupted
    assert failure.reason.startswith("the task was told" if interrupted else "the client took longer")


def test_so_would_a_process_whose_other_has_gone():
    assert failure_as_record(raising(ProcessLost("it has gone", "look for it"))).interrupted
    assert not failure_as_record(raising(PerfitError("it is red", "make it blue"))).interrupted


class Swallows:
    """Is told to stop while it is destroyed, where Python drops every exception."""

    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_that_python_drops_is_repeated():
    def action() -> str:
        Swallows()
        time.sleep(60)
        return "nobody stopped it"

    began = time.monotonic()
    with stoppable():
        result = failure_as_record(action)
    assert result.reason.startswith("the task was told to stop")
    assert time.monotonic() - began < 30
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0), "no alarm is left"
