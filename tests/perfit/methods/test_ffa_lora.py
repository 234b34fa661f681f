"""FFA-LoRA: A is frozen at its initial values, B is trained and shared."""

from __future__ import annotations

import numpy as np
from numpy.testing import assert_allclose, assert_array_equal

from .helpers import BIG, LITTLE, SPACE, A, B, Pull, federation_at, make_spec, masks, play, refusal, side_of

FFA = make_spec({"name": "ffa-lora"})
DRAWN = SPACE.initial_values(seed=0)


def test_b_alone_is_trained_and_shared():
    assert masks(side_of(FFA, "big").roles) == ([0, 1, 2, 3, 4, 5], [4, 5], [4, 5])
    assert masks(side_of(FFA, "small").roles) == ([0, 1, 4], [4], [4])


def test_a_round_by_hand():
    after = play(FFA, federation_at(FFA, DRAWN), {"big": BIG, "small": LITTLE})
    # B from 0 half-way to 10 and 12, and to 2; of three samples against one: (5 + 3*1)/4.
    assert_array_equal(after.updates["big"].vectors["values"], [5, 6])
    assert_array_equal(after.updates["small"].vectors["values"], [1])
    assert_array_equal(after.vectors["values"][B], [2, 6])
    # A has its initial values: at the server, and in both adapters, of which `small` holds the first row.
    assert_array_equal(after.vectors["values"][A], DRAWN[A])
    assert_array_equal(after.values["big"][A], DRAWN[A])
    assert_array_equal(after.values["small"][A], [DRAWN[0], DRAWN[1], 0, 0])
    assert_array_equal(after.kept["small"]["values"], [1])


def test_averaging_is_exact_among_equal_ranks():
    spec = make_spec({"name": "ffa-lora"}, {"one": 2, "two": 2})
    after = play(spec, federation_at(spec, DRAWN), {"one": Pull([0, 0, 0, 0, 4, 8]), "two": Pull([0, 0, 0, 0, 2, -6])})

    def product(values: np.ndarray) -> np.ndarray:
        a, b = SPACE.split(values).values()
        return b @ a

    mean_of_products = (product(after.values["one"]) + product(after.values["two"])) / 2
    assert_allclose(product(after.vectors["values"]), mean_of_products, rtol=1e-6)


def test_it_has_no_options():
    assert refusal("name: ffa-lora, mu: 1") == (
        "f.yaml:4: method.mu: method ffa-lora has no option 'mu'; known keys: name"
    )
