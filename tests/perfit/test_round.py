"""The protocol of a round, on six positions: what a client starts from, sends and keeps, and what is merged."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal

from perfit.exchange import DTYPES, Packed, Transfer
from perfit.methods import METHODS, ClientStart, Method, MethodOptions, Mix, Tuned
from perfit.round import (
    ClientRound,
    Reach,
    Received,
    download,
    exchanged_positions,
    initial_state,
    merge,
    new_cohort,
    plain_architecture,
    split_state,
    update_of,
)
from perfit.space import LoraSpace

from .methods.helpers import BIG, LITTLE, SMALL, SPACE, Pull, federation_at, make_spec, play, side_of

DRAWN = SPACE.initial_values(seed=0)
BIG_ALONE = [2, 3, 5]
"""The positions that client ``small`` does not have."""


def floats(*values: float) -> np.ndarray:
    return np.array(values, dtype=np.float32)


def mask(*positions: int) -> np.ndarray:
    return np.isin(np.arange(SPACE.size), positions)


def tuned(*values: float) -> Tuned:
    return Tuned(floats(*values), np.zeros(len(values), dtype=np.float32))


def received(side: ClientRound, **vectors: np.ndarray) -> Received:
    """What a client receives at all its shared positions."""
    return Received(side.roles.shared, vectors)


def test_what_is_kept_is_carried_to_another_architecture():
    spec = make_spec({"name": "perfit"})
    before, side = mask(0, 2, 4, 5), ClientRound(spec, SPACE, mask(0, 1, 3, 5), round=2)
    kept = {"values": floats(7, 8, 9, 6), "control": floats(1, 2, 3, 4)}
    carried = side.carried(kept, before)
    # It held 0 and 5 before; what it had at 2 and 4 is lost, and 1 and 3 are new.
    assert_array_equal(carried["values"], [7, DRAWN[1], DRAWN[3], 6])
    assert_array_equal(carried["control"], [1, 0, 0, 4])
    assert side.carried(kept, side.held) is kept
    assert side.carried({}, before) == {}


def test_a_client_that_shares_everything_starts_from_the_servers_values():
    side = side_of(make_spec({"name": "fedit"}), "small")
    start = side.begin(received(side, values=floats(1, 2, 3)), {})
    assert_array_equal(start.values, [1, 2, 3])
    assert start.values.dtype == np.float32
    assert start.received.keys() == {"values"}
    assert start.kept == {}


def test_personal_positions_start_from_the_initial_values_in_the_first_round_and_then_from_the_clients_own():
    side = side_of(make_spec({"name": "fedsa-lora"}), "small")
    first = side.begin(received(side, values=floats(1, 2)), {})
    assert_array_equal(first.values, [1, 2, 0])  # B is drawn as zero
    later = side.begin(received(side, values=floats(1, 2)), {"values": floats(7, 8, 9)})
    assert_array_equal(later.values, [1, 2, 9])
    assert_array_equal(later.received["values"], [1, 2, 9])


def test_where_nothing_is_exchanged_a_client_goes_on_from_its_own_values():
    side = side_of(make_spec({"name": "fedit"}), "small")
    some = Received(mask(1), {"values": floats(5)})
    assert_array_equal(side.begin(some, {}).values, [DRAWN[0], 5, 0])
    assert_array_equal(side.begin(some, {"values": floats(7, 8, 9)}).values, [7, 5, 9])


@pytest.mark.parametrize("method", ["local", "fedit"])
def test_a_client_that_exchanges_nothing_receives_nothing(method):
    side = side_of(make_spec({"name": method}), "small")
    nothing = Received(mask())
    assert_array_equal(side.begin(nothing, {}).values, DRAWN[SMALL])
    assert_array_equal(side.begin(nothing, {"values": floats(7, 8, 9)}).values, [7, 8, 9])


def test_beginning_a_round_changes_nothing_that_the_client_kept():
    side = side_of(make_spec({"name": "fedit"}), "small")
    kept = {"values": floats(7, 8, 9)}
    side.begin(received(side, values=floats(1, 2, 3)), kept)
    assert_array_equal(kept["values"], [7, 8, 9])


def test_every_vector_that_clients_read_is_spread_over_the_trained_positions():
    side = side_of(make_spec({"name": "scaffold"}), "small")
    vectors = received(side, values=floats(1, 2, 3), control=floats(4, 5, 6))
    start = side.begin(vectors, {"control": floats(7, 8, 9)})
    assert_array_equal(start.received["control"], [4, 5, 6])
    assert_array_equal(start.kept["control"], [7, 8, 9])


def test_where_nothing_is_exchanged_scaffold_corrects_nothing():
    side = side_of(make_spec({"name": "scaffold"}), "small")
    some = Received(mask(1), {"values": floats(2), "control": floats(5)})
    for kept, correction in [({}, [0, 5, 0]), ({"control": floats(7, 8, 9)}, [0, 5 - 8, 0])]:
        start = side.begin(some, kept)
        method, options = side.spec.algorithm, side.spec.method
        assert_array_equal(method.correction(options, start.values, start), correction)


def test_dense_values_and_adapter_have_frozen_positions_as_drawn_and_zeros_off_the_architecture():
    side = side_of(make_spec({"name": "ffa-lora"}), "small")
    expected = [DRAWN[0], DRAWN[1], 0, 0, 5, 0]
    assert_array_equal(side.dense(floats(5)), expected)
    adapter = side.adapter(floats(5))
    assert_array_equal(adapter.dense(), expected)
    assert adapter.budget == 3


@pytest.mark.parametrize(
    ("method", "crosses"), [("fedit", [1, 2, 3]), ("ffa-lora", [3]), ("fedsa-lora", [1, 2]), ("local", [])]
)
def test_what_crosses_and_what_is_kept(method, crosses):
    side = side_of(make_spec({"name": method}), "small")
    trained = floats(*[1, 2, 3][-np.count_nonzero(side.roles.trained) :])
    upload, kept = side.finish(received(side), ClientStart(trained), Tuned(trained, trained), seed=0)
    assert_array_equal(upload.unpack()["values"], crosses)
    assert_array_equal(upload.positions, side.roles.shared)
    assert {name: vector.tolist() for name, vector in kept.items()} == {"values": trained.tolist()}


def test_of_what_is_shared_only_what_is_exchanged_crosses():
    side = side_of(make_spec({"name": "scaffold"}), "small")
    some = Received(mask(1), {"values": floats(2), "control": floats(0)})
    result = Tuned(floats(1, 2, 3), floats(4, 5, 6))
    upload, kept = side.finish(some, side.begin(some, {}), result, seed=0)
    assert_array_equal(upload.positions, mask(1))
    assert {name: vector.tolist() for name, vector in upload.unpack().items()} == {"values": [2], "control": [5]}
    assert_array_equal(kept["values"], [1, 2, 3])


def test_what_a_client_keeps_of_what_it_shares_changes_where_it_is_exchanged():
    side = side_of(make_spec({"name": "scaffold"}), "small")
    some = Received(mask(1), {"values": floats(2), "control": floats(0)})
    result = Tuned(floats(1, 2, 3), floats(4, 5, 6))
    for before, after in [({}, [0, 5, 0]), ({"control": floats(7, 8, 9)}, [7, 5, 9])]:
        _, kept = side.finish(some, side.begin(some, before), result, seed=0)
        assert_array_equal(kept["control"], after)
        assert kept["control"].dtype == np.float32


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_in_a_shorter_type_changes_cross(dtype):
    side = side_of(make_spec({"name": "fedit"}, exchange={"dtype": dtype}), "small")
    start = side.begin(received(side, values=floats(1000, 1000, 1000)), {})
    upload, _ = side.finish(received(side), start, tuned(1000 + 127 / 64, 1000, 1000 - 3 / 64), seed=0)
    # The values themselves would be rounded to 1000 or 1004, to 1000 or 1000.5, and to multiples of 8.
    assert upload.vectors["values"].values.dtype == DTYPES[dtype]
    assert_array_equal(upload.unpack()["values"], [127 / 64, 0, -3 / 64])


def test_the_largest_changes_cross():
    side = side_of(make_spec({"name": "fedit"}, exchange={"top": 0.5}), "big")
    start = side.begin(received(side, values=floats(1, 1, 1, 1, 1, 1)), {})
    upload, kept = side.finish(received(side), start, tuned(2, 4, 1, -3, 1.5, 3.5), seed=0)
    assert_array_equal(upload.positions, mask(1, 3, 5))
    assert_array_equal(upload.unpack()["values"], [3, -4, 2.5])
    assert_array_equal(kept["values"], [2, 4, 1, -3, 1.5, 3.5])


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_kept_is_not_rounded(dtype):
    side = side_of(make_spec({"name": "fedsa-lora"}, exchange={"dtype": dtype}), "small")
    values = tuned(1 + 2**-8, 0.1, 0.3)
    start = side.begin(received(side, values=floats(1, 2)), {})
    _, kept = side.finish(received(side), start, values, seed=0)
    assert_array_equal(kept["values"], values.values)


def test_an_upload_follows_from_its_seed():
    side = side_of(make_spec({"name": "scaffold"}, exchange={"dtype": "int8"}), "big")
    start = side.begin(received(side, values=DRAWN, control=floats(*[0] * 6)), {})
    result = Tuned(np.linspace(-1, 1, 6, dtype=np.float32), np.linspace(1, 3, 6, dtype=np.float32))
    first, again, *others = [side.finish(received(side), start, result, seed)[0].unpack() for seed in (0, 0, 1, 2, 3)]
    for name in ("values", "control"):
        assert first[name].tobytes() == again[name].tobytes()
        assert any(first[name].tobytes() != other[name].tobytes() for other in others)


def test_each_vector_is_rounded_on_its_own():
    spec = make_spec({"name": "scaffold"}, exchange={"dtype": "int8"})
    same = np.linspace(-1, 1, 6, dtype=np.float32)
    vectors = [
        download(spec, {"values": same, "control": same}, mask(*range(6)), round, spec.client("big")).unpack()
        for round in range(1, 9)
    ]
    assert any(round["values"].tobytes() != round["control"].tobytes() for round in vectors)


class Choosing(MethodOptions):
    """Options of a method that starts from whatever scores better."""

    name: Literal["choosing"] = "choosing"


def better(options: Choosing, own: np.ndarray, shared: np.ndarray, score) -> Mix:
    return min(Mix(own, 1), Mix(shared, 0), key=lambda mix: score(mix.values))


@pytest.fixture
def choosing(monkeypatch):
    """A client of a method that is not in the table."""
    monkeypatch.setitem(METHODS.installed, "choosing", Method("Choosing", "none", Choosing, start=better))
    return side_of(make_spec({"name": "fedit"}).model_copy(update={"method": Choosing()}), "small")


def test_a_start_hook_chooses_by_the_score(choosing):
    server, own = received(choosing, values=floats(1, 1, 1)), {"values": floats(3, 3, 3)}

    def distance(target: float):
        return lambda values: float(np.abs(values - target).sum())

    assert_array_equal(choosing.begin(server, own, distance(0)).values, [1, 1, 1])
    assert_array_equal(choosing.begin(server, own, distance(4)).values, [3, 3, 3])
    assert choosing.begin(server, own, distance(4)).own_weight == 1
    # In its first round its own values are the initial ones.
    assert_array_equal(choosing.begin(server, {}, distance(0)).values, DRAWN[SMALL])


@pytest.mark.parametrize(("dtype", "crosses"), [("float32", [4, 3.5, 2]), ("float16", [3, 2.5, 1])])
def test_a_client_that_chooses_uploads_what_it_has_tuned_and_keeps_what_it_ends_with(choosing, dtype, crosses):
    spec = choosing.spec.model_copy(update={"exchange": make_spec({}, exchange={"dtype": dtype}).exchange})
    side = ClientRound(spec, SPACE, choosing.held, 1)
    server = received(side, values=floats(1, 1, 1))
    start = side.begin(server, {"values": floats(3, 3, 3)}, lambda values: -float(values.sum()))
    assert_array_equal(start.values, [3, 3, 3])
    upload, kept = side.finish(server, start, tuned(4, 3.5, 2), seed=0, end=floats(7, 8, 9))
    assert_array_equal(upload.unpack()["values"], crosses)
    assert_array_equal(kept["values"], [7, 8, 9])


def test_a_client_that_the_server_does_not_know_shares_everything_in_the_first_round_and_nothing_later():
    spec = make_spec({"name": "perfit"})
    first = ClientRound(spec, SPACE, mask(0, 3, 5), 1).unknown()
    assert_array_equal(first.positions, mask(0, 3, 5))
    assert {name: vector.tolist() for name, vector in first.vectors.items()} == {"values": DRAWN[[0, 3, 5]].tolist()}
    later = ClientRound(spec, SPACE, mask(0, 3, 5), 2).unknown()
    assert (later.positions.any(), later.vectors) == (False, {})


def test_if_masks_go_first_an_unknown_client_shares_nothing_in_the_first_round_either():
    spec = make_spec({"name": "perfit"}, exchange={"masks_first": True})
    for round in (1, 2):
        nothing = ClientRound(spec, SPACE, mask(0, 3, 5), round).unknown()
        assert (nothing.positions.any(), nothing.vectors) == (False, {})


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


@pytest.mark.parametrize(
    ("method", "holders", "exchanged"),
    [
        # Ranks 2, 1 and 1: A's first row and B's first column are everybody's, the rest is `big`'s alone.
        ("fedit", 1, [0, 1, 2, 3, 4, 5]),
        ("fedit", 2, SMALL),
        ("fedit", 3, SMALL),
        ("ffa-lora", 2, [4]),
        ("fedsa-lora", 2, [0, 1]),
        ("local", 1, []),
    ],
)
def test_what_enough_clients_of_a_round_share_is_exchanged(method, holders, exchanged):
    spec = make_spec({"name": method}, {"big": None, "small": 1, "tiny": 1}, exchange={"holders": holders})
    big, small, tiny = (plain_architecture(spec, SPACE, client) for client in spec.clients)
    for architectures in ([(big, 1), (small, 1), (tiny, 1)], [(small, 2), (big, 1)]):
        assert_array_equal(exchanged_positions(spec, SPACE, architectures), mask(*exchanged))


def test_clients_that_are_not_in_the_round_are_no_holders():
    spec = make_spec({"name": "fedit"}, {"big": None, "small": 1, "tiny": 1}, exchange={"holders": 3})
    assert not exchanged_positions(spec, SPACE, [(mask(*range(6)), 1), (mask(*SMALL), 1)]).any()
    assert not exchanged_positions(spec, SPACE, []).any()


def test_an_architecture_that_is_searched_does_not_follow_from_the_rank():
    fedit, perfit = make_spec({"name": "fedit"}), make_spec({"name": "perfit"})
    assert_array_equal(plain_architecture(fedit, SPACE, fedit.client("small")), mask(*SMALL))
    assert plain_architecture(perfit, SPACE, perfit.client("small")) is None


def test_a_download_has_the_entries_at_the_positions():
    spec = make_spec({"name": "scaffold"})
    state = {"values": np.arange(6, dtype=np.float32), "control": -np.arange(6, dtype=np.float32)}
    client = Received.by(download(spec, state, mask(1, 4), 1, spec.client("small")))
    assert_array_equal(client.positions, mask(1, 4))
    assert {name: vector.tolist() for name, vector in client.vectors.items()} == {"values": [1, 4], "control": [-1, -4]}
    nothing = Received.by(download(spec, state, mask(), 1, spec.client("small")))
    assert (nothing.positions.any(), nothing.vectors) == (False, {})


def test_a_download_holds_nothing_of_the_servers_own():
    spec = make_spec({"name": "fedadam"})
    transfer = download(spec, initial_state(spec, SPACE), mask(0), 1, spec.client("small"))
    assert transfer.vectors.keys() == {"values"}


def downloads(method: str) -> dict[tuple[str, int], bytes]:
    """What three clients, two of one rank, download in two rounds, in int8: the bytes by client and round."""
    spec = make_spec({"name": method}, {"big": 2, "other": 2, "small": 1}, exchange={"dtype": "int8"})
    state = {"values": np.linspace(-1, 1, 6, dtype=np.float32)}
    return {
        (client.id, round): download(spec, state, mask(*range(6)), round, client).vectors["values"].values.tobytes()
        for client in spec.clients
        for round in range(1, 9)
    }


def test_without_a_search_clients_of_a_rank_download_the_same_bytes():
    of = downloads("fedit")
    assert all(of["big", round] == of["other", round] for round in range(1, 9))
    assert any(of["big", round] != of["small", round] for round in range(1, 9))
    assert len({of["big", round] for round in range(1, 9)}) > 1


def test_with_a_search_each_clients_download_is_rounded_on_its_own():
    of = downloads("perfit")
    assert any(of["big", round] != of["other", round] for round in range(1, 9))


def test_an_update_has_the_servers_values_where_no_change_was_uploaded():
    spec = make_spec({"name": "fedit"}, exchange={"top": 0.5})
    state = {"values": floats(1, 2, 3, 4, 5, 6)}
    upload = Transfer(mask(3, 5), {"values": Packed(floats(10, -10))})
    update = update_of(spec, state, mask(1, 3, 4, 5), upload, samples=7)
    assert_array_equal(update.vectors["values"], [2, 14, 5, -4])
    assert_array_equal(update.positions, mask(1, 3, 4, 5))
    assert update.samples == 7
    assert_array_equal(state["values"], [1, 2, 3, 4, 5, 6])


def test_only_values_are_uploaded_as_changes_of_the_servers():
    spec = make_spec({"name": "scaffold"}, exchange={"dtype": "float16"})
    state = {"values": floats(*[1] * 6), "control": floats(*[1] * 6)}
    upload = Transfer(mask(0), {"values": Packed(floats(2)), "control": Packed(floats(2))})
    update = update_of(spec, state, mask(0), upload, samples=1)
    assert {name: vector.tolist() for name, vector in update.vectors.items()} == {"values": [3], "control": [2]}


WIDE = LoraSpace.from_shapes({"base_model.model.q.lora_A.weight": (4, 40), "base_model.model.q.lora_B.weight": (40, 4)})
"""320 positions: three blocks of int8."""
VALUES = arrays(np.float32, WIDE.size, elements=st.floats(-100, 100, width=32))
MASKS = arrays(bool, WIDE.size)
ROUNDING = {"float32": 0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 1 / 127}
"""The largest error of a type: of a value's magnitude; for int8 of the largest magnitude in its block."""


def error_of(dtype: str, vector: np.ndarray) -> np.ndarray | float:
    """A bound of what is lost of a vector on the wire.

    Below 2^-14 a float16 errs by at most 2^-25; below 2^-126 processors may take every float32 for zero.
    """
    magnitude = np.abs(vector).max(initial=0) if dtype == "int8" else np.abs(vector)
    return magnitude * (ROUNDING[dtype] * (1 + 1e-4)) + (2**-25 if dtype == "float16" else 2**-120)


@settings(
    deadline=None, database=None, derandomize=True, max_examples=150, suppress_health_check=[HealthCheck.too_slow]
)
@given(MASKS, MASKS, VALUES, VALUES, st.sampled_from([*DTYPES]), st.sampled_from([1, 0.3]))
def test_the_server_gets_what_the_client_tuned_but_for_the_types_error(held, enough, state, values, dtype, top):
    spec = make_spec({"name": "fedit"}, exchange={"dtype": dtype, "top": top})
    side, exchanged = ClientRound(spec, WIDE, held, 1), held & enough
    got = Received.by(download(spec, {"values": state}, exchanged, 1, spec.client("big")))
    start = side.begin(got, {})
    assert np.all(np.abs(start.values[exchanged[held]] - state[exchanged]) <= error_of(dtype, state[exchanged]))
    result = Tuned(values[held], np.zeros(held.sum(), np.float32))
    upload, kept = side.finish(got, start, result, seed=1)
    update = update_of(spec, {"values": state}, exchanged, upload, samples=1)

    assert_array_equal(kept["values"], values[held])
    assert_array_equal(update.positions, exchanged)
    assert not (upload.positions & ~exchanged).any()
    assert np.count_nonzero(upload.positions) == spec.exchange.count(np.count_nonzero(exchanged))
    received, sent = update.vectors["values"], upload.positions[exchanged]
    assert_array_equal(received[~sent], state[exchanged & ~upload.positions])
    if not spec.exchange.sends_changes:
        assert_array_equal(received, values[exchanged])
    else:
        changes = values[upload.positions] - start.values[upload.positions[held]]
        moved = received[sent].astype(float) - state[upload.positions]
        # The server's addition is rounded to float32.
        assert np.all(np.abs(moved - changes) <= error_of(dtype, changes) + 2**-24 * np.abs(received[sent]))


@pytest.mark.parametrize("method", ["fedit", "fedavgm", "fedadam", "scaffold"])
@pytest.mark.parametrize("exchange", [{"dtype": dtype} for dtype in DTYPES if dtype != "float32"], ids=str)
def test_the_rounding_of_downloads_does_not_add_up(method, exchange):
    spec = make_spec({"name": method}, exchange=exchange)
    before = after = federation_at(spec, DRAWN + np.float32(1 / 3))
    for _ in range(3):
        # Clients that stay where they are.
        after = play(spec, after, {"big": BIG, "small": LITTLE}, rate=0)
    assert (after.downloads["big"].unpack()["values"] != before.vectors["values"]).any()
    assert after.vectors["values"].tobytes() == before.vectors["values"].tobytes()


@pytest.mark.parametrize(
    ("method", "options"),
    [
        *(({"name": "fedit"}, {"rule": rule}) for rule in ("mean", "median", "trimmed_mean")),
        *(({"name": name}, {}) for name in ("fedavgm", "fedadam", "fedyogi", "scaffold")),
    ],
    ids=str,
)
def test_a_position_of_too_few_who_delivered_keeps_the_servers_vectors(method, options):
    ranks = {"big": 2, "other": 2, "small": 1, "tiny": 1}
    spec = make_spec(method, ranks, aggregation=options, exchange={"holders": 2})
    pulls = {name: Pull([1 + number, 2, 3, 4, 5, 6]) for number, name in enumerate(ranks)}
    before = play(spec, federation_at(spec, [0] * 6), pulls)
    assert (before.vectors["values"] != 0).all()
    # All six are exchanged. Without `other`, `big` alone has its own, and three have those of `small`.
    after = play(spec, before, pulls, lost=["other"])
    assert_array_equal(after.updates["big"].positions, [True] * 6)
    for name, vector in after.vectors.items():
        assert vector[BIG_ALONE].tobytes() == before.vectors[name][BIG_ALONE].tobytes()
    assert (after.vectors["values"][SMALL] != before.vectors["values"][SMALL]).all()


def test_what_is_not_exchanged_stays_at_the_client():
    spec = make_spec({"name": "fedit"}, exchange={"holders": 2})
    first = play(spec, federation_at(spec, [0] * 6), {"big": BIG, "small": LITTLE})
    # Half-way from 0, or from what is drawn, to BIG's 2, 4, 6, 8, 10, 12; the mean where `small` shares them.
    assert_array_equal(first.vectors["values"], [4, 5, 0, 0, 2, 0])
    assert_array_equal(first.updates["big"].positions, mask(*SMALL))
    own = ((DRAWN + BIG.target) / 2)[BIG_ALONE]
    assert_allclose(first.values["big"][BIG_ALONE], own, rtol=1e-6)
    second = play(spec, first, {"big": BIG, "small": LITTLE})
    assert_allclose(second.values["big"][BIG_ALONE], (own + np.array([6, 8, 12])) / 2, rtol=1e-6)
    assert_array_equal(second.values["big"][SMALL], [3, 4.5, 6])
    assert_array_equal(second.vectors["values"][BIG_ALONE], [0, 0, 0])


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


@pytest.mark.parametrize("name", METHODS)
def test_a_round_without_updates_changes_nothing(name):
    spec = make_spec({"name": name})
    state = initial_state(spec, SPACE)
    after = merge(spec, SPACE, state, new_cohort(spec, SPACE, state))
    assert {k: v.tobytes() for k, v in after.items()} == {k: v.tobytes() for k, v in state.items()}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("round", [1, 2])
def test_the_server_finds_the_positions_of_a_client(name, round):
    spec = make_spec(method={"name": name})
    exchanged, held = np.arange(SPACE.size) % 3 > 0, SPACE.plain_mask(1)
    side = ClientRound(spec, SPACE, held, round)
    reach = Reach(spec, SPACE, round, np.packbits(exchanged))
    for known, expected in ((True, side.roles.shared & exchanged), (False, side.exchanged_unknown)):
        active, sent = reach.positions(np.packbits(held), known)
        assert_array_equal(active, np.packbits(side.active))
        assert_array_equal(sent, np.packbits(side.active & expected))
