"""Failures as records: our own messages in full, of all others no more than the kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from perfit.errors import PerfitError
from perfit_components.steps.outcome import brief, softly
from perfit_storage import StoreError


def raising(error: BaseException):
    def action() -> dict:
        raise error

    return action


def test_what_ends_well_passes_through():
    assert softly("ann", lambda: {"client": "ann", "status": "trained"}) == {"client": "ann", "status": "trained"}


@pytest.mark.parametrize("kind", [PerfitError, StoreError])
def test_our_own_errors_are_told_in_full(kind, capsys):
    record = softly("ann", raising(kind("it is red", "make it blue")))
    assert record == {"client": "ann", "status": "failed", "reason": "it is red\n  fix: make it blue"}
    assert capsys.readouterr().out == "client ann has no result: it is red\n  fix: make it blue\n"


def test_other_errors_are_told_by_kind_alone(capsys):
    record = softly("ann", raising(ValueError("My card number is 1234")))
    assert record["reason"] == "ValueError, see the log of this client's pod"
    output = capsys.readouterr()
    assert "1234" not in output.out
    assert "1234" in output.err  # the pod's own log


@pytest.mark.parametrize("action", [lambda: np.empty(10**15), lambda: torch.empty(10**15)], ids=["numpy", "torch"])
def test_memory_that_is_not_there(action):
    reason = softly("ann", action)["reason"]
    assert reason.startswith("out of memory\n  fix: lower training.batch_size")


def test_a_stop_is_not_a_failure():
    with pytest.raises(KeyboardInterrupt):
        softly("ann", raising(KeyboardInterrupt()))


def test_what_a_task_hands_on():
    record = {"client": "ann", "status": "trained", "reason": None, "losses": [1.0], "mask_sha256": "0" * 64}
    assert brief(record) == {"client": "ann", "status": "trained", "reason": ""}
