"""The protocol of a round, on six positions: what a client starts from, sends and keeps, and what is merged."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.methods import METHODS, ClientStart, Method, MethodOptions, Tuned
from perfit.round import initial_state, merge, new_cohort, received_by, split_state

from .methods.helpers import SMALL, SPACE, make_spec, side_of

DRAWN = SPACE.initial_values(seed=0)


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def tuned(*values: float) -> Tuned:
    return Tuned(floats(*values), np.zeros(len(values), dtype=np.float32))


def test_a_client_that_shares_everything_starts_from_the_servers_values():
    side = side_of(make_spec({"name": "fedit"}), "small")
    start = side.begin({"values": floats(1, 2, 3)}, {})
    assert_array_equal(start.values, [1, 2, 3])
    assert start.values.dtype == np.float32
    assert start.received.keys() == {"values"}
    assert start.kept == {}


def test_personal_positions_start_from_the_initial_values_in_the_first_round_and_then_from_the_clients_own():
    side = side_of(make_spec({"name": "fedsa-lora"}), "small")
    first = side.begin({"values": floats(1, 2)}, {})
    assert_array_equal(first.values, [1, 2, 0])  # B is drawn as zero
    later = side.begin({"values": floats(1, 2)}, {"values": floats(7, 8, 9)})
    assert_array_equal(later.values, [1, 2, 9])
    assert_array_equal(later.received["values"], [1, 2, 0])


def test_where_nothing_is_shared_nothing_need_be_received():
    side = side_of(make_spec({"name": "local"}), "small")
    assert_array_equal(side.begin({}, {}).values, DRAWN[SMALL])
    assert_array_equal(side.begin({}, {"values": floats(7, 8, 9)}).values, [7, 8, 9])


def test_every_vector_that_clients_read_is_spread_over_the_trained_positions():
    side = side_of(make_spec({"name": "scaffold"}), "small")
    start = side.begin({"values": floats(1, 2, 3), "control": floats(4, 5, 6)}, {"control": floats(7, 8, 9)})
    assert_array_equal(start.received["control"], [4, 5, 6])
    assert_array_equal(start.kept["control"], [7, 8, 9])


def test_dense_values_and_adapter_have_frozen_positions_as_drawn_and_zeros_off_the_architecture():
    side = side_of(make_spec({"name": "ffa-lora"}), "small")
    expected = [DRAWN[0], DRAWN[1], 0, 0, 5, 0]
    assert_array_equal(side.dense(floats(5)), expected)
    adapter = side.adapter(floats(5))
    assert_array_equal(adapter.dense(), expected)
    assert adapter.budget == 3


@pytest.mark.parametrize(
    ("method", "crosses", "kept"),
    [("fedit", [1, 2, 3], None), ("ffa-lora", [3], None), ("fedsa-lora", [1, 2], [1, 2, 3]), ("local", [], [1, 2, 3])],
)
def test_what_crosses_and_what_is_kept(method, crosses, kept):
    side = side_of(make_spec({"name": method}), "small")
    trained = floats(*[1, 2, 3][-np.count_nonzero(side.roles.trained) :])
    start = ClientStart(trained)
    update, keeps = side.finish(start, Tuned(trained, trained), samples=4)
    assert_array_equal(update.vectors["values"], crosses)
    assert_array_equal(update.positions, side.roles.shared)
    assert update.samples == 4
    assert {name: vector.tolist() for name, vector in keeps.items()} == ({} if kept is None else {"values": kept})


@pytest.mark.parametrize(
    ("dtype", "crosses"),
    [
        # 1 + 2^-8 lies half-way between two bfloat16, of which 1 is the even one; 1 + 2^-10 is a float16.
        ("float32", [1 + 2**-8, 1 + 2**-10, 0.1]),
        ("bfloat16", [1, 1, 0.10009765625]),
        ("float16", [1 + 2**-8, 1 + 2**-10, 0.0999755859375]),
    ],
)
def test_what_crosses_is_rounded_as_the_wire_carries_it(dtype, crosses):
    side = side_of(make_spec({"name": "fedit"}, exchange={"dtype": dtype}), "small")
    values = tuned(1 + 2**-8, 1 + 2**-10, 0.1)
    update, _ = side.finish(ClientStart(values.values), values, samples=1)
    assert_array_equal(update.vectors["values"], np.float32(crosses))
    assert update.vectors["values"].dtype == np.float32


def test_what_is_kept_is_not_rounded():
    side = side_of(make_spec({"name": "fedsa-lora"}, exchange={"dtype": "bfloat16"}), "small")
    values = tuned(1 + 2**-8, 0.1, 0.3)
    _, kept = side.finish(ClientStart(values.values), values, samples=1)
    assert_array_equal(kept["values"], values.values)


class Choosing(MethodOptions):
    """Options of a method that starts from whatever scores better."""

    name: Literal["choosing"] = "choosing"


def better(options: Choosing, own: np.ndarray, shared: np.ndarray, score) -> np.ndarray:
    return min(own, shared, key=score)


@pytest.fixture
def choosing(monkeypatch):
    """A client of a method that is not in the table."""
    monkeypatch.setitem(METHODS, "choosing", Method("Choosing", "none", Choosing, start=better))
    return side_of(make_spec({"name": "fedit"}).model_copy(update={"method": Choosing()}), "small")


def test_a_start_hook_chooses_by_the_score(choosing):
    server, own = {"values": floats(1, 1, 1)}, {"values": floats(3, 3, 3)}

    def distance(target: float):
        return lambda values: float(np.abs(values - target).sum())

    assert_array_equal(choosing.begin(server, own, distance(0)).values, [1, 1, 1])
    assert_array_equal(choosing.begin(server, own, distance(4)).values, [3, 3, 3])
    # In its first round its own values are the initial ones.
    assert_array_equal(choosing.begin(server, {}, distance(0)).values, DRAWN[SMALL])


def test_a_client_that_chooses_keeps_its_values(choosing):
    update, kept = choosing.finish(ClientStart(floats(0, 0, 0)), tuned(1, 2, 3), samples=1)
    assert_array_equal(update.vectors["values"], [1, 2, 3])
    assert_array_equal(kept["values"], [1, 2, 3])


def test_the_server_starts_from_the_drawn_values():
    assert_array_equal(initial_state(make_spec({"name": "fedit"}), SPACE)["values"], DRAWN)
    state = initial_state(make_spec({"name": "fedit"}, training={"seed": 1}), SPACE)
    assert (state["values"][:4] != DRAWN[:4]).all()


@pytest.mark.parametrize(
    ("method", "read", "own"),
    [
        ("fedit", {"values"}, set()),
        ("scaffold", {"values", "control"}, set()),
        ("fedavgm", {"values"}, {"momentum"}),
        ("fedadam", {"values"}, {"first_moment", "second_moment"}),
    ],
)
def test_the_state_is_split_into_what_clients_read_and_what_is_the_servers_own(method, read, own):
    spec = make_spec({"name": method})
    downloads, rest = split_state(spec, initial_state(spec, SPACE))
    assert (downloads.keys(), rest.keys()) == (read, own)
    assert all(vector.shape == (6,) and vector.dtype == np.float32 for vector in {**downloads, **rest}.values())


def test_a_client_receives_the_entries_at_its_shared_positions():
    roles = side_of(make_spec({"name": "fedsa-lora"}), "small").roles
    assert_array_equal(received_by(roles, {"values": np.arange(6, dtype=np.float32)})["values"], [0, 1])


@pytest.mark.parametrize(
    ("method", "population"),
    [
        # Ranks 2, 1 and 1: A's first row and B's first column are everybody's, the rest is `big`'s alone.
        ("fedit", [3, 3, 1, 1, 3, 1]),
        ("ffa-lora", [0, 0, 0, 0, 3, 1]),
        ("fedsa-lora", [3, 3, 1, 1, 0, 0]),
        ("local", [0] * 6),
    ],
)
def test_how_many_clients_of_the_federation_share_each_position(method, population):
    spec = make_spec({"name": method}, {"big": None, "small": 1, "tiny": 1})
    assert_array_equal(new_cohort(spec, SPACE, initial_state(spec, SPACE)).population(), population)


def test_a_round_without_updates_changes_nothing():
    for name in METHODS:
        spec = make_spec({"name": name})
        state = initial_state(spec, SPACE)
        after = merge(spec, state, new_cohort(spec, SPACE, state))
        assert {k: v.tobytes() for k, v in after.items()} == {k: v.tobytes() for k, v in state.items()}
