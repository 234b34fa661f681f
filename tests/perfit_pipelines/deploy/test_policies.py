"""What each role's key may do, by the documents and by a real server that enforces them."""

from __future__ import annotations

import re

import pytest
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from perfit.errors import PerfitError
from perfit_components.steps.aggregate import aggregate_updates
from perfit_components.steps.client import search, train
from perfit_components.steps.plan import SEARCH_ROUND, plan
from perfit_components.steps.prepare import prepare
from perfit_components.steps.report import report
from perfit_pipelines.deploy.policies import client_policy, policy_text, server_policy
from perfit_storage import AccessDenied, open_store
from perfit_storage.s3 import S3Settings

from ...perfit_components.running import make_spec, write_data
from ..store_roles import SERVER, KeyedStore, role_policies, role_server

STORE = "s3://tuning/team"
HASH = "0123456789abcdef" * 4
NAMES = ("ann", "ann-b", "plan", "global")
"""Clients with dangerous names: the prefix of another's, and the names of shared files."""


def evaluate(policy: dict, action: str, resource: str, prefix: str | None = None) -> bool:
    """Decide a request as IAM does: a matching denial counts for all, else a matching permission is needed.

    Args:
        policy: The document.
        action: Such as ``s3:GetObject``.
        resource: ``bucket/key``, or the bucket alone.
        prefix: What a listing asks for.
    """
    effects = {
        statement["Effect"] for statement in policy["Statement"] if _applies(statement, action, resource, prefix)
    }
    return effects == {"Allow"}


def _applies(statement: dict, action: str, resource: str, prefix: str | None) -> bool:
    conditions = statement.get("Condition", {"StringEquals": {}})
    assert set(conditions) == {"StringEquals"}
    assert set(conditions["StringEquals"]) <= {"s3:prefix"}
    wanted = conditions["StringEquals"].get("s3:prefix")
    return (
        any(_matches(pattern, action) for pattern in statement["Action"])
        and any(_matches(pattern, f"arn:aws:s3:::{resource}") for pattern in statement["Resource"])
        and (wanted is None or prefix in wanted)
    )


def _matches(pattern: str, text: str) -> bool:
    """``*`` is any text and ``?`` any character, slashes included."""
    parts = {"*": ".*", "?": "."}
    return re.fullmatch("".join(parts.get(mark) or re.escape(mark) for mark in pattern), text, re.DOTALL) is not None


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    data = write_data(tmp_path_factory.mktemp("policies") / "data")
    clients = {
        name: {"data": str(data / f"{file}.jsonl")}
        for name, file in zip(NAMES, ["ann", "bob", "eve", "bob"], strict=True)
    }
    return make_spec("no-model", data, clients=clients)


def may(spec, role: str, action: str, path: str) -> bool:
    """Whether a role may read or write a path of the federation's directory, or list with it as prefix."""
    policy, key = role_policies(spec, STORE)[role], f"team/federations/tiny/{path}"
    if action == "list":
        return evaluate(policy, "s3:ListBucket", "tuning", key)
    return evaluate(policy, {"read": "s3:GetObject", "write": "s3:PutObject"}[action], f"tuning/{key}")


def own_paths(client: str) -> list[str]:
    """Every key that the store keeps for one client."""
    return [
        f"masks/{client}-{HASH}",
        *(
            f"rounds/{n}/updates/{client}{end}"
            for n in (1, 12)
            for end in (".json", ".safetensors", f".{HASH}.safetensors")
        ),
        f"clients/{client}/baseline.json",
        f"clients/{client}/adapter/adapter_config.json",
        f"clients/{client}/rounds/3.safetensors",
        f"clients/{client}/rounds/3.{HASH}.safetensors",
    ]


READ_BY_ALL = ["spec.yaml", "head.json"] + [
    f"rounds/{n}/{name}"
    for n in (0, 1, 12)
    for name in ("plan.json", "global.safetensors", f"global.{HASH}.safetensors")
]
FOR_THE_SERVER = [f"rounds/{n}/{name}" for n in (1, 12) for name in ("summary.json", "report.html")]


@pytest.mark.parametrize("client", NAMES)
def test_a_client_reads_and_writes_its_own(spec, client):
    for path in own_paths(client):
        assert may(spec, client, "read", path), path
        assert may(spec, client, "write", path), path
    assert may(spec, client, "list", f"masks/{client}-")
    assert may(spec, client, "list", f"clients/{client}/")


@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_a_client_touches_nothing_of_another(spec, client, other):
    for path in own_paths(other):
        assert may(spec, client, "read", path) == (client == other), path
        assert may(spec, client, "write", path) == (client == other), path
    assert may(spec, client, "list", f"clients/{other}/") == (client == other)


@pytest.mark.parametrize("client", NAMES)
def test_a_client_reads_what_is_shared_and_writes_none_of_it(spec, client):
    for path in READ_BY_ALL:
        assert may(spec, client, "read", path), path
        assert not may(spec, client, "write", path), path
    for path in FOR_THE_SERVER:
        assert not may(spec, client, "read", path), path
        assert not may(spec, client, "write", path), path


@pytest.mark.parametrize(
    "path",
    [
        "rounds/2/plan.json/updates/ann.json",
        "rounds/2/updates/ann-b.json/updates/ann.json",
        "rounds/2/updates/ann-b.json/x",
        "rounds/2/global.safetensors/updates/ann.safetensors",
        f"masks/ann-{HASH}/x",
        f"masks/ann-{HASH[1:]}",
        "clients/ann",
        "clients/ann-b",
        f"rounds/2/updates/ann.x/{HASH}.safetensors",
        "updates/ann.json",
        "",
    ],
)
def test_a_client_writes_nowhere_else(spec, path):
    """Especially not below another's key: where keys are files and directories, that one could no longer be written."""
    assert not may(spec, "ann", "write", path)


@pytest.mark.parametrize("prefix", ["", "masks/", "masks/ann", "clients/", "clients/ann", "clients/ann-", "rounds/"])
def test_a_client_lists_by_its_own_prefixes_alone(spec, prefix):
    assert not may(spec, "ann", "list", prefix)
    policy = role_policies(spec, STORE)["ann"]
    assert not evaluate(policy, "s3:ListBucket", "tuning", None)
    assert not evaluate(policy, "s3:ListBucket", "tuning", "")
    assert not evaluate(policy, "s3:ListAllMyBuckets", "*")


def test_nobody_deletes_or_configures(spec):
    for policy in role_policies(spec, STORE).values():
        for action in (
            "s3:DeleteObject",
            "s3:PutBucketPolicy",
            "s3:GetObjectVersion",
            "s3:PutObjectAcl",
            "admin:CreateUser",
        ):
            assert not evaluate(policy, action, "tuning/team/federations/tiny/head.json")
            assert not evaluate(policy, action, "tuning")


def test_the_server_reads_all_but_the_clients_files_and_writes_its_own(spec):
    for path in [*READ_BY_ALL, *FOR_THE_SERVER]:
        assert may(spec, SERVER, "read", path), path
        assert may(spec, SERVER, "write", path), path
    for client in NAMES:
        for path in own_paths(client):
            assert may(spec, SERVER, "read", path) == (not path.startswith("clients/")), path
            assert not may(spec, SERVER, "write", path), path
    assert may(spec, SERVER, "list", "rounds/")
    assert not may(spec, SERVER, "list", "clients/ann/")
    assert not may(spec, SERVER, "list", "")


def test_no_key_reaches_another_federation_or_store(spec):
    for policy in role_policies(spec, STORE).values():
        for key in (
            "team/federations/tiny-2/spec.yaml",
            "federations/tiny/spec.yaml",
            "teams/federations/tiny/spec.yaml",
        ):
            assert not evaluate(policy, "s3:GetObject", f"tuning/{key}")
        assert not evaluate(policy, "s3:GetObject", "tunings/team/federations/tiny/spec.yaml")


def test_a_run_by_another_method_has_the_same_roles(spec):
    for client in NAMES:
        policy = role_policies(spec, STORE)[client]
        for key in own_paths(client):
            assert evaluate(policy, "s3:PutObject", f"tuning/team/federations/tiny-fedit/{key}")
            assert evaluate(policy, "s3:PutObject", f"tuning/team/federations/tiny-local/{key}")
            assert not evaluate(policy, "s3:PutObject", f"tuning/team/federations/tiny-perfit/{key}")


def test_records_in_the_store_are_read_by_their_owner(spec):
    ann = spec.clients[0].model_copy(
        update={"data": "s3://records/ann/train.jsonl", "held_out": "s3://records/held.jsonl"}
    )
    policy = client_policy(spec, ann, STORE)
    assert evaluate(policy, "s3:GetObject", "records/ann/train.jsonl")
    assert evaluate(policy, "s3:GetObject", "records/held.jsonl")
    assert not evaluate(policy, "s3:PutObject", "records/ann/train.jsonl")
    assert not evaluate(policy, "s3:GetObject", "records/ann/train.jsonl.old")
    bad = ann.model_copy(update={"data": "s3://records/*.jsonl"})
    with pytest.raises(PerfitError, match=r"client 'ann': .*wildcard"):
        client_policy(spec, bad, STORE)


@pytest.mark.parametrize("uri", ["file:///store", "s3://", "s3://key:secret@bucket", "s3://bucket/*", "bucket"])
def test_a_store_without_policies_is_refused(spec, uri):
    with pytest.raises(PerfitError, match="is not a store"):
        server_policy(spec, uri)


def test_a_policy_stays_within_minios_limit(spec):
    longest = spec.clients[0].model_copy(update={"id": "c" * 63})
    named = spec.model_copy(update={"name": "f" * 63})
    assert len(policy_text(client_policy(named, longest, f"{STORE}/{'p' * 60}"))) < 20 * 1024


# The same, for real: SeaweedFS enforces these very documents.


@pytest.fixture(scope="module")
def real_server(tmp_path_factory):
    with role_server(tmp_path_factory.mktemp("role-server")) as server:
        yield server


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    from ...perfit.tiny import save_llama

    return save_llama(tmp_path_factory.mktemp("llama"))


def play(store: KeyedStore, rounds: int = 1) -> dict:
    """Run the steps of a federation, each with its own role's keys; return the last summary."""
    spec, uri = store.spec, f"{store.uri}/federations/{store.spec.name}"
    with store.acting(SERVER):
        prepare(spec.to_yaml(), store.uri)
        planned = [item["id"] for item in plan(uri, SEARCH_ROUND, "default")]
    for client in planned:
        with store.acting(client):
            assert search(uri, client)["status"] == "searched"
    for round in range(1, rounds + 1):
        with store.acting(SERVER):
            planned = [item["id"] for item in plan(uri, round, "default")]
        statuses = []
        for client in planned:
            with store.acting(client):
                statuses.append(train(uri, round, client))
                assert train(uri, round, client) == statuses[-1], "a task that runs twice"
        with store.acting(SERVER):
            summary = aggregate_updates(uri, round, statuses)
            assert "ann-b" in report(uri, round).html
    return summary


@pytest.fixture(scope="module")
def played(real_server, model, spec) -> KeyedStore:
    """A federation of the clients with trap names, one round old."""
    store = KeyedStore(real_server, "s3://perfit/team", spec.model_copy(update={"model": model}))
    assert [outcome["status"] for outcome in play(store)["clients"]] == ["trained"] * len(NAMES)
    return store


def test_a_round_succeeds_with_each_roles_own_keys(played):
    assert played.open(SERVER).read_head().round == 1
    for client in NAMES:
        assert "adapter/adapter_model.safetensors" in played.open(client).list_client_files(client)


def test_methods_that_exchange_nothing_keep_their_updates_private(real_server, model, spec):
    local = spec.model_copy(update={"model": model, "name": "local", "method": replace_method(spec, "local")})
    store = KeyedStore(real_server, "s3://perfit", local)
    play(store, rounds=2)
    record = store.open("ann").read_record(2, "ann")
    assert store.open("ann").read_update(record)
    with pytest.raises(AccessDenied):
        store.open(SERVER).read_update(record)


def replace_method(spec, name: str):
    return spec.method.model_copy(update={"name": name})


@pytest.mark.parametrize("client", NAMES)
def test_the_server_refuses_what_is_another_clients(played, client):
    objects = open_store(played.uri, played.environment(client))
    contents = [
        key.removeprefix("federations/tiny/") for key in open_store(played.uri, played.server.administrator).list("")
    ]
    for path in contents:
        allowed = may(played.spec, client, "read", path)
        assert readable(objects, f"federations/tiny/{path}") == allowed, path


def readable(objects, key: str) -> bool:
    try:
        objects.get(key)
    except AccessDenied:
        return False
    return True


@pytest.mark.parametrize(
    "path",
    [
        "spec.yaml",
        "head.json",
        "rounds/2/plan.json",
        "rounds/2/plan.json/updates/ann.json",
        "rounds/1/global.safetensors",
        "rounds/1/summary.json",
        "rounds/2/updates/ann-b.json",
        "rounds/2/updates/ann-b.json/updates/ann.json",
        f"masks/ann-b-{HASH}",
        "clients/ann-b/baseline.json",
        "clients/new/x",
    ],
)
def test_a_real_write_is_refused(played, path):
    objects = open_store(played.uri, played.environment("ann"))
    for write in (objects.put, objects.create, lambda key, data: objects.replace(key, data, '"etag"')):
        with pytest.raises(AccessDenied):
            write(f"federations/tiny/{path}", b"forged")


def test_other_requests_are_refused(played):
    client = S3Settings.from_environment(played.environment("ann")).connect(retries=False)
    mine, theirs = "team/federations/tiny/clients/ann/x", "team/federations/tiny/clients/ann-b/baseline.json"
    bucket = {"bucket_name": "perfit"}
    attempts = [
        lambda: client.copy_object(**bucket, object_name=mine, source=CopySource(**bucket, object_name=theirs)),
        lambda: client.stat_object(**bucket, object_name=theirs),
        lambda: client.remove_object(**bucket, object_name=theirs),
        lambda: client.remove_object(**bucket, object_name="team/federations/tiny/rounds/1/updates/ann.json"),
        lambda: list(client.list_objects(**bucket)),
        lambda: list(client.list_objects(**bucket, use_api_v1=True, recursive=True)),
        lambda: list(client.list_objects(**bucket, prefix="team/federations/tiny/masks/")),
        lambda: list(client.list_objects(**bucket, prefix="team/federations/tiny/clients/ann-b/")),
        lambda: client.set_bucket_policy(**bucket, policy=policy_text(server_policy(played.spec, played.uri))),
    ]
    for attempt in attempts:
        with pytest.raises(S3Error) as refused:
            attempt()
        assert refused.value.code == "AccessDenied"
    errors = client.remove_objects(**bucket, delete_object_list=[DeleteObject(name=theirs)])
    assert [error.code for error in errors] == ["AccessDenied"]
    assert client.list_buckets() == []
    administrator = open_store(played.uri, played.server.administrator)
    assert administrator.exists("federations/tiny/clients/ann-b/baseline.json")
    assert administrator.exists("federations/tiny/rounds/1/updates/ann.json")
    assert not administrator.exists("federations/tiny/clients/ann/x")
