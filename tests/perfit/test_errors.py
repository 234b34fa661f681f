"""The package's error type."""

from __future__ import annotations

import pickle

from perfit.errors import PerfitError


def test_the_message_has_problem_and_fix():
    assert (
        str(PerfitError("rounds: -1 is negative", "give 1 or more")) == "rounds: -1 is negative\n  fix: give 1 or more"
    )


def test_it_can_be_pickled():
    error = pickle.loads(pickle.dumps(PerfitError("a problem", "a fix")))
    assert (type(error), error.problem, error.fix) == (PerfitError, "a problem", "a fix")
