"""The search on a tiny model: exact budgets, and scores computed by hand from weights and gradients."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from perfit.client import find_architecture, search_again
from perfit.errors import PerfitError, TrainingDiverged
from perfit.evaluation import perplexity
from perfit.lora import dense_weights, set_dense
from perfit.round import Received
from perfit.search import search_architecture
from perfit.seeds import derive_seed
from perfit.training import features

from .tiny import base_hash, loaded

SEARCHED, DRAWN = ("taylor", "magnitude", "gradient"), ("random", "common")
SCOPES = ("matrix", "layer", "global")
CASES = list(itertools.product((*SEARCHED, *DRAWN), SCOPES))


def find(spec, client_id: str, model=None, data=None, **more) -> np.ndarray:
    """Search one client's mask from the federation's initial values."""
    if model is None:
        model, data = loaded(spec)
    return find_architecture(model, spec, spec.client(client_id), data[client_id], **more)


def find_from(initial: np.ndarray, spec, client_id: str, model, data, seed: int = 0) -> np.ndarray:
    """Search one client's mask from given values."""
    return search_architecture(
        model.peft,
        model.space,
        data[client_id].train.examples,
        model.tokenizer,
        spec.search,
        spec.training,
        initial=initial,
        rank=spec.rank_of(spec.client(client_id)),
        seed=seed,
    )


def drawn(model) -> np.ndarray:
    """Values of which B is not zero: from the initial ones, few steps leave some metrics no reason to keep any of A."""
    return np.random.default_rng(0).normal(0, 0.2, model.space.size).astype(np.float32)


def dense_values(model) -> np.ndarray:
    return np.concatenate([w.detach().numpy().ravel() for w in dense_weights(model.peft).values()])


@pytest.mark.parametrize(("metric", "scope"), CASES)
def test_the_mask_has_exactly_its_budget(make_federation, metric, scope):
    spec = make_federation(method={"metric": metric, "scope": scope})
    model, data = loaded(spec)
    # q: 32 + 32, v: 32 + 16 parameters a rank, in two layers.
    for client, rank in [("ann", 2), ("bob", 1)]:
        mask = find_from(drawn(model), spec, client, model, data)
        assert (mask.dtype, mask.shape) == (bool, (model.space.size,))
        assert np.count_nonzero(mask) == rank * 2 * (64 + 48)
        if scope == "matrix":
            counts = [np.count_nonzero(mask[part]) for part in model.space.slices.values()]
            assert counts == [rank * 32, rank * 32, rank * 32, rank * 16] * 2
        if scope == "layer":
            counts = [np.count_nonzero(mask[part]) for part in model.space.layers().values()]
            assert counts == [rank * 64, rank * 48] * 2


@pytest.mark.parametrize(("metric", "scope"), CASES)
def test_exactly_its_budget_with_one_module(make_federation, metric, scope):
    spec = make_federation(
        method={"metric": metric, "scope": scope},
        lora={"target_modules": ["layers.1.self_attn.q_proj"], "rank": 3, "expansion": 3},
    )
    model, data = loaded(spec)
    for client, rank in [("ann", 3), ("bob", 1)]:
        assert np.count_nonzero(find_from(drawn(model), spec, client, model, data)) == rank * 64


@pytest.mark.parametrize(("metric", "scope"), CASES)
def test_exactly_its_budget_when_all_scores_tie(make_federation, metric, scope):
    spec = make_federation(method={"metric": metric, "scope": scope})
    model, data = loaded(spec)
    # With A and B zero no parameter has a weight or a gradient, and training moves none.
    for client, rank in [("ann", 2), ("bob", 1)]:
        mask = find_from(np.zeros(model.space.size, np.float32), spec, client, model, data)
        assert metric in DRAWN or not dense_values(model).any()
        assert np.count_nonzero(mask) == model.space.budget(rank)


@pytest.mark.parametrize("metric", [*SEARCHED, *DRAWN])
def test_with_expansion_1_the_largest_client_has_nothing_to_prune(make_federation, metric):
    spec = make_federation(method={"metric": metric}, lora={"expansion": 1})
    model, data = loaded(spec)
    steps: list[int] = []
    assert find(spec, "ann", model, data, on_step=lambda step, *_: steps.append(step)).all()
    assert steps == []
    assert np.count_nonzero(find(spec, "bob", model, data)) == model.space.budget(1)


def test_survivors_follow_the_schedule(make_federation):
    spec = make_federation(method={"scope": "global", "search_steps": 6, "warmup_steps": 2, "pruning_iterations": 2})
    model, data = loaded(spec)
    alive: list[int] = []
    find(spec, "bob", model, data, on_step=lambda *_: alive.append(np.count_nonzero(dense_values(model))))
    # Rank 1 of 4 keeps 224 of 896. Of the 672 others (1/2)**3 are left after step 4, and none after step 6.
    assert alive == [896, 896, 896, 224 + 84, 224 + 84, 224]


def test_one_step_and_one_pruning(make_federation):
    spec = make_federation(method={"search_steps": 1, "warmup_steps": 0, "pruning_iterations": 1})
    assert np.count_nonzero(find(spec, "bob")) == 224  # of rank 1: twice 32 + 32 and 32 + 16


def test_pruned_positions_are_zero_and_the_backbone_as_it_was(make_federation):
    spec = make_federation(method={"search_steps": 6, "pruning_iterations": 3})
    model, data = loaded(spec)
    before = base_hash(model.peft)
    mask = find(spec, "bob", model, data)
    values = dense_values(model)
    assert not values[~mask].any()
    assert values[mask].any()
    assert base_hash(model.peft) == before


def test_magnitude_is_the_distance_from_the_start(make_federation):
    # One step of SGD moves each weight by rate * gradient; the scores of the second step are these distances.
    spec = make_federation(
        method={
            "metric": "magnitude",
            "scope": "matrix",
            "search_steps": 2,
            "warmup_steps": 1,
            "pruning_iterations": 1,
        },
        training={"optimizer": "sgd", "batch_size": 6},
    )
    model, data = loaded(spec)
    examples = data["ann"].train.examples[:6]  # one batch
    initial = drawn(model)
    moved = np.abs(mean_gradient(model, examples, initial))
    mask = search_architecture(
        model.peft, model.space, examples, model.tokenizer, spec.search, spec.training, initial=initial, rank=1, seed=0
    )
    for part in model.space.slices.values():
        budget = (part.stop - part.start) // model.space.rank
        # The batch sums in another order, which may swap neighbours at the threshold.
        assert np.count_nonzero(mask[part] & (moved[part] >= np.sort(moved[part])[-budget])) >= budget - 1


def test_a_mask_that_would_leave_a_module_without_a_or_b_is_refused(make_federation):
    # Where B is zero, A has no gradient: by one step's gradients B takes the whole budget of every module.
    method = {"metric": "gradient", "search_steps": 1, "warmup_steps": 0, "pruning_iterations": 1}
    with pytest.raises(PerfitError, match=r"only A or only B of 4 modules.*\n.*method.scope: matrix"):
        find(make_federation(method=method), "bob")
    assert find(make_federation(method={**method, "scope": "matrix"}), "bob").any()


def mean_gradient(model, examples, values: np.ndarray) -> np.ndarray:
    """Gradient of the mean loss over response tokens, by plain autograd, shape (N,)."""
    set_dense(model.peft, model.space, values)
    model.peft.train()
    model.peft.zero_grad()
    for example in examples:
        inputs = {key: torch.tensor([value]) for key, value in features(example).items()}
        tokens = sum(label != -100 for label in example.labels)
        (model.peft(**inputs).loss * tokens).backward()
    return np.concatenate([w.grad.numpy().ravel() for w in dense_weights(model.peft).values()])


@pytest.mark.parametrize("metric", ["gradient", "taylor"])
def test_scores_by_plain_autograd(make_federation, metric):
    spec = make_federation(
        method={"metric": metric, "scope": "global", "search_steps": 1, "warmup_steps": 0, "pruning_iterations": 1},
        training={"batch_size": 6},
    )
    model, data = loaded(spec)
    examples = data["ann"].train.examples[:6]  # one batch
    initial = drawn(model)
    scores = np.abs(mean_gradient(model, examples, initial))
    if metric == "taylor":
        scores *= np.abs(initial)
    mask = search_architecture(
        model.peft,
        model.space,
        examples,
        model.tokenizer,
        spec.search,
        spec.training,
        initial=initial,
        rank=1,
        seed=0,
    )
    budget = model.space.budget(1)
    expected = scores >= np.sort(scores)[-budget]
    # The batch sums in another order, which may swap neighbours at the threshold.
    assert np.count_nonzero(mask & expected) >= budget - 1


def test_scores_add_up_over_the_steps_before_the_first_pruning(make_federation):
    # B starts at zero, so at first A has no gradient and B no Taylor score: both have one after the warm-up.
    spec = make_federation(method={"search_steps": 3, "warmup_steps": 2, "pruning_iterations": 1})
    model, data = loaded(spec)
    mask = find(spec, "ann", model, data)
    for block in model.space.split(mask).values():
        assert 0 < np.count_nonzero(block) < block.size


def test_the_search_follows_data_and_seed_alone(make_federation):
    spec = make_federation()
    model, data = loaded(spec)
    first = find(spec, "bob", model, data)
    find(spec, "ann", model, data)
    assert_array_equal(find(spec, "bob", model, data), first)
    assert_array_equal(find(spec, "bob"), first)
    assert np.any(find(make_federation(training={"seed": 1}), "bob") != first)


def test_clients_have_masks_of_their_own(make_federation):
    for metric in ("taylor", "random"):
        spec = make_federation(
            method={"metric": metric, "search_steps": 8, "pruning_iterations": 4},
            clients=[{**c.model_dump(), "rank": 2} for c in make_federation().clients],
        )
        model, data = loaded(spec)
        ann, bob = (find(spec, client, model, data) for client in ("ann", "bob"))
        assert 0 < np.count_nonzero(ann & bob) < np.count_nonzero(ann)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_drawn_mask_needs_no_step(make_federation, scope):
    ann, bob = make_federation().clients
    clients = [{**ann.model_dump(), "rank": 2}, {**bob.model_dump(), "rank": 1}]
    masks, steps = {}, []
    for metric, seed in itertools.product(DRAWN, (0, 1)):
        spec = make_federation(
            method={"metric": metric, "scope": scope}, training={"seed": seed}, clients=clients, lora={"expansion": 4}
        )
        model, data = loaded(spec)
        for client in ("ann", "bob"):
            mask = find(spec, client, model, data, on_step=lambda step, *_: steps.append(step))
            masks[metric, seed, client] = mask
    assert steps == []
    for metric, seed in itertools.product(DRAWN, (0, 1)):
        within = not np.any(masks[metric, seed, "bob"] & ~masks[metric, seed, "ann"])
        assert within == (metric == "common")  # Of rank 1 and 2: one mask for all means that one holds the other.
        assert np.any(masks[metric, 0, "ann"] != masks[metric, 1, "ann"])


@pytest.mark.parametrize("start", ["initial", "global"])
def test_what_a_search_again_starts_from(make_federation, start):
    spec = make_federation(method={"search_every": 1, "search_from": start})
    model, data = loaded(spec)
    held = model.space.plain_mask(1)
    received = Received(held & model.space.a_mask, {"values": drawn(model)[held & model.space.a_mask]})
    kept = {"values": np.full(np.count_nonzero(held), 0.25, np.float32)}
    found = search_again(model, spec, spec.client("bob"), 2, data["bob"], held, received, kept)
    initial = model.space.initial_values(spec.training.seed)
    if start == "global":  # The server's values where it sent some, the client's own elsewhere in its mask.
        initial[held] = 0.25
        initial[held & model.space.a_mask] = drawn(model)[held & model.space.a_mask]
    seed = derive_seed(spec.training.seed, "search", "bob", 2)
    assert_array_equal(found, find_from(initial, spec, "bob", model, data, seed))
    assert np.any(found != find(spec, "bob", model, data))


def test_a_searched_architecture_trains_better_than_the_worst(make_federation):
    # What Taylor calls important carries more of the trained loss than what it prunes.
    spec = make_federation(
        method={"search_steps": 30, "warmup_steps": 29, "pruning_iterations": 1},
        training={"batch_size": 6},
    )
    model, data = loaded(spec)
    captured: list[np.ndarray] = []

    def on_step(step: int, steps: int, loss: float) -> None:
        if step == steps - 1:
            captured.append(dense_values(model))

    mask = find(spec, "ann", model, data, on_step=on_step)
    results = []
    for kept in (mask, ~mask):
        set_dense(model.peft, model.space, np.where(kept, captured[0], 0).astype(np.float32))
        results.append(perplexity(model.peft, data["ann"].train.examples, model.tokenizer, 6))
    assert results[0] < results[1]


@pytest.mark.parametrize("metric", SEARCHED)
def test_a_search_that_diverges_says_so(make_federation, metric):
    spec = make_federation(
        method={"metric": metric, "search_steps": 3, "warmup_steps": 0, "pruning_iterations": 3},
        training={"learning_rate": 1e30},
    )
    model, data = loaded(spec)
    initial = np.full(model.space.size, 0.1, np.float32)  # with B at zero the first step would move B alone
    with pytest.raises(TrainingDiverged, match="at step 2 of 3"):
        find_from(initial, spec, "bob", model, data)
