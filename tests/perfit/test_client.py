"""A client's round."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from perfit.adapter import SparseAdapter
from perfit.client import (
    VALIDATION_FRACTION,
    ClientData,
    ClientResult,
    evaluate,
    find_architecture,
    load_client_data,
    load_expanded,
    run_client,
)
from perfit.errors import PerfitError, TrainingDiverged
from perfit.evaluation import perplexity
from perfit.examples import ExampleSet, split_held_out
from perfit.exchange import BLOCK
from perfit.lora import set_dense
from perfit.round import ClientRound
from perfit.seeds import derive_seed
from perfit.spec import Client

from .methods.helpers import everything
from .tiny import base_hash, loaded, write_records


def start_of(model, spec, client_id: str) -> SparseAdapter:
    """Initial values on a plain mask of the client's rank."""
    mask = model.space.plain_mask(spec.rank_of(spec.client(client_id)))
    return SparseAdapter(model.space, mask, model.space.initial_values(spec.training.seed)[mask])


def run(model, spec, client_id: str, data, start: SparseAdapter, round: int = 1) -> ClientResult:
    """A client's round, on an architecture and from the server's values on it."""
    received = everything(ClientRound(spec, model.space, start.mask, 1).roles, {"values": start.dense()})
    return run_client(model, spec, spec.client(client_id), round, data[client_id], start.mask, received, kept={})


def run_one(spec, client_id: str, model=None, data=None, round: int = 1) -> ClientResult:
    if model is None:
        model, data = loaded(spec)
    return run(model, spec, client_id, data, start_of(model, spec, client_id), round)


def test_records_are_split_by_client(make_federation):
    _, data = loaded(make_federation())
    assert [(len(d.train.examples), len(d.held_out.examples)) for d in data.values()] == [(7, 1), (4, 1)]
    again = loaded(make_federation())[1]
    assert data["ann"].held_out.lines == again["ann"].held_out.lines
    assert not set(data["ann"].train.lines) & set(data["ann"].held_out.lines)


def test_records_that_two_clients_have_are_on_one_side_in_both(make_federation, tiny_tokenizer, tmp_path):
    write_records(tmp_path / "ann.jsonl", "rain", 40)
    lines = (tmp_path / "ann.jsonl").read_text().splitlines()
    (tmp_path / "eve.jsonl").write_text("\n".join(reversed(lines[10:])))
    clients = [Client(id=name, data=str(tmp_path / f"{name}.jsonl")) for name in ("ann", "eve")]
    ann, eve = (load_client_data(make_federation(), client, tiny_tokenizer) for client in clients)
    assert set(eve.held_out.digests) <= set(ann.held_out.digests)
    assert set(eve.train.digests) <= set(ann.train.digests)


def test_held_out_data_of_its_own(make_federation, tiny_tokenizer, tmp_path):
    write_records(tmp_path / "train.jsonl", "train", 4)
    write_records(tmp_path / "test.jsonl", "test", 3)
    client = Client(id="ann", data="s3://b/train.jsonl", held_out="s3://b/test.jsonl")
    data = load_client_data(make_federation(), client, tiny_tokenizer, lambda uri: uri.replace("s3://b", str(tmp_path)))
    assert (len(data.train.examples), len(data.held_out.examples)) == (4, 3)
    assert data.held_out.source == "s3://b/test.jsonl"


def test_missing_data_is_named(make_federation, tiny_tokenizer, tmp_path):
    client = Client(id="ann", data=str(tmp_path / "none.jsonl"))
    with pytest.raises(PerfitError, match=r"none\.jsonl: no such file"):
        load_client_data(make_federation(), client, tiny_tokenizer)


def test_a_round_of_tuning(make_federation):
    spec = make_federation(training={"steps": 12, "batch_size": 6})
    model, data = loaded(spec)
    before = base_hash(model.peft)
    result = run_one(spec, "ann", model, data)
    start = start_of(model, spec, "ann")
    assert_array_equal(result.adapter.mask, start.mask)
    assert result.adapter.values.dtype == np.float32
    assert np.any(result.adapter.values != start.values)
    assert len(result.losses) == 12
    assert result.losses[-1] < result.losses[0]
    assert base_hash(model.peft) == before


def test_perplexities_are_those_of_the_values_before_and_after(make_federation):
    spec = make_federation(training={"steps": 4})
    model, data = loaded(spec)
    result = run_one(spec, "bob", model, data)
    start = start_of(model, spec, "bob")
    before = evaluate(model, spec, data["bob"], start.dense())
    after = evaluate(model, spec, data["bob"], result.adapter.dense())
    assert (result.perplexity_before, result.perplexity_after) == (before, after)
    assert before != after


def test_with_b_at_zero_the_adapter_changes_nothing(make_federation):
    spec = make_federation()
    model, data = loaded(spec)
    value = evaluate(model, spec, data["ann"], model.space.initial_values(5))
    with model.peft.disable_adapter():
        base = perplexity(model.peft, data["ann"].held_out.examples, model.tokenizer, 2)
    assert value == base


def test_other_clients_do_not_affect_a_result(make_federation):
    spec = make_federation()
    model, data = loaded(spec)
    find_architecture(model, spec, spec.client("ann"), data["ann"])
    run_one(spec, "ann", model, data)
    set_dense(model.peft, model.space, np.ones(model.space.size, np.float32))
    after_others = run_one(spec, "bob", model, data)
    alone = run_one(spec, "bob")
    assert after_others.losses == alone.losses
    assert_array_equal(after_others.adapter.values, alone.adapter.values)
    assert after_others.perplexity_after == alone.perplexity_after


def test_a_failed_round_does_not_affect_the_next_client(make_federation):
    spec = make_federation()
    model, data = loaded(spec)
    wild = make_federation(training={"learning_rate": 1e30, "steps": 3})
    ones = np.ones(model.space.size, dtype=bool)
    start = SparseAdapter(model.space, ones, np.full(model.space.size, 0.1, np.float32))
    with pytest.raises(TrainingDiverged, match="at step 2 of 3"):
        run(model, wild, "ann", data, start)
    assert_array_equal(run_one(spec, "bob", model, data).adapter.values, run_one(spec, "bob").adapter.values)


def test_rounds_shuffle_differently(make_federation):
    spec = make_federation()
    first, again, second = (run_one(spec, "ann", round=round) for round in (1, 1, 2))
    assert first.losses == again.losses
    assert first.losses != second.losses


def test_a_client_that_chooses_its_start_never_trains_on_its_validation_records(make_federation):
    model, data = loaded(make_federation())
    seed = derive_seed(make_federation().training.seed, "validation")
    part, validation = split_held_out(data["ann"].train, VALIDATION_FRACTION, seed)
    assert validation.examples
    rest = {"ann": ClientData(part, data["ann"].held_out)}
    adaptive, plain = (
        make_federation(method={"name": name, "search_steps": 3, "warmup_steps": 1, "pruning_iterations": 2})
        for name in ("perfit-adaptive", "perfit")
    )
    for round in (1, 2):
        result = run_one(adaptive, "ann", model, data, round)
        expected = run_one(plain, "ann", model, rest, round)
        assert (result.losses, result.samples) == (expected.losses, len(part.examples))
    mask = find_architecture(model, adaptive, adaptive.client("ann"), data["ann"])
    assert_array_equal(mask, find_architecture(model, plain, plain.client("ann"), rest["ann"]))


def test_the_loss_on_validation_records_chooses_between_own_and_shared_values(make_federation):
    spec = make_federation(method={"name": "perfit-adaptive"}, training={"steps": 12, "batch_size": 6})
    model, data = loaded(spec)
    start = start_of(model, spec, "ann")
    tuned = run(model, spec, "ann", data, start)
    assert tuned.own_weight is None
    received = everything(ClientRound(spec, model.space, start.mask, 2).roles, {"values": start.dense()})
    again = run_client(model, spec, spec.client("ann"), 2, data["ann"], start.mask, received, tuned.kept)
    assert again.own_weight > 0
    assert tuned.tuned_weight > 0  # it still learns
    assert again.tuned_weight > 0
    _, validation = split_held_out(
        data["ann"].train, VALIDATION_FRACTION, derive_seed(spec.training.seed, "validation")
    )
    judged = ClientData(data["ann"].train, validation)
    tuned_loss, start_loss = (evaluate(model, spec, judged, v.dense()) for v in (tuned.adapter, start))
    assert tuned_loss < start_loss  # which is why


def test_a_client_uploads_what_it_has_tuned_and_keeps_the_mix_that_it_ends_with(make_federation):
    spec = make_federation(method={"name": "perfit-adaptive"}, training={"learning_rate": 0.5})
    model, data = loaded(spec)
    start = start_of(model, spec, "ann")
    result = run(model, spec, "ann", data, start)
    weight = result.tuned_weight
    assert 0 < weight < 1
    mix = np.float32(weight) * result.upload.unpack()["values"] + np.float32(1 - weight) * start.values
    assert_array_equal(result.adapter.values, mix)
    assert_array_equal(result.kept["values"], mix)


def test_a_client_with_one_record_to_train_on_starts_from_the_servers_values(make_federation, tiny_tokenizer, tmp_path):
    spec = make_federation(method={"name": "perfit-adaptive"})
    model, data = loaded(spec)
    train = data["ann"].train
    one = ExampleSet("one", train.examples[:1], train.lines[:1], train.digests[:1])
    start = start_of(model, spec, "ann")
    kept = {"values": np.ones(start.budget, dtype=np.float32)}
    received = everything(ClientRound(spec, model.space, start.mask, 2).roles, {"values": start.dense()})
    result = run_client(
        model, spec, spec.client("ann"), 2, ClientData(one, data["ann"].held_out), start.mask, received, kept
    )
    assert (result.own_weight, result.tuned_weight) == (None, None)
    assert result.perplexity_before == evaluate(model, spec, data["ann"], start.dense())


def test_uploads_are_rounded_by_draws_of_their_own_for_each_client_and_round(make_federation):
    ann = make_federation().clients[0].model_dump()
    spec = make_federation(
        exchange={"dtype": "int8"}, clients=[ann, {"id": "eve", "data": ann["data"].replace("ann", "eve")}]
    )
    model, data = loaded(spec)

    def bounds(client: str, round: int) -> tuple[np.ndarray, np.ndarray]:
        """Between which bounds each draw must have been, as its value was rounded up or down."""
        result = run_one(spec, client, model, data, round)
        packed = result.upload.vectors["values"]
        changes = result.adapter.values - start_of(model, spec, client).values
        levels = changes / np.repeat(packed.scales, BLOCK)[: changes.size]
        up, edge = packed.values > np.floor(levels), 1 - levels % 1
        return np.where(up, edge, 0), np.where(up, 1, edge)

    drawn = [bounds("ann", 1), bounds("eve", 1), bounds("ann", 2)]
    for (low, high), (other_low, other_high) in combinations(drawn, 2):
        assert np.any((low > other_high + 0.01) | (other_low > high + 0.01))


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"], "all-linear"], ids=str)
def test_a_gpt2_with_its_conv1d(make_federation, tiny_gpt2, targets):
    spec = make_federation(model=tiny_gpt2, lora={"target_modules": targets})
    model, data = loaded(spec)
    before = base_hash(model.peft)
    first = {m.name: (m.rows, m.columns) for m in model.space.matrices[:2]}
    assert first == {
        "base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": (4, 32),
        "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight": (96, 4),
    }
    mask = find_architecture(model, spec, spec.client("ann"), data["ann"])
    assert np.count_nonzero(mask) == model.space.budget(2)
    start = SparseAdapter(model.space, mask, model.space.initial_values(0)[mask])
    result = run(model, spec, "ann", data, start)
    assert np.any(result.adapter.values != start.values)
    assert base_hash(model.peft) == before


def test_bfloat16_runs_on_the_cpu(make_federation):
    spec = make_federation(training={"precision": "bfloat16", "steps": 1})
    model, data = loaded(spec)
    mask = find_architecture(model, spec, spec.client("bob"), data["bob"])
    assert np.count_nonzero(mask) == model.space.budget(1)
    result = run_one(spec, "bob", model, data)
    assert np.isfinite([*result.losses, result.perplexity_before, result.perplexity_after]).all()
    assert np.any(result.adapter.values != start_of(model, spec, "bob").values)


def test_in_bfloat16_no_result_depends_on_earlier_trainings(make_federation):
    spec = make_federation(training={"precision": "bfloat16"})
    model, data = loaded(spec)
    values = np.random.default_rng(0).normal(0, 0.1, model.space.size).astype(np.float32)

    def results():
        perplexity, result = evaluate(model, spec, data["bob"], values), run_one(spec, "bob", model, data)
        return perplexity, result.losses, result.perplexity_before, result.perplexity_after

    assert results() == results()


def test_an_unknown_model_or_target_is_named(make_federation):
    with pytest.raises(PerfitError, match=r"^model: /no/such/model does not exist"):
        load_expanded(make_federation(model="/no/such/model"), Path("unused"))
    with pytest.raises(PerfitError, match="no linear module 'qqq'"):
        load_expanded(make_federation(lora={"target_modules": ["qqq"]}), Path("unused"))
