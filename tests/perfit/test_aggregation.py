"""Parameter-wise aggregation, by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from perfit.aggregation import Aggregation, Cohort, aggregate
from perfit.scratch import Scratch
from perfit.sweep import Read
from perfit.updates import Update

from .test_scratch import resident

PREVIOUS = np.array([10, 20, 30, 40, 50, 60], dtype=np.float32)


def client(samples: int, values: list[float | None]) -> Update:
    """A client that shares the positions where there is a value."""
    positions = np.array([value is not None for value in values])
    return update(samples, positions, [value for value in values if value is not None])


def update(samples: int, positions: np.ndarray, values) -> Update:
    return Update.at(positions, {"values": np.array(values, dtype=np.float32)}, samples)


def same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.dtype == expected.dtype == np.float32
    assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


def test_unequal_weights_and_a_position_nobody_holds():
    values = aggregate(
        PREVIOUS,
        [
            client(1, [1.0, None, 4.0, None, 0.0, -1.0]),
            client(3, [5.0, 2.0, None, None, 8.0, -1.0]),
        ],
    )
    #   (1 + 3*5)/4, 2 alone, 4 alone, nobody, (0 + 3*8)/4, both -1
    assert_array_equal(values, [4.0, 2.0, 4.0, 40.0, 6.0, -1.0])
    assert values.dtype == np.float32


def test_disjoint_masks_keep_every_clients_values():
    values = aggregate(PREVIOUS, [client(7, [1, 2, None, None, None, None]), client(2, [None, None, None, 3, 4, 5])])
    assert_array_equal(values, [1, 2, 30, 3, 4, 5])


def test_unequal_budgets_need_no_padding():
    values = aggregate(
        PREVIOUS,
        [
            client(2, [1, 2, 3, 4, 5, 6]),
            client(2, [3, None, 5, None, None, None]),
            client(4, [None, None, 8, None, None, None]),
        ],
    )
    #   (2*1 + 2*3)/4, 2, (2*3 + 2*5 + 4*8)/8, 4, 5, 6
    assert_array_equal(values, [2, 2, 6, 4, 5, 6])


def test_equal_masks_give_the_weighted_mean_of_fedit():
    values = aggregate(np.zeros(2, np.float32), [client(1, [0, 3]), client(2, [3, 0]), client(3, [1, 1])])
    assert_array_equal(values, [(0 + 6 + 3) / 6, (3 + 0 + 3) / 6])


def awkward_values() -> np.ndarray:
    rng = np.random.default_rng(0)
    floats = rng.integers(0, 2**32, size=2000, dtype=np.uint32).view(np.float32)
    named = np.array([0.1, 1 / 3, np.pi, 1e-45, 1.1754944e-38, 3.4028235e38, 16777215, 0.0], np.float32)
    return np.concatenate([named, floats[np.isfinite(floats) & (floats != 0)]])


@pytest.mark.parametrize("samples", [1, 3, 7, 1_000_003])
def test_a_client_alone_keeps_its_bits(samples):
    values = awkward_values()
    alone = update(samples, np.ones(values.size, dtype=bool), values)
    same_bits(aggregate(np.ones_like(values), [alone]), values)


@pytest.mark.parametrize("samples", [(3, 7), (2**24, 1, 1)], ids=["few", "more than float32 counts"])
def test_clients_that_agree_keep_their_bits(samples):
    values = awkward_values()
    positions = np.ones(values.size, dtype=bool)
    same_bits(aggregate(np.ones_like(values), [update(n, positions, values) for n in samples]), values)


def test_positions_without_holder_keep_their_bits():
    values = awkward_values()
    same_bits(aggregate(values, []), values)


def test_a_sum_in_float32_would_be_wrong():
    # 2**24 + 1 has no float32: there the middle client would vanish, and the mean be 0.
    clients = [client(1, [2.0**24, 2.0**24]), client(1, [1, 1]), client(1, [-(2.0**24), -(2.0**24)])]
    assert np.float32(2**24) + np.float32(1) - np.float32(2**24) == 0
    assert_array_equal(aggregate(np.zeros(2, np.float32), clients), np.array([1 / 3, 1 / 3], np.float32))


def test_a_product_in_float32_would_lose_a_clients_bits():
    values = awkward_values()
    values = values[np.abs(values) < 1e37]
    for samples in (3, 7):
        assert np.any(values * np.float32(samples) / np.float32(samples) != values)


def test_a_negative_zero_keeps_its_sign():
    # Half precision rounds small negative values to them.
    alone = client(3, [-0.0, -0.0, 0.0])
    same_bits(aggregate(np.ones(3, np.float32), [alone, alone]), alone.vectors["values"])


def test_the_order_of_clients_does_not_matter():
    clients = [
        client(1, [0.5, None, 2.0**24]),
        client(2, [0.25, 3.0, 1.0]),
        client(3, [None, -1.0, -(2.0**23)]),
    ]
    results = [aggregate(np.zeros(3, np.float32), order) for order in permutations(clients)]
    assert_array_equal(results, [results[0]] * 6)
    assert_array_equal(results[0], np.array([1 / 3, 3 / 5, (2**24 + 2 - 3 * 2**23) / 6], np.float32))


def random_clients(rng: np.random.Generator, size: int, count: int) -> list[Update]:
    clients = []
    for _ in range(count):
        positions = rng.random(size) < 0.4
        values = rng.normal(0, 0.02, np.count_nonzero(positions))
        clients.append(update(int(rng.integers(1, 5000)), positions, values))
    return clients


def value_at(client: Update, position: int) -> np.float32:
    return client.vectors["values"][np.count_nonzero(client.positions[:position])]


@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_exact_mean_rounded_once(seed):
    rng = np.random.default_rng(seed)
    previous = rng.normal(0, 0.02, 60).astype(np.float32)
    clients = random_clients(rng, 60, 12)
    expected = previous.copy()
    for position in range(60):
        holders = [c for c in clients if c.positions[position]]
        if weight := sum(c.samples for c in holders):
            terms = [c.samples * Fraction(float(value_at(c, position))) for c in holders]
            expected[position] = np.float32(float(sum(terms) / weight))
    same_bits(aggregate(previous, iter(clients)), expected)
    same_bits(aggregate(previous, iter(clients[::-1])), expected)


def test_arguments_are_not_changed():
    previous, one = PREVIOUS.copy(), client(3, [1, 2, 3, None, None, None])
    aggregate(previous, [one])
    assert_array_equal(previous, PREVIOUS)
    assert_array_equal(one.vectors["values"], [1, 2, 3])


@pytest.mark.parametrize("samples", [0, -1])
def test_an_update_of_no_samples_has_no_weight(samples):
    with pytest.raises(ValueError, match=f"an update of {samples} samples has no weight"):
        client(samples, [1.0] * 6)


@pytest.mark.parametrize("vector", [np.zeros(2, np.float32), np.zeros((3, 1), np.float32), np.zeros(3)], ids=str)
def test_an_update_has_a_float32_a_position(vector):
    with pytest.raises(ValueError, match=r"values is float(32|64)\(.*\), want float32\(3,\)"):
        Update.at(np.array([True, False, True, True]), {"values": vector}, samples=1)


def test_updates_that_cannot_be_averaged():
    of_another_space = client(1, [1.0] * 5)
    of_other_vectors = Update.at(np.ones(6, dtype=bool), {"control": np.zeros(6, np.float32)}, samples=1)
    for bad in (of_another_space, of_other_vectors):
        with pytest.raises(ValueError, match="cannot average"):
            aggregate(PREVIOUS, [client(1, [1.0] * 6), bad])


def test_a_cohort_averages_each_vector_and_counts_holders():
    base = {"values": np.zeros(3, np.float32)}
    cohort = Cohort(["values", "control"], base, lambda: np.array([4, 4, 2]), Aggregation())
    for name, samples, positions, values, control in [
        ("ann", 1, [True, True, False], [1, 2], [10, 20]),
        ("bob", 3, [True, False, False], [5], [30]),
    ]:
        vectors = {"values": np.array(values, np.float32), "control": np.array(control, np.float32)}
        cohort.add(name, Update.at(np.array(positions), vectors, samples))
    assert_array_equal(cohort.average("values", np.float32([7, 8, 9])), [(1 + 3 * 5) / 4, 2, 9])
    assert_array_equal(cohort.average("control", np.float32(0)), [(10 + 3 * 30) / 4, 20, 0])
    assert_array_equal(cohort.holders, [2, 1, 0])
    assert_array_equal(cohort.population(), [4, 4, 2])


def cohort_of(updates: dict[str, Update], previous: np.ndarray = PREVIOUS, **options) -> Cohort:
    aggregation = Aggregation(**{"max_share": 1, "clip": None} | options)
    cohort = Cohort(["values"], {"values": previous}, lambda: np.zeros(previous.size, dtype=int), aggregation)
    for name, update in updates.items():
        cohort.add(name, update)
    return cohort


FIVE = {
    "ann": client(1, [1.0, 1.0, None, 4.0, None, None]),
    "bob": client(1, [2.0, 2.0, None, None, 7.0, None]),
    "cid": client(7, [3.0, -9.0, 5.0, 8.0, None, None]),
    "dan": client(1, [90.0, 4.0, 1.0, None, None, None]),
    "eve": client(10**6, [-90.0, None, 9.0, None, None, None]),
}
"""Holders: 5, 4, 3, 2 (weights 1 and 7), 1, none."""


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        # -90 1 2 3 90; -9 1 2 4; 1 5 9; (4 + 7*8)/8; 7; as it was.
        ({"rule": "median"}, [2, 1.5, 5, 7.5, 7, 60]),
        # One left out at either end, also of three.
        ({"rule": "trimmed_mean"}, [2, 1.5, 5, 7.5, 7, 60]),
        # 0.4 of five is two at either end, of four and three one.
        ({"rule": "trimmed_mean", "trim": 0.4}, [2, 1.5, 5, 7.5, 7, 60]),
    ],
)
def test_robust_rules_by_hand(options, expected):
    cohort = cohort_of(FIVE, **options)
    assert_array_equal(cohort.average("values", PREVIOUS), np.float32(expected))
    assert cohort.positions_by_mean == 2


def test_a_trimmed_mean_is_between_mean_and_median():
    column = {str(n): update(1, np.ones(1, dtype=bool), [value]) for n, value in enumerate([0, 1, 2, 9, 10, 11, 99])}
    zero = np.zeros(1, np.float32)
    for trim, expected in [(0.1, (1 + 2 + 9 + 10 + 11) / 5), (0.3, (2 + 9 + 10) / 3), (0.49, 9)]:
        cohort = cohort_of(column, zero, rule="trimmed_mean", trim=trim)
        assert_array_equal(cohort.average("values", zero), np.float32([expected]))


@pytest.mark.parametrize(
    "options", [{"rule": "mean"}, {"rule": "median"}, {"rule": "trimmed_mean", "trim": 0.25}], ids=str
)
@pytest.mark.parametrize("clients", [2, 9, 300])
def test_rules_against_a_dense_reference_over_many_blocks(monkeypatch, options, clients):
    monkeypatch.setattr("perfit.sweep._LONGEST", 9000)
    rng = np.random.default_rng(clients)
    size = 70_003  # three blocks or more, the last one short
    previous = rng.normal(0, 0.02, size).astype(np.float32)
    updates = {f"client-{n}": one for n, one in enumerate(random_clients(rng, size, clients))}
    dense = np.full((clients, size), np.nan)
    for row, one in zip(dense, updates.values(), strict=True):
        row[one.positions] = one.vectors["values"]
    held, weights = ~np.isnan(dense), np.array([[one.samples] for one in updates.values()])
    holders = held.sum(axis=0)
    with np.errstate(invalid="ignore"):
        expected = np.nansum(dense * weights, axis=0) / np.sum(weights * held, axis=0)
    many = holders >= 3
    ordered = np.sort(dense, axis=0)
    for position in np.flatnonzero(many) if options["rule"] != "mean" else []:
        values = ordered[: holders[position], position]
        cut = max(1, int(0.25 * values.size))
        expected[position] = np.median(values) if options["rule"] == "median" else values[cut:-cut].mean()
    expected[holders == 0] = previous[holders == 0]
    cohort = cohort_of(updates, previous, **options)
    assert_allclose(cohort.average("values", previous), expected, rtol=1e-6, atol=1e-9)
    assert_array_equal(cohort.holders, holders)


@pytest.mark.parametrize("rule", ["mean", "median", "trimmed_mean"])
def test_the_order_in_which_updates_come_does_not_matter(rule):
    rng = np.random.default_rng(1)
    previous = rng.normal(0, 0.02, 5000).astype(np.float32)
    updates = {f"client-{n}": one for n, one in enumerate(random_clients(rng, 5000, 7))}
    first = cohort_of(updates, previous, rule=rule).average("values", previous)
    for _ in range(5):
        shuffled = {name: updates[name] for name in rng.permutation(list(updates))}
        same_bits(cohort_of(shuffled, previous, rule=rule).average("values", previous), first)


def test_threads_that_add_updates_change_nothing():
    rng = np.random.default_rng(2)
    previous = rng.normal(0, 0.02, 5000).astype(np.float32)
    updates = {f"client-{n}": one for n, one in enumerate(random_clients(rng, 5000, 24))}
    expected, together = cohort_of(updates, previous, clip=1), cohort_of({}, previous, clip=1)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(together.add, [*updates][::-1], [*updates.values()][::-1]))
    same_bits(together.average("values", previous), expected.average("values", previous))
    assert [*together.measures.items()] == [*expected.measures.items()]
    assert [*together.limited.items()] == [*expected.limited.items()]
    assert expected.limited


def reading(values: np.ndarray) -> Read:
    """What hands out values from the first to the last."""
    place = [0]

    def read(block: slice, bits: np.ndarray, into: np.ndarray) -> None:
        into[:] = values[place[0] : place[0] + into.size]
        place[0] += into.size

    return read


@pytest.mark.parametrize("threads", [1, 2])
def test_a_sweep_gives_the_same_bytes(monkeypatch, threads):
    rng = np.random.default_rng(threads)
    size = 30_003  # several blocks, the last one short
    previous = rng.normal(0, 0.02, size).astype(np.float32)
    updates = {f"client-{n}": one for n, one in enumerate(random_clients(rng, size, 7))}
    updates["all"] = update(9, np.ones(size, dtype=bool), rng.normal(0, 0.02, size))
    monkeypatch.setattr("perfit.sweep._LONGEST", 2000)
    monkeypatch.setattr("perfit.aggregation.threads", lambda: threads)
    expected, swept = (Cohort(["values"], {"values": previous}, dict, Aggregation(), min_holders=2) for _ in range(2))
    for name, one in updates.items():
        expected.add(name, one)
    for name, one in reversed(updates.items()):
        swept.announce(name, Update(one.mask, size, {}, one.samples))
    swept.sweep("values", {name: reading(one.vectors["values"]) for name, one in updates.items()})
    mean = swept.average("values", previous)
    same_bits(mean, expected.average("values", previous))
    same_bits(swept.average("values", np.float32(0)), expected.average("values", np.float32(0)))
    assert_array_equal(swept.holders, expected.holders)
    assert swept.measures == expected.measures
    assert swept.change("values", mean) == expected.change("values", mean) > 0
    assert swept.positions_by_mean == swept.positions_shared == np.count_nonzero(expected.shared) < size


@pytest.mark.parametrize("rule", ["mean", "median"])
def test_updates_in_a_file_are_not_mapped(monkeypatch, rule):
    monkeypatch.setattr("perfit.sweep._LONGEST", 9000)
    rng, size, scratch = np.random.default_rng(3), 70_003, Scratch(2**23)
    previous = rng.normal(0, 0.02, size).astype(np.float32)
    updates = {f"client-{n}": one for n, one in enumerate(random_clients(rng, size, 9))}
    kept = {
        name: Update(scratch.keep(one.mask), size, {"values": scratch.keep(one.vectors["values"])}, one.samples)
        for name, one in updates.items()
    }
    cohort = Cohort(["values"], {"values": previous}, dict, Aggregation(rule=rule), scratch=scratch)
    for name, one in kept.items():
        cohort.add(name, one)
    scratch.release()
    holders, mean = cohort.holders, cohort.average("values", previous)
    assert resident(scratch) == 0
    expected = cohort_of(updates, previous, **Aggregation(rule=rule).model_dump())
    same_bits(mean, expected.average("values", previous))
    assert_array_equal(holders, expected.holders)


def test_holders_follow_what_is_added():
    cohort = cohort_of({"ann": client(1, [1.0, None, 2.0])}, np.zeros(3, np.float32))
    assert_array_equal(cohort.holders, [1, 0, 1])
    cohort.add("bob", client(1, [1.0, 5.0, None]))
    assert_array_equal(cohort.holders, [2, 1, 1])


def test_without_updates_everything_stays():
    cohort = cohort_of({})
    same_bits(cohort.average("values", PREVIOUS), PREVIOUS)
    assert not cohort.shared.any()


def test_an_update_beyond_the_limits_counts_for_less_and_keeps_its_direction():
    # Changes of 1, 2 and 12 from 10: the median is 2, and three times that 6, half of eve's.
    updates = {name: client(1, [10.0 + change]) for name, change in [("ann", 1), ("bob", 2), ("eve", 12)]}
    cohort = cohort_of(updates, PREVIOUS[:1], clip=3)
    assert_array_equal(cohort.average("values", PREVIOUS[:1]), np.float32([10 + (1 + 2 + 6) / 3]))
    assert [(name, scale.factors) for name, scale in cohort.limited.items()] == [("eve", {"values": 0.5})]
    assert {name: measured.changes["values"] for name, measured in cohort.measures.items()} == {
        "ann": 1,
        "bob": 2,
        "eve": 12,
    }


def test_a_claimed_sample_count_is_capped_and_counts_nothing_in_a_median():
    updates = {"ann": client(1, [1.0]), "bob": client(1, [2.0]), "eve": client(10**9, [7.0])}
    assert_array_equal(cohort_of(updates, PREVIOUS[:1], max_share=0.5).average("values", 0), [(1 + 2 + 2 * 7) / 4])
    assert_array_equal(cohort_of(updates, PREVIOUS[:1], max_share=1, rule="median").average("values", 0), [2])


@pytest.mark.parametrize("at", [slice(0, 1), slice(0, 29), slice(3, 5), slice(8, 16), slice(9, 29), slice(28, 29)])
def test_parts_of_a_range_of_positions(at):
    rng = np.random.default_rng(2)
    previous = rng.normal(0, 0.02, 29).astype(np.float32)
    updates = {f"client-{n}": one for n, one in enumerate(random_clients(rng, 29, 12))}  # client-10 is before client-2
    parts = list(cohort_of(updates, previous).parts("values", at))
    assert len(parts) == len(updates)
    for name, (shared, values, weight) in zip(sorted(updates), parts, strict=True):
        dense = np.zeros(29, dtype=np.float32)
        dense[updates[name].positions] = updates[name].vectors["values"]
        assert_array_equal(shared, np.flatnonzero(updates[name].positions[at]))
        same_bits(values, dense[at][shared])
        assert weight == updates[name].samples


def test_parts_are_within_the_limits():
    # As below: eve's change of 12 counts half, and her weight is that of the others together.
    values = {"ann": (1, 11.0), "bob": (2, 12.0), "eve": (99, 22.0)}
    updates = {name: client(samples, [None, value]) for name, (samples, value) in values.items()}
    parts = cohort_of(updates, PREVIOUS[[0, 0]], clip=3, max_share=0.5).parts("values", slice(1, 2))
    assert [(values.tolist(), weight) for _, values, weight in parts] == [([11], 1), ([12], 2), ([16], 3)]


def test_a_client_has_one_update():
    cohort = cohort_of({"ann": client(1, [1.0] * 6)})
    with pytest.raises(ValueError, match="'ann' has an update already"):
        cohort.add("ann", client(1, [2.0] * 6))
