"""The schedule, the choice of positions, and exact budgets, by hand and over random spaces."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.errors import PerfitError
from perfit.pruning import cubic_schedule, dead_layers, groups, keep_highest, prune
from perfit.space import LoraSpace


def make_space(rank: int, *features: tuple[int, int]) -> LoraSpace:
    """Modules of the given (in, out) features."""
    shapes = {}
    for i, (into, out) in enumerate(features):
        shapes |= {f"m{i}.lora_A.weight": (rank, into), f"m{i}.lora_B.weight": (out, rank)}
    return LoraSpace.from_shapes(shapes)


def test_schedule_by_hand():
    # 6 steps after the warm-up for 3 prunings: every second one; (1 - i/3)**3 is left of what is redundant.
    assert cubic_schedule(10, 4, 3) == pytest.approx({6: 8 / 27, 8: 1 / 27, 10: 0})
    # 5 steps for 3 prunings: after 5/3, 10/3 and 5 steps, rounded up.
    assert list(cubic_schedule(7, 2, 3)) == [4, 6, 7]
    assert cubic_schedule(4, 0, 4) == pytest.approx({1: 27 / 64, 2: 1 / 8, 3: 1 / 64, 4: 0})
    assert cubic_schedule(5, 4, 1) == {5: 0}


def test_every_schedule_ends_with_nothing_redundant():
    for steps in range(1, 12):
        for warmup in range(steps):
            for iterations in range(1, steps - warmup + 1):
                schedule = cubic_schedule(steps, warmup, iterations)
                assert len(schedule) == iterations
                assert warmup < min(schedule)
                assert max(schedule) == steps
                assert schedule[steps] == 0
                assert list(schedule) == sorted(schedule)
                assert list(schedule.values()) == sorted(set(schedule.values()), reverse=True)
                assert max(schedule.values()) < 1


@pytest.mark.parametrize(("steps", "warmup", "iterations"), [(10, 4, 7), (10, 4, 0), (4, 4, 1), (3, 5, 1)])
def test_schedules_that_do_not_fit(steps, warmup, iterations):
    with pytest.raises(PerfitError, match=f"pruning_iterations is {iterations}, but {steps - warmup} of {steps}"):
        cubic_schedule(steps, warmup, iterations)


def test_groups():
    space = make_space(2, (3, 5), (4, 2))
    assert groups(space, "global") == [slice(0, 28)]
    assert groups(space, "layer") == [slice(0, 16), slice(16, 28)]
    assert groups(space, "matrix") == [slice(0, 6), slice(6, 16), slice(16, 24), slice(24, 28)]


def test_a_layer_of_which_only_one_matrix_is_held_is_dead():
    space = make_space(1, (2, 2), (1, 1))
    first, second = space.layers()
    for mask, dead in {
        (1, 1, 1, 1, 1, 1): [],
        (1, 0, 0, 1, 0, 0): [],
        (1, 1, 0, 0, 1, 1): [first],
        (0, 0, 0, 1, 0, 1): [first, second],
        (0, 0, 0, 0, 1, 1): [],
    }.items():
        assert dead_layers(space, np.array(mask, dtype=bool)) == dead


SCORES = np.array([3.0, 1.0, 2.0, 2.0, 5.0, 2.0, 0.0])


@pytest.mark.parametrize(
    ("keep", "expected"),
    [
        (0, [0, 0, 0, 0, 0, 0, 0]),
        (1, [0, 0, 0, 0, 1, 0, 0]),
        (2, [1, 0, 0, 0, 1, 0, 0]),
        (3, [1, 0, 0, 0, 1, 1, 0]),  # positions 2, 3 and 5 tie; 5 has the lowest tie-break, then 2
        (4, [1, 0, 1, 0, 1, 1, 0]),
        (5, [1, 0, 1, 1, 1, 1, 0]),
        (7, [1, 1, 1, 1, 1, 1, 1]),
    ],
)
def test_keep_highest_by_hand(keep, expected):
    tie_break = np.array([6, 5, 3, 4, 2, 1, 0])
    assert_array_equal(keep_highest(SCORES, np.ones(7, bool), keep, tie_break), np.array(expected, bool))


def test_keep_highest_among_candidates_alone():
    candidates = np.array([0, 1, 1, 0, 0, 1, 1], dtype=bool)
    scores = np.where(candidates, SCORES, np.nan)
    kept = keep_highest(scores, candidates, 2, np.arange(7))
    assert_array_equal(np.flatnonzero(kept), [2, 5])


def test_keep_highest_takes_negative_scores():
    assert_array_equal(keep_highest(np.array([-3.0, -1, -2]), np.ones(3, bool), 2, np.arange(3)), [False, True, True])


def test_what_keep_highest_refuses():
    ones = np.ones(7, bool)
    with pytest.raises(ValueError, match="cannot keep 8 of 7"):
        keep_highest(SCORES, ones, 8, np.arange(7))
    for bad in (np.nan, np.inf):
        with pytest.raises(ValueError, match="not finite"):
            keep_highest(np.where(SCORES == 1, bad, SCORES), ones, 2, np.arange(7))


def test_prune_by_hand():
    # Ranks 1 of 2: budget 4 of 8. Of the 4 others round(4 * 0.3) = 1 stays for now.
    space = make_space(2, (3, 1))
    scores = np.array([8, 7, 6, 5, 4, 3, 2, 1], dtype=np.float32)
    options = {"rank": 1, "scope": "layer", "seed": 0}
    first = prune(space, np.ones(8, bool), scores, redundant=0.3, **options)
    assert_array_equal(first, [1, 1, 1, 1, 1, 0, 0, 0])
    # Later scores cannot bring a pruned position back.
    second = prune(space, first, scores[::-1].copy(), redundant=0, **options)
    assert_array_equal(second, [0, 1, 1, 1, 1, 0, 0, 0])


def test_layer_scope_keeps_a_budget_a_module_and_global_scope_does_not():
    space = make_space(2, (3, 1), (1, 3))
    scores = np.concatenate([np.full(8, 2.0), np.full(8, 1.0)]).astype(np.float32)
    kept = {
        scope: prune(space, np.ones(16, bool), scores, rank=1, redundant=0, scope=scope, seed=0)
        for scope in ("layer", "global")
    }
    assert [np.count_nonzero(kept["layer"][part]) for part in space.layers().values()] == [4, 4]
    assert [np.count_nonzero(kept["global"][part]) for part in space.layers().values()] == [8, 0]


def test_ties_favour_no_matrix():
    space = make_space(8, (50, 50), (50, 50))
    mask = prune(space, np.ones(space.size, bool), np.zeros(space.size), rank=2, redundant=0, scope="layer", seed=1)
    shares = [block.mean() for block in space.split(mask).values()]
    assert shares == pytest.approx([0.25] * 4, abs=0.05)
    other = prune(space, np.ones(space.size, bool), np.zeros(space.size), rank=2, redundant=0, scope="layer", seed=2)
    assert np.any(mask != other)


def draw_scores(rng: np.random.Generator, size: int) -> np.ndarray:
    """Scores with no, some, or nothing but ties."""
    kinds = [rng.random(size), rng.integers(0, 3, size), np.zeros(size), (rng.random(size) < 0.05) * 1.0]
    return kinds[rng.integers(len(kinds))].astype(np.float32)


@pytest.mark.parametrize("scope", ["matrix", "layer", "global"])
@pytest.mark.parametrize("seed", range(30))
def test_the_whole_schedule_leaves_exactly_the_budget(scope, seed):
    rng = np.random.default_rng(seed)
    rank = int(rng.integers(1, 5))
    features = rng.integers(1, 9, size=(rng.integers(1, 4), 2)).tolist()
    space = make_space(rank * int(rng.integers(1, 4)), *features)
    steps = int(rng.integers(1, 8))
    mask = np.ones(space.size, dtype=bool)
    for redundant in cubic_schedule(steps, 0, int(rng.integers(1, steps + 1))).values():
        scores = draw_scores(rng, space.size)
        before, mask = (
            mask,
            prune(space, mask, scores, rank=rank, redundant=redundant, scope=scope, seed=seed),
        )
        assert not np.any(mask & ~before)
        assert np.count_nonzero(mask) >= space.budget(rank)
    assert np.count_nonzero(mask) == space.budget(rank)
    if scope == "layer":
        for part, (into, out) in zip(space.layers().values(), features, strict=True):
            assert np.count_nonzero(mask[part]) == rank * (into + out)
    if rank == space.rank:
        assert mask.all()
