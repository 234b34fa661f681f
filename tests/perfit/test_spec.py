"""What a federation computes: what follows from its file, and what may change in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from perfit.methods import METHODS
from perfit.spec import FederationSpec

CLIENTS = [{"id": "ann", "data": "ann.jsonl"}, {"id": "bob", "data": "owner/set:train", "rank": 2}]
FULL: dict[str, Any] = {
    "name": "notes-2",
    "model": "package:llm/model.gguf",
    "method": {"name": "perfit", "metric": "gradient", "scope": "global", "search_steps": 9, "warmup_steps": 2},
    "lora": {"rank": 4, "alpha": 6, "target_modules": ["q_proj", "o_proj"], "expansion": 3},
    "training": {"steps": 7, "optimizer": "sgd", "learning_rate": 1e-5, "precision": "bfloat16", "seed": 11},
    "data": {"held_out_fraction": 0.1, "bad_records": "skip"},
    "rounds": 5,
    "participation": {"fraction": 0.5, "minimum_clients": 2},
    "exchange": {"holders": 1, "dtype": "float16", "top": 0.5, "masks_first": True},
    "clients": [
        {"id": "bob", "data": "s3://b/bob.jsonl", "tier": "small", "rank": 1},
        {"id": "ann", "data": "/data/ann.parquet", "tier": "big", "held_out": "/data/x.jsonl"},
    ],
}


MINIMAL: dict[str, Any] = {"name": "f", "model": "m", "clients": CLIENTS}


def spec(**changes: Any) -> FederationSpec:
    return FederationSpec.model_validate({**MINIMAL, **changes})


@pytest.mark.parametrize("tree", [FULL, MINIMAL], ids=["full", "minimal"])
def test_its_yaml_reads_back(tree):
    federation = FederationSpec.model_validate(tree)
    text = federation.to_yaml()
    assert FederationSpec.model_validate(yaml.safe_load(text)) == federation
    assert list(FederationSpec.model_fields) == [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()]


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_is_written_and_read(name):
    federation = spec(method={"name": name})
    assert type(federation.method) is METHODS[name].options
    assert federation.algorithm is METHODS[name]
    for text in (federation.to_yaml(), federation.to_json()):
        assert FederationSpec.model_validate(yaml.safe_load(text)) == federation


def test_one_line_of_json_names_what_differs_from_the_defaults():
    assert json.loads(spec().to_json()) == MINIMAL
    federation = spec(method={"name": "fedprox"}, rounds=3, lora={"rank": 4})
    assert json.loads(federation.to_json()) == {**MINIMAL, "method": {"name": "fedprox"}, "lora": {"rank": 4}}
    federation = spec(method={"name": "fedprox", "mu": 0.5})
    assert json.loads(federation.to_json()) == {**MINIMAL, "method": {"name": "fedprox", "mu": 0.5}}
    assert "\n" not in federation.to_json()


def test_the_space_is_that_of_the_largest_client():
    federation = spec(lora={"rank": 4, "alpha": 6, "expansion": 3})
    expanded = federation.expanded_lora
    assert (federation.expansion, expanded.rank, expanded.alpha) == (3, 12, 18)
    assert [federation.rank_of(client) for client in federation.clients] == [4, 2]


def test_by_default_the_space_of_a_search_is_twice_as_wide():
    federation = spec(lora={"rank": 4, "alpha": 6})
    assert (federation.expansion, federation.expanded_lora.rank, federation.expanded_lora.alpha) == (2, 8, 12)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if not method.search(method.options())])
def test_methods_without_a_search_do_not_expand(method):
    for lora in ({"rank": 4, "alpha": 6}, {"rank": 4, "alpha": 6, "expansion": 1}):
        federation = spec(method={"name": method}, lora=lora)
        assert (federation.expansion, federation.expanded_lora.rank, federation.expanded_lora.alpha) == (1, 4, 6)
        assert federation.search is None


def test_what_is_exchanged_by_default():
    exchange = spec().exchange
    assert (exchange.holders, exchange.dtype, exchange.top, exchange.masks_first) == (2, "bfloat16", 1, False)


def test_a_single_client_may_keep_the_default():
    assert spec(clients=CLIENTS[:1]).exchange.holders == 2
    with pytest.raises(ValidationError, match="3 is more than the 1 clients"):
        spec(clients=CLIENTS[:1], exchange={"holders": 3})


def test_a_round_needs_as_many_clients_as_a_position_needs_holders():
    three = [{**CLIENTS[0], "id": name} for name in ("a", "b", "c")]
    with pytest.raises(ValidationError, match="3 is more than the 2 clients that take part in a round"):
        spec(clients=three, exchange={"holders": 3}, participation={"fraction": 0.5})
    for participation in ({"fraction": 0.5, "minimum_clients": 3}, {"fraction": 0.7}):
        assert spec(clients=three, exchange={"holders": 3}, participation=participation).exchange.holders == 3


@pytest.mark.parametrize(("steps", "search_steps", "method"), [(3, 20, "perfit"), (9, 3, "perfit"), (3, 0, "fedit")])
def test_a_warm_up_that_never_ends_is_refused(steps, search_steps, method):
    options = {"name": method}
    if search_steps:
        options |= {"search_steps": search_steps, "warmup_steps": 1, "pruning_iterations": 1}
    with pytest.raises(ValidationError, match="3 of 3 steps leave none at full rate"):
        spec(method=options, training={"steps": steps, "warmup_steps": 3})


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if len(method.uploads) == 1])
def test_methods_that_upload_values_alone_may_upload_the_largest_changes(method):
    assert spec(method={"name": method}, exchange={"top": 0.5}).exchange.sends_changes


def test_clients_by_id():
    federation = spec()
    assert federation.client("bob") is federation.clients[1]
    with pytest.raises(KeyError):
        federation.client("eve")


def test_a_copy_with_other_clients_finds_them():
    federation = spec()
    assert federation.client("ann").id == "ann"
    eve = federation.clients[0].model_copy(update={"id": "eve"})
    assert federation.model_copy(update={"clients": (eve,)}).client("eve") == eve


def test_a_federation_does_not_change():
    with pytest.raises(ValidationError, match="frozen"):
        spec().rounds = 4


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"rounds": 9},
        {"participation": {"fraction": 0.5, "minimum_clients": 2}},
        {"training": {"checkpoint_steps": None}},
        {"clients": [{"id": "ann", "data": "elsewhere.jsonl", "held_out": "h.jsonl", "tier": "big"}]},
        {"clients": [*CLIENTS, {"id": "eve", "data": "eve.jsonl", "rank": 1}]},
        {"clients": [{"id": "ann", "data": "ann.jsonl", "rank": 8}, CLIENTS[1]]},
    ],
    ids=[
        "nothing",
        "rounds",
        "participation",
        "checkpoints",
        "where data lie and who trains",
        "a new client",
        "its rank, said",
    ],
)
def test_what_may_change(changes):
    assert spec().difference(spec(**changes)) is None
    assert spec(**changes).difference(spec()) is None


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"name": "g"}, "name is 'f' here and 'g' there"),
        ({"model": "n"}, "model is 'm' here and 'n' there"),
        ({"method": {"name": "fedit"}}, "method.name is 'perfit' here and 'fedit' there"),
        ({"method": {"name": "fedprox", "mu": 0.01}}, "method.name is 'perfit' here and 'fedprox' there"),
        ({"method": {"metric": "random"}}, "method.metric is 'taylor' here and 'random' there"),
        ({"lora": {"rank": 9}}, "lora.rank is 8 here and 9 there"),
        ({"lora": {"alpha": 9}}, "lora.alpha is 16.0 here and 9.0 there"),
        (
            {"lora": {"target_modules": "all-linear"}},
            "lora.target_modules is ['q_proj', 'v_proj'] here and 'all-linear' there",
        ),
        ({"training": {"seed": 1}}, "training.seed is 0 here and 1 there"),
        ({"data": {"bad_records": "skip"}}, "data.bad_records is 'refuse' here and 'skip' there"),
        ({"exchange": {"holders": 1}}, "exchange.holders is 2 here and 1 there"),
        ({"exchange": {"dtype": "float32"}}, "exchange.dtype is 'bfloat16' here and 'float32' there"),
        ({"exchange": {"top": 0.5}}, "exchange.top is 1.0 here and 0.5 there"),
        ({"exchange": {"masks_first": True}}, "exchange.masks_first is False here and True there"),
        ({"clients": [CLIENTS[0], {**CLIENTS[1], "rank": 3}]}, "rank of client bob is 2 here and 3 there"),
        ({"clients": [{**CLIENTS[0], "rank": 1}]}, "rank of client ann is 8 here and 1 there"),
    ],
)
def test_what_may_not_change(changes, difference):
    assert spec().difference(spec(**changes)) == difference


def test_a_difference_is_seen_from_both_sides():
    for changes in ({"lora": {"rank": 9}}, {"training": {"steps": 1}}):
        assert spec(**changes).difference(spec())
