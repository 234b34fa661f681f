"""What a client does in its pod."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from perfit.adapter import SparseAdapter
from perfit.client import evaluate, find_mask, load_client_data, load_expanded, tune
from perfit.errors import PerfitError, TrainingDiverged
from perfit.evaluation import perplexity
from perfit.lora import set_dense
from perfit.spec import Client

from .tiny import base_hash, loaded, write_records


def start_of(model, federation, client_id: str) -> SparseAdapter:
    """Initial values on a plain mask of the client's rank."""
    mask = model.space.plain_mask(federation.rank_of(federation.client(client_id)))
    return SparseAdapter(model.space, mask, model.space.initial_values(federation.training.seed)[mask])


def tune_one(federation, client_id: str, model=None, data=None, round: int = 1):
    if model is None:
        model, data = loaded(federation)
    start = start_of(model, federation, client_id)
    return tune(model, federation, federation.client(client_id), round, data[client_id], start)


def test_records_are_split_by_client(make_federation):
    _, data = loaded(make_federation())
    assert [(len(d.train.examples), len(d.held_out.examples)) for d in data.values()] == [(6, 2), (4, 1)]
    again = loaded(make_federation())[1]
    assert data["ann"].held_out.lines == again["ann"].held_out.lines
    assert not set(data["ann"].train.lines) & set(data["ann"].held_out.lines)


def test_held_out_data_of_its_own(make_federation, tiny_tokenizer, tmp_path):
    write_records(tmp_path / "train.jsonl", "train", 4)
    write_records(tmp_path / "test.jsonl", "test", 3)
    client = Client(id="ann", data="s3://b/train.jsonl", held_out="s3://b/test.jsonl")
    data = load_client_data(make_federation(), client, tiny_tokenizer, lambda uri: uri.replace("s3://b", str(tmp_path)))
    assert (len(data.train.examples), len(data.held_out.examples)) == (4, 3)
    assert data.held_out.source == str(tmp_path / "test.jsonl")


def test_missing_data_is_named(make_federation, tiny_tokenizer, tmp_path):
    client = Client(id="ann", data=str(tmp_path / "none.jsonl"))
    with pytest.raises(PerfitError, match=r"none\.jsonl: no such file"):
        load_client_data(make_federation(), client, tiny_tokenizer)


def test_a_tuning(make_federation):
    federation = make_federation(training={"steps": 12, "batch_size": 6})
    model, data = loaded(federation)
    before = base_hash(model.peft)
    tuning = tune_one(federation, "ann", model, data)
    start = start_of(model, federation, "ann")
    assert_array_equal(tuning.adapter.mask, start.mask)
    assert tuning.adapter.values.dtype == np.float32
    assert np.any(tuning.adapter.values != start.values)
    assert len(tuning.losses) == 12
    assert tuning.losses[-1] < tuning.losses[0]
    assert base_hash(model.peft) == before


def test_perplexities_are_those_of_the_values_before_and_after(make_federation):
    federation = make_federation(training={"steps": 4})
    model, data = loaded(federation)
    tuning = tune_one(federation, "bob", model, data)
    client = federation.client("bob")
    start = start_of(model, federation, "bob")
    before = evaluate(model, federation, client, data["bob"], start.dense())
    after = evaluate(model, federation, client, data["bob"], tuning.adapter.dense())
    assert (tuning.perplexity_before, tuning.perplexity_after) == (before, after)
    assert before != after


def test_with_b_at_zero_the_adapter_changes_nothing(make_federation):
    federation = make_federation()
    model, data = loaded(federation)
    value = evaluate(model, federation, federation.client("ann"), data["ann"], model.space.initial_values(5))
    with model.peft.disable_adapter():
        base = perplexity(model.peft, data["ann"].held_out.examples, model.tokenizer, 2)
    assert value == base


def test_it_does_not_matter_who_came_before(make_federation):
    federation = make_federation()
    model, data = loaded(federation)
    initial = model.space.initial_values(0)
    find_mask(model, federation, federation.client("ann"), data["ann"], initial)
    tune_one(federation, "ann", model, data)
    set_dense(model.peft, model.space, np.ones(model.space.size, np.float32))
    after_others = tune_one(federation, "bob", model, data)
    alone = tune_one(federation, "bob")
    assert after_others.losses == alone.losses
    assert_array_equal(after_others.adapter.values, alone.adapter.values)
    assert after_others.perplexity_after == alone.perplexity_after


def test_nor_whether_it_failed(make_federation):
    federation = make_federation()
    model, data = loaded(federation)
    wild = make_federation(training={"learning_rate": 1e30, "steps": 3})
    ones = np.ones(model.space.size, dtype=bool)
    start = SparseAdapter(model.space, ones, np.full(model.space.size, 0.1, np.float32))
    with pytest.raises(TrainingDiverged, match="at step 2 of 3"):
        tune(model, wild, wild.client("ann"), 1, data["ann"], start)
    assert_array_equal(
        tune_one(federation, "bob", model, data).adapter.values, tune_one(federation, "bob").adapter.values
    )


def test_rounds_shuffle_differently(make_federation):
    federation = make_federation()
    first, again, second = (tune_one(federation, "ann", round=round) for round in (1, 1, 2))
    assert first.losses == again.losses
    assert first.losses != second.losses


@pytest.mark.parametrize("threads", [1, 2])
def test_a_client_uses_the_threads_of_its_tier(make_federation, threads):
    federation = make_federation(tiers={"default": {"cpu": threads}})
    tune_one(federation, "ann")
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"], "all-linear"], ids=str)
def test_a_gpt2_with_its_conv1d(make_federation, tiny_gpt2, targets):
    federation = make_federation(model=tiny_gpt2, lora={"target_modules": targets})
    model, data = loaded(federation)
    before = base_hash(model.peft)
    first = {m.name: (m.rows, m.columns) for m in model.space.matrices[:2]}
    assert first == {
        "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": (4, 32),
        "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight": (96, 4),
    }
    client, initial = federation.client("ann"), model.space.initial_values(0)
    mask = find_mask(model, federation, client, data["ann"], initial)
    assert np.count_nonzero(mask) == model.space.budget(2)
    tuning = tune(model, federation, client, 1, data["ann"], SparseAdapter(model.space, mask, initial[mask]))
    assert np.any(tuning.adapter.values != initial[mask])
    assert base_hash(model.peft) == before


def test_bfloat16_runs_on_the_cpu(make_federation):
    federation = make_federation(training={"precision": "bfloat16", "steps": 1})
    model, data = loaded(federation)
    mask = find_mask(model, federation, federation.client("bob"), data["bob"], model.space.initial_values(0))
    assert np.count_nonzero(mask) == model.space.budget(1)
    tuning = tune_one(federation, "bob", model, data)
    assert np.isfinite([*tuning.losses, tuning.perplexity_before, tuning.perplexity_after]).all()
    assert np.any(tuning.adapter.values != start_of(model, federation, "bob").values)


def test_an_unknown_model_or_target_is_named(make_federation):
    with pytest.raises(PerfitError, match=r"^model: /no/such/model does not exist"):
        load_expanded(make_federation(model="/no/such/model"), Path("unused"))
    with pytest.raises(PerfitError, match="no linear module 'qqq'"):
        load_expanded(make_federation(lora={"target_modules": ["qqq"]}), Path("unused"))
