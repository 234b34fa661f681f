"""PerFIT: sparse architectures, each position averaged over the clients that hold it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.methods import Search
from perfit.round import ClientRound, merge, new_cohort, update_of

from .helpers import SPACE, Pull, descend, everything, make_spec, masks, refusal

PERFIT = make_spec({"name": "perfit"}, {"one": 1, "two": 1}, lora={"rank": 1, "expansion": 2})


def architecture(*positions: int) -> np.ndarray:
    mask = np.zeros(SPACE.size, dtype=bool)
    mask[list(positions)] = True
    return mask


def test_what_is_held_is_trained_and_shared():
    assert masks(PERFIT.roles(SPACE, architecture(0, 3, 5))) == ([0, 3, 5],) * 3


def test_a_round_by_hand():
    state = {"values": np.full(6, 2, dtype=np.float32)}
    cohort = new_cohort(PERFIT, SPACE, state)
    for name, held, pull in [
        ("ann", architecture(0, 3, 5), Pull([4, 4, 4, 4, 4, 4], samples=1)),
        ("bob", architecture(0, 4, 5), Pull([8, 8, 8, 8, 8, 8], samples=3)),
    ]:
        side = ClientRound(PERFIT, SPACE, held, 1)
        upload, kept, values = descend(side, pull, everything(side.roles, state), {}, steps=1, rate=0.5)
        cohort.add(name, update_of(PERFIT, state, side.roles.shared, upload, pull.samples))
        assert_array_equal(values != 0, held)
        assert_array_equal(kept["values"], values[held])
    # From 2 half-way to 4 is 3, half-way to 8 is 5: (3 + 3*5)/4 where both hold the position; nobody holds 1 and 2.
    assert_array_equal(merge(PERFIT, SPACE, state, cohort)["values"], [4.5, 2, 2, 3, 5, 4.5])


def test_the_server_knows_no_architecture_of_clients_outside_the_round():
    with pytest.raises(NotImplementedError, match="architectures"):
        new_cohort(PERFIT, SPACE, {"values": np.zeros(6, np.float32)}).population()


def test_its_options_are_a_search():
    assert PERFIT.search == Search("taylor", "layer", steps=20, warmup_steps=5, pruning_iterations=5)
    spec = make_spec({"metric": "gradient", "scope": "global", "search_steps": 6, "warmup_steps": 1})
    assert (spec.method.name, spec.search) == ("perfit", Search("gradient", "global", 6, 1, 5))


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ("mu: 1", "method.mu: method perfit has no option 'mu'; known keys: name, metric, scope, search_steps"),
        ("search_step: 5", "method.search_step: method perfit has no option 'search_step'; did you mean 'search_steps"),
        ("scope: model", "method.scope: Input should be"),
        ("search_steps: 0", "method.search_steps: Input should be greater than or equal to 1"),
        ("warmup_steps: -1", "method.warmup_steps: Input should be greater than or equal to 0"),
        (
            "search_steps: 5, warmup_steps: 4, pruning_iterations: 2",
            "method: 2 pruning iterations do not fit in the 1 of 5 search steps that follow the warm-up",
        ),
    ],
)
def test_bounds_of_its_options(section, problem):
    assert refusal(section).startswith(f"f.yaml:4: {problem}")
