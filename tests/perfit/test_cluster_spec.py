"""A whole federation file: where it runs, and what may change in that."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.utils.quantity import parse_quantity
from pydantic import ValidationError

from perfit.cluster_spec import MAX_TIERS, ClusterSpec, Tier, quantity_bytes
from perfit.federation_file import parse_federation
from perfit.spec import FederationSpec

CLIENTS = [{"id": "ann", "data": "ann.jsonl"}, {"id": "bob", "data": "owner/set:train", "rank": 2}]
MINIMAL: dict[str, Any] = {"name": "f", "model": "m", "clients": CLIENTS}
FULL: dict[str, Any] = {
    "name": "notes-2",
    "model": "package:llm/model.gguf",
    "method": {"name": "perfit", "metric": "gradient", "scope": "global", "search_steps": 9, "warmup_steps": 2},
    "lora": {"rank": 4, "alpha": 6, "target_modules": ["q_proj", "o_proj"], "expansion": 3},
    "training": {"steps": 7, "learning_rate": 1e-5, "precision": "bfloat16", "seed": 11},
    "data": {"held_out_fraction": 0.1, "bad_records": "skip"},
    "rounds": 5,
    "participation": {"fraction": 0.5, "minimum_clients": 2},
    "exchange": {"holders": 1, "dtype": "float16", "top": 0.5, "masks_first": True},
    "tiers": {
        "big": {
            "cpu": "3500m",
            "memory": "16Gi",
            "accelerator": {"type": "amd.com/gpu", "count": 2},
            "node_selector": {"zone": "on"},
            "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
            "parallelism": 2,
            "queue": "gpus",
            "queue_priority": "research",
            "queue_seconds": 3600,
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


def spec(**changes: Any) -> ClusterSpec:
    return ClusterSpec.model_validate({**MINIMAL, **changes})


@pytest.mark.parametrize("tree", [FULL, MINIMAL], ids=["full", "minimal"])
def test_its_yaml_reads_back(tree):
    federation = ClusterSpec.model_validate(tree)
    text = federation.to_yaml()
    assert parse_federation(text) == federation
    assert parse_federation(text).to_yaml() == text
    assert list(ClusterSpec.model_fields) == [line.split(":")[0] for line in text.splitlines() if line[0].isalpha()]


def test_names_that_yaml_takes_for_something_else_read_back():
    federation = spec(model="1e3", clients=[{"id": "null", "data": "yes/no"}, {"id": "007", "data": "~/x.jsonl"}])
    assert parse_federation(federation.to_yaml()) == federation


@pytest.mark.parametrize("tree", [FULL, MINIMAL], ids=["full", "minimal"])
def test_its_json_reads_back(tree):
    federation = ClusterSpec.model_validate(tree)
    assert parse_federation(federation.to_json()) == federation
    assert "\n" not in federation.to_json()


def test_what_is_computed_knows_nothing_of_the_cluster():
    assert issubclass(ClusterSpec, FederationSpec)
    beyond = {name for name in ClusterSpec.model_fields if name not in FederationSpec.model_fields}
    assert beyond == {"tiers", "cluster", "store"}
    for section in ({"tiers": {"default": {}}}, {"cluster": {}}, {"store": "s3://bucket"}):
        with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
            FederationSpec.model_validate({**MINIMAL, **section})


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
    assert quantity_bytes(quantity) == int(parse_quantity(quantity)) == size


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-1Gi", " 1Gi", "1_000", "٣Gi"])
def test_what_the_library_of_kubernetes_takes_for_a_quantity(text):
    """Which is why our own is kept; nor is that library in the images, or imported in less than half a second."""
    parse_quantity(text)
    with pytest.raises(ValidationError, match="is not a Kubernetes quantity"):
        Tier(memory=text)


def test_a_tier_may_train_otherwise():
    federation = ClusterSpec.model_validate(
        FULL | {"tiers": {**FULL["tiers"], "small": {"training": {"batch_size": 1, "precision": "float32"}}}}
    )
    weak = federation.of_tier("small").training
    assert (weak.batch_size, weak.precision) == (1, "float32")
    assert weak == federation.training.model_copy(update={"batch_size": 1, "precision": "float32"})
    assert federation.of_tier("big") == federation
    # Like all that a tier says, it may change while a federation exists.
    assert federation.difference(ClusterSpec.model_validate(FULL)) is None


@pytest.mark.parametrize(
    ("tier", "problem"),
    [
        ({"queue_seconds": 600}, "name Kueue's LocalQueue with the key `queue`"),
        ({"queue_priority": "research"}, "name Kueue's LocalQueue with the key `queue`"),
        ({"queue": "gpus", "queue_seconds": 3600}, "the run ends before: lower it, or raise cluster.deadline_seconds"),
    ],
)
def test_settings_of_a_queue_that_cannot_be(tier, problem):
    with pytest.raises(ValidationError, match=problem):
        ClusterSpec.model_validate({**MINIMAL, "tiers": {"default": tier}, "cluster": {"deadline_seconds": 3600}})


@pytest.mark.parametrize(
    ("cluster", "problem"),
    [
        ({}, "may give their pods any Secret of the namespace"),
        ({"allow_secret_readers": True, "store_ca": "authority"}, "and so no authority"),
    ],
)
def test_trainjobs_that_cannot_be(cluster, problem):
    tree = {**MINIMAL, "tiers": {"default": {"runner": "trainjob"}}}
    with pytest.raises(ValidationError, match=problem):
        ClusterSpec.model_validate({**tree, "cluster": cluster})
    assert ClusterSpec.model_validate({**tree, "cluster": {"allow_secret_readers": True}})


JOB = {"runner": "trainjob", "training": {"batch_size": 4, "gradient_accumulation": 2}}


@pytest.mark.parametrize(
    ("tier", "path", "problem"),
    [
        ({"nodes": 2}, ("nodes",), "a runner pod has one process; set runner: trainjob"),
        ({"runner": "remote", "nodes": 2}, ("nodes",), "a runner remote has one process"),
        ({"accelerator": {"divide": "batch"}}, ("accelerator", "divide"), "a runner pod has one process"),
        ({**JOB, "nodes": 2, "accelerator": {"count": 2}}, ("accelerator", "divide"), "set divide: batch, or count: 1"),
        ({**JOB, "nodes": 3}, (), "3 processes, which cannot divide the 8 examples of a step evenly"),
        ({**JOB, "nodes": 2, "accelerator": {"count": 8, "divide": "batch"}}, (), "16 processes, which cannot divide"),
    ],
)
def test_processes_that_cannot_be(tier, path, problem):
    with pytest.raises(ValidationError, match=problem) as caught:
        ClusterSpec.model_validate(
            {**MINIMAL, "tiers": {"default": tier}, "cluster": {"allow_secret_readers": True, "deadline_seconds": None}}
        )
    (error,) = caught.value.errors()
    assert (*error["loc"], *error["ctx"]["path"]) == ("tiers", "default", *path)


@pytest.mark.parametrize(
    ("tier", "processes"),
    [
        ({}, (1, 1)),
        ({"accelerator": {"count": 8}}, (1, 1)),
        ({"accelerator": {"count": 8, "divide": "batch"}}, (8, 8)),
        ({"nodes": 4}, (1, 4)),
        ({"nodes": 4, "accelerator": {"count": 2, "divide": "batch"}}, (2, 8)),
    ],
)
def test_the_processes_of_a_job(tier, processes):
    job = Tier(**JOB, **tier)
    assert (job.processes_per_node, job.processes) == processes


def test_tiers_in_use_are_in_the_order_of_the_file():
    assert ClusterSpec.model_validate(FULL).tiers_in_use() == ["big", "small"]
    assert spec().tiers_in_use() == ["default"]


def test_a_clients_name_in_the_cluster_is_that_of_its_secret():
    federation = ClusterSpec.model_validate(FULL)
    assert [federation.secret_of(client) for client in federation.clients] == ["bob-key", "perfit-notes-2-ann"]


@pytest.mark.parametrize("name", ["f", "server", "server-f", "perfit", "perfitserver"])
@pytest.mark.parametrize("client", ["server", "f", "server-f"])
def test_a_servers_secret_is_no_clients(name, client):
    clients = [{"id": client, "data": "a.jsonl"}]
    federation = spec(name=name, clients=clients)
    servers = {spec(name=other, clients=clients).server_secret for other in (name, "f", client, f"{name}-{client}")}
    assert federation.secret_of(federation.clients[0]) not in servers


@pytest.mark.parametrize(
    ("volume", "has_volumes", "names_claims"),
    [(None, False, False), ("perfit-f-ann", True, False), ("records", True, True)],
)
def test_volumes_of_a_tier(volume, has_volumes, names_claims):
    clients = [{"id": "ann", "data": "a.jsonl", "volume": volume}, {"id": "bob", "data": "b.jsonl", "tier": "big"}]
    federation = spec(tiers={"default": {}, "big": {}}, clients=clients)
    assert (federation.has_volumes("default"), federation.names_claims("default")) == (has_volumes, names_claims)
    assert (federation.has_volumes("big"), federation.names_claims("big")) == (False, False)


def test_there_are_no_more_tiers_than_a_component_has_outputs():
    clients = [{"id": "ann", "data": "a.jsonl", "tier": "tier-0"}]
    tiers = {f"tier-{number}": {} for number in range(MAX_TIERS + 1)}
    with pytest.raises(ValidationError, match="at most 8 items"):
        spec(tiers=tiers, clients=clients)
    tiers.popitem()
    assert len(spec(tiers=tiers, clients=clients).tiers) == 8


@pytest.mark.parametrize(
    "changes",
    [
        {"tiers": {"default": {"cpu": 4}, "gpu": {}}},
        {"store": "s3://elsewhere"},
        {"cluster": {"shared_memory": "2Gi"}},
        {"clients": [{"id": "ann", "data": "elsewhere.jsonl", "held_out": "h.jsonl", "secret": "s", "volume": "v"}]},
    ],
    ids=["tiers", "store", "cluster", "where data lie"],
)
def test_where_it_runs_may_change(changes):
    assert spec().difference(spec(**changes)) is None
    assert spec(**changes).difference(spec()) is None


def far(tier: dict | None = None, client: dict | None = None, **sections) -> ClusterSpec:
    """A client in a pod, and a remote one."""
    tiers = {"default": {}, "far": {"runner": "remote", **(tier or {})}}
    clients = [{"id": "ann", "data": "a.jsonl"}, {"id": "bob", "tier": "far", **(client or {})}]
    return ClusterSpec.model_validate({**MINIMAL, "tiers": tiers, "clients": clients, **sections})


def test_a_remote_tier_has_no_pods():
    spec = far()
    assert (spec.pod_tiers(), spec.remote_tiers()) == (["default"], ["far"])
    assert [client.id for client in spec.clients if spec.is_remote(client)] == ["bob"]
    assert parse_federation(spec.to_yaml()) == spec


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"tier": {"memory": "2Gi"}}, "tier 'far' has no pods"),
        ({"tier": {"node_selector": {"a": "b"}}}, "tier 'far' has no pods"),
        ({"tier": {"runner": "pod", "deadline_seconds": 5}, "client": {"data": "b.jsonl"}}, "tier 'far' is of pods"),
        ({"tier": {"deadline_seconds": 86_400}}, "86400 is not below cluster.deadline_seconds"),
        ({"client": {"data": "b.jsonl"}}, "its owner names its records"),
        ({"client": {"volume": "bobs"}}, "its owner names its records"),
        ({"tier": {"runner": "pod"}}, "the key 'data' is missing"),
    ],
)
def test_keys_that_do_not_fit_the_runner(sections, problem):
    with pytest.raises(ValidationError, match=problem):
        far(**sections)


def test_a_run_without_a_deadline_waits_as_long_as_its_tiers_say():
    assert far({"deadline_seconds": 10**6}, cluster={"deadline_seconds": None}).remote_tiers() == ["far"]
