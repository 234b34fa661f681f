"""The federation file's model: what follows from it, and what may change in it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from perfit.federation_file import parse_federation
from perfit.spec import Federation, Tier, quantity_bytes

CLIENTS = [{"id": "ann", "data": "ann.jsonl"}, {"id": "bob", "data": "owner/set:train", "rank": 2}]
FULL: dict[str, Any] = {
    "name": "notes-2",
    "model": "package:llm/model.gguf",
    "method": {"name": "perfit", "metric": "gradient", "scope": "global", "search_steps": 9, "warmup_steps": 2},
    "lora": {"rank": 4, "alpha": 6, "target_modules": ["q_proj", "o_proj"], "expansion": 3},
    "training": {"steps": 7, "learning_rate": 1e-5, "precision": "bfloat16", "seed": 11},
    "data": {"held_out_fraction": 0.1, "bad_records": "skip"},
    "rounds": 5,
    "participation": {"fraction": 0.5, "minimum_clients": 2},
    "wire_dtype": "float16",
    "tiers": {
        "big": {
            "cpu": "3500m",
            "memory": "16Gi",
            "accelerator": {"type": "amd.com/gpu", "count": 2},
            "node_selector": {"zone": "on"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "parallelism": 2,
        },
        "small": {"cpu": 2},
        "unused": {},
    },
    "clients": [
        {"id": "bob", "data": "s3://b/bob.jsonl", "tier": "small", "rank": 1, "secret": "bob-key"},
        {"id": "ann", "data": "/data/ann.parquet", "tier": "big", "held_out": "/data/x.jsonl", "volume": "v"},
    ],
    "store": "s3://bucket/prefix",
    "cluster": {"model_cache": None, "shared_memory": "2Gi"},
}


def spec(**changes: Any) -> Federation:
    return Federation.model_validate({"name": "f", "model": "m", "clients": CLIENTS, **changes})


@pytest.mark.parametrize("tree", [FULL, {"name": "f", "model": "m", "clients": CLIENTS}], ids=["full", "minimal"])
def test_its_yaml_reads_back(tree):
    federation = Federation.model_validate(tree)
    text = federation.to_yaml()
    assert parse_federation(text) == federation
    assert parse_federation(text).to_yaml() == text
    assert list(Federation.model_fields) == [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()]


def test_names_that_yaml_takes_for_something_else_read_back():
    federation = spec(model="1e3", clients=[{"id": "null", "data": "yes"}, {"id": "007", "data": "~"}])
    assert parse_federation(federation.to_yaml()) == federation


def test_the_space_is_that_of_the_largest_client():
    federation = spec(lora={"rank": 4, "alpha": 6, "expansion": 3})
    assert (federation.expansion, federation.expanded_rank, federation.expanded_alpha) == (3, 12, 18)
    assert [federation.rank_of(client) for client in federation.clients] == [4, 2]


@pytest.mark.parametrize("method", ["fedit", "local"])
def test_methods_without_a_search_do_not_expand(method):
    federation = spec(method={"name": method}, lora={"rank": 4, "alpha": 6, "expansion": 3})
    assert (federation.expansion, federation.expanded_rank, federation.expanded_alpha) == (1, 4, 6)
    assert not federation.method.searches
    assert federation.method.exchanges == (method == "fedit")


@pytest.mark.parametrize(
    ("cpu", "threads"), [("1", 1), (4, 4), ("500m", 1), ("1500m", 1), ("3500m", 3), ("2.5", 2), (0.5, 1), ("16", 16)]
)
def test_threads_of_a_tier(cpu, threads):
    assert Tier(cpu=cpu).threads == threads


@pytest.mark.parametrize("cpu", ["4Gi", "2k", "1.5M", "2Ei"])
def test_a_cpu_is_no_amount_of_memory(cpu):
    with pytest.raises(ValidationError, match=cpu):
        Tier(cpu=cpu)


@pytest.mark.parametrize(
    ("quantity", "size"),
    [
        ("0", 0),
        ("12", 12),
        ("1500m", 1),
        ("2k", 2000),
        ("2Ki", 2048),
        ("1.5Gi", 3 * 2**29),
        ("16G", 16 * 10**9),
        ("3M", 3 * 10**6),
        ("1Ti", 2**40),
        ("2Pi", 2**51),
        ("1E", 10**18),
    ],
)
def test_quantities_in_bytes(quantity, size):
    assert quantity_bytes(quantity) == size


def test_tiers_in_use_are_in_the_order_of_the_file():
    assert Federation.model_validate(FULL).tiers_in_use() == ["big", "small"]
    assert spec().tiers_in_use() == ["default"]


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
        {"tiers": {"default": {"cpu": 4}, "gpu": {}}},
        {"store": "s3://elsewhere"},
        {"cluster": {"shared_memory": "2Gi"}},
        {"clients": [{"id": "ann", "data": "elsewhere.jsonl", "held_out": "h.jsonl", "secret": "s", "volume": "v"}]},
        {"clients": [*CLIENTS, {"id": "eve", "data": "eve.jsonl", "rank": 1}]},
        {"clients": [{"id": "ann", "data": "ann.jsonl", "rank": 8}, CLIENTS[1]]},
    ],
    ids=[
        "nothing",
        "rounds",
        "participation",
        "tiers",
        "store",
        "cluster",
        "where data lie",
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
        ({"method": {"metric": "random"}}, "method.metric is 'taylor' here and 'random' there"),
        ({"lora": {"rank": 9}}, "lora.rank is 8 here and 9 there"),
        ({"lora": {"alpha": 9}}, "lora.alpha is 16 here and 9.0 there"),
        (
            {"lora": {"target_modules": "all-linear"}},
            "lora.target_modules is ('q_proj', 'v_proj') here and 'all-linear' there",
        ),
        ({"training": {"seed": 1}}, "training.seed is 0 here and 1 there"),
        ({"data": {"bad_records": "skip"}}, "data.bad_records is 'refuse' here and 'skip' there"),
        ({"wire_dtype": "bfloat16"}, "wire_dtype is 'float32' here and 'bfloat16' there"),
        ({"clients": [CLIENTS[0], {**CLIENTS[1], "rank": 3}]}, "rank of client bob is 2 here and 3 there"),
        ({"clients": [{**CLIENTS[0], "rank": 1}]}, "rank of client ann is 8 here and 1 there"),
    ],
)
def test_what_may_not_change(changes, difference):
    assert spec().difference(spec(**changes)) == difference


def test_a_difference_is_seen_from_both_sides():
    for changes in ({"lora": {"rank": 9}}, {"training": {"steps": 1}}):
        assert spec(**changes).difference(spec())
