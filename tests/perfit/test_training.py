"""Local training against steps computed by hand from the model's own loss and gradient."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from perfit.adapter import SparseAdapter
from perfit.client import load_expanded
from perfit.errors import TrainingDiverged
from perfit.evaluation import perplexity
from perfit.examples import IGNORE_INDEX, Example
from perfit.exchange import pack
from perfit.lora import read_values
from perfit.spec import Training
from perfit.training import features, train

from .tiny import base_hash, compact_adapter, loaded

LEARNING_RATE = 0.01


def options(**changes) -> Training:
    return Training(**{"learning_rate": LEARNING_RATE, "batch_size": 6, "sequence_length": 64, **changes})


def full_adapter(space) -> SparseAdapter:
    values = np.random.default_rng(0).normal(0, 0.1, space.size).astype(np.float32)
    return SparseAdapter(space, np.ones(space.size, dtype=bool), values)


def six(data) -> list[Example]:
    """Six of ann's training records: one batch of `options`."""
    return data["ann"].train.examples[:6]


def run(spec, settings: Training, steps: int, seed: int = 0, **more) -> tuple[list[float], np.ndarray]:
    """Train six of ann's examples from the same values; return losses and values."""
    model, data = loaded(spec)
    with compact_adapter(model, full_adapter(model.space)) as vectors:
        losses = train(model.peft, six(data), model.tokenizer, settings, steps=steps, seed=seed, **more)
        return losses, read_values(vectors)


def test_features_of_an_example():
    assert features(Example([5, 6, 7], [IGNORE_INDEX, 6, 7])) == {
        "input_ids": [5, 6, 7],
        "attention_mask": [1, 1, 1],
        "labels": [IGNORE_INDEX, 6, 7],
    }


@pytest.mark.parametrize(("batch_size", "accumulation"), [(6, 1), (3, 2), (2, 3), (1, 6)])
def test_the_loss_is_nats_a_response_token_however_it_is_batched(make_federation, batch_size, accumulation):
    spec = make_federation()
    model, data = loaded(spec)
    with compact_adapter(model, full_adapter(model.space)):
        expected = math.log(perplexity(model.peft, six(data), model.tokenizer, 6))
    settings = options(batch_size=batch_size, gradient_accumulation=accumulation)
    losses, _ = run(spec, settings, steps=1)
    assert losses == pytest.approx([expected], rel=1e-5)


def start_and_gradient(spec, settings: Training) -> tuple[np.ndarray, np.ndarray]:
    """The values that a training starts from, and the clipped gradient of its first step, by autograd alone."""
    model, data = loaded(spec)
    examples = six(data)
    with compact_adapter(model, full_adapter(model.space)) as vectors:
        total = 0.0
        for example in examples:
            tokens = sum(label != IGNORE_INDEX for label in example.labels)
            inputs = {key: torch.tensor([value]) for key, value in features(example).items()}
            total = total + model.peft(**inputs).loss * tokens
        count = sum(label != IGNORE_INDEX for example in examples for label in example.labels)
        (total / count).backward()
        gradient = np.concatenate([vector.grad.numpy() for vector in vectors.values()]).astype(np.float64)
        values = read_values(vectors).astype(np.float64)
    return values, gradient * min(1, settings.max_gradient_norm / np.linalg.norm(gradient))


def adamw_step(spec, settings: Training) -> np.ndarray:
    """One step of AdamW (Loshchilov & Hutter, 2019) from zero moments, written out."""
    values, gradient = start_and_gradient(spec, settings)
    # Bias-corrected, the moments of the first step are the gradient and its square.
    values -= settings.learning_rate * settings.weight_decay * values
    return values - settings.learning_rate * gradient / (np.abs(gradient) + 1e-8)


@pytest.mark.parametrize("changes", [{}, {"max_gradient_norm": 1e-7}, {"weight_decay": 0.5}], ids=str)
def test_a_step_is_one_of_adamw(make_federation, changes):
    spec, settings = make_federation(), options(**changes)
    _, values = run(spec, settings, steps=1)
    # Where a gradient is near zero its sign is rounding: compare all but a few.
    error = np.abs(values - adamw_step(spec, settings))
    assert np.quantile(error, 0.99) < 0.01 * LEARNING_RATE


def test_the_rate_rises_over_the_warm_up(make_federation):
    """Plain gradient descent moves by the rate x the gradient, whose norm is always clipped: 0, 1/2, 1, 1 of it."""
    spec = make_federation()
    settings = options(optimizer="sgd", max_gradient_norm=1e-3, warmup_steps=2)
    starts = [run(spec, settings, steps=steps)[1] for steps in range(1, 5)]
    start = start_and_gradient(spec, settings)[0]
    moves = [np.linalg.norm(b - a) for a, b in pairwise([start, *starts])]
    assert_allclose(moves, np.array([0, 0.5, 1, 1]) * 1e-3 * LEARNING_RATE, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
    ("decay", "round", "rate"),
    [(None, 9, 1), (2, 1, 1), (2, 2, 0.55), (2, 3, 0.1), (2, 9, 0.1), (4, 2, 0.1 + 0.45 * (1 + math.sqrt(0.5)))],
)
def test_the_rate_falls_over_rounds_by_half_a_cosine_to_a_tenth(decay, round, rate):
    settings = Training(learning_rate=0.02, decay_rounds=decay)
    assert settings.of_round(round).learning_rate == pytest.approx(0.02 * rate)


@pytest.mark.parametrize("limit", [1e9, 1e-3])
def test_a_step_of_sgd_is_the_rate_times_the_gradient(make_federation, limit):
    spec, settings = make_federation(), options(optimizer="sgd", max_gradient_norm=limit)
    _, values = run(spec, settings, steps=1)
    start, gradient = start_and_gradient(spec, settings)
    move = LEARNING_RATE * gradient
    assert_allclose(values - start, -move, atol=1e-3 * np.abs(move).max() + 2e-8)  # values near 0.3 have float32's ulp


def test_steps_go_on_beyond_the_end_of_the_data(make_federation):
    seen: list[tuple[int, int, float]] = []
    losses, _ = run(make_federation(), options(batch_size=4), steps=5, on_step=lambda *args: seen.append(args))
    assert [step for step, _, _ in seen] == [1, 2, 3, 4, 5]
    assert {steps for _, steps, _ in seen} == {5}
    assert [loss for _, _, loss in seen] == losses


def test_the_loss_falls(make_federation):
    losses, _ = run(make_federation(), options(), steps=15)
    assert losses[-1] < losses[0] - 0.5


def test_the_rate_is_constant(make_federation):
    # Far from convergence AdamW moves a value by about the rate each step, the last one as the first.
    results = [run(make_federation(), options(), steps)[1] for steps in (1, 2, 3)]
    moves = [np.median(np.abs(after - before)) for before, after in pairwise(results)]
    assert moves == pytest.approx([LEARNING_RATE] * 2, rel=0.5)


def test_the_seed_decides_the_order(make_federation):
    spec = make_federation()
    first, again, other = (run(spec, options(batch_size=2), steps=3, seed=seed) for seed in (1, 1, 2))
    assert first[0] == again[0]
    assert_array_equal(first[1], again[1])
    assert np.any(first[1] != other[1])


def test_gradient_checkpointing_changes_no_value(make_federation):
    spec = make_federation()
    plain, checkpointed = (run(spec, options(gradient_checkpointing=on), steps=2) for on in (False, True))
    assert_array_equal(checkpointed[1], plain[1])


def test_bfloat16_keeps_the_trainable_values_in_float32(make_federation):
    spec = make_federation(training={"precision": "bfloat16"})
    model = load_expanded(spec, "unused")
    base = {p.dtype for name, p in model.peft.named_parameters() if "lora_" not in name}
    assert base == {torch.bfloat16}
    losses, values = run(spec, options(precision="bfloat16"), steps=1)
    exact, _ = run(make_federation(), options(), steps=1)
    assert losses == pytest.approx(exact, rel=0.02)
    assert values.dtype == np.float32
    assert np.any(values != pack(values, "bfloat16", seed=0).unpack())


def test_a_loss_that_is_not_finite_ends_the_training(make_federation):
    model, data = loaded(make_federation())
    before = base_hash(model.peft)
    adapter = full_adapter(model.space)
    with (
        pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) at step 2 of 5"),
        compact_adapter(model, adapter),
    ):
        train(
            model.peft,
            six(data),
            model.tokenizer,
            options(learning_rate=1e30),
            steps=5,
            seed=0,
        )
    assert base_hash(model.peft) == before
    # The model can be used for the next client.
    with compact_adapter(model, adapter) as vectors:
        losses = train(model.peft, six(data), model.tokenizer, options(), steps=1, seed=0)
        after = read_values(vectors)
    expected = run(make_federation(), options(), steps=1)
    assert losses == expected[0]
    assert_array_equal(after, expected[1])


def test_training_prints_nothing_and_leaves_no_file(make_federation, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    model, data = loaded(make_federation())
    capfd.readouterr()
    with compact_adapter(model, full_adapter(model.space)):
        train(model.peft, six(data), model.tokenizer, options(), steps=2, seed=0)
    assert capfd.readouterr().out == ""
    assert list(tmp_path.iterdir()) == []


def test_values_near_those_of_other_batches(make_federation):
    spec = make_federation()
    whole = run(spec, options(), steps=1)[1]
    parts = run(spec, options(batch_size=2, gradient_accumulation=3), steps=1)[1]
    assert_allclose(np.quantile(np.abs(whole - parts), 0.99), 0, atol=0.01 * LEARNING_RATE)
