"""What each role's key may do, by the documents and by a real server that enforces them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path, PurePosixPath

import pytest
from minio.commonconfig import CopySource
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.versioningconfig import ENABLED, VersioningConfig

from perfit.errors import PerfitError
from perfit.protocol import RoundSummary, UpdateRecord
from perfit_components.steps.aggregate import close_round
from perfit_components.steps.client import train
from perfit_components.steps.context import FederationContext
from perfit_components.steps.prepare import AS_IN_FILE, prepare
from perfit_components.steps.rollback import plan_rollback, roll_back
from perfit_pipelines.deploy.policies import Policy, client_policy, policy_text, server_policy
from perfit_storage import AccessDenied, open_store
from perfit_storage.s3 import S3Settings

from ...perfit.tiny import write_records
from ...perfit_components.running import make_spec
from ..store_roles import SERVER, KeyedStore, role_policies, role_server

STORE = "s3://tuning/team"
HASH = "0123456789abcdef" * 4
NAMES = ("ann", "ann-b", "plan", "global", "state", "downloads")
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
    conditions = statement.get("Condition", {"StringLike": {}})
    assert set(conditions) == {"StringLike"}
    assert set(conditions["StringLike"]) <= {"s3:prefix"}
    wanted = conditions["StringLike"].get("s3:prefix")
    return (
        _matches(statement["Action"], action)
        and _matches(statement["Resource"], f"arn:aws:s3:::{resource}")
        and (wanted is None or (prefix is not None and _matches(wanted, prefix)))
    )


def _matches(patterns: Sequence[str], text: str) -> bool:
    """Whether one of them matches: ``*`` is any text and ``?`` any character, slashes included."""
    return _compiled(tuple(patterns)).fullmatch(text) is not None


@cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    parts = {"*": ".*", "?": "."}
    each = ("".join(parts.get(mark) or re.escape(mark) for mark in pattern) for pattern in patterns)
    return re.compile("|".join(each), re.DOTALL)


@pytest.fixture(scope="module")
def spec(tmp_path_factory):
    data = tmp_path_factory.mktemp("policies")
    for name, count in zip(NAMES, [8, 5, 6, 5, 6, 5], strict=True):
        write_records(data / f"{name}.jsonl", name, count)
    return make_spec("no-model", data, clients={name: {} for name in NAMES})


@pytest.fixture(scope="module")
def policies(spec) -> dict[str, Policy]:
    """Each role's."""
    return role_policies(spec, STORE)


DIRECTORIES = ("tiny", "tiny.fedit", "tiny.fedsa-lora")
"""Of the federation, and of its runs by other methods."""


def may(policies: dict[str, Policy], role: str, action: str, path: str, directory: str = "tiny") -> bool:
    """Whether a role may read or write a path of a federation's directory, or list with it as prefix."""
    policy, key = policies[role], f"team/federations/{directory}/{path}"
    if action == "list":
        return evaluate(policy, "s3:ListBucket", "tuning", key)
    return evaluate(policy, {"read": "s3:GetObject", "write": "s3:PutObject"}[action], f"tuning/{key}")


def own_paths(client: str) -> list[str]:
    """Every key that the store keeps for one client."""
    return [
        f"masks/{client}/{HASH}",
        *(
            f"rounds/{n}/updates/{client}{end}"
            for n in (1, "5.1")
            for end in (".json", ".safetensors", f".{HASH}.safetensors")
        ),
        f"clients/{client}/baseline.json",
        f"clients/{client}/checkpoint.safetensors",
        f"clients/{client}/adapter/adapter_config.json",
        f"clients/{client}/state/3.safetensors",
        f"clients/{client}/state/5.1.safetensors",
    ]


READ_BY_ALL = ["spec.yaml", "model.json", "head.json"] + [
    f"rounds/{n}/{name}"
    for n in (0, 1, "5.1")
    for name in ("plan.json", "ranks/2.safetensors", f"ranks/2.{HASH}.safetensors")
]
FOR_THE_SERVER = [f"files/{HASH}.yaml"] + [
    f"rounds/{n}/{name}"
    for n in (0, 1, "5.1")
    for name in (
        "served.json",
        "summary.json",
        "report.html",
        "ranks/1.safetensors",
        *(
            f"{stem}{end}"
            for stem in ("exchanged", "global", "state")
            for end in (".safetensors", f".{HASH}.safetensors")
        ),
    )
]


def downloads(client: str) -> list[str]:
    """Every key that the server keeps for one client to read."""
    return [f"rounds/{n}/downloads/{client}{end}.safetensors" for n in (1, "5.1") for end in ("", f".{HASH}")]


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("client", NAMES)
def test_a_client_reads_and_writes_its_own(policies, client, directory):
    for path in own_paths(client):
        assert may(policies, client, "read", path, directory), path
        assert may(policies, client, "write", path, directory), path
    assert may(policies, client, "list", f"masks/{client}/", directory)
    assert may(policies, client, "list", f"clients/{client}/", directory)


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("other", NAMES)
def test_a_client_touches_nothing_of_another(policies, client, other, directory):
    for path in own_paths(other):
        assert may(policies, client, "read", path, directory) == (client == other), path
        assert may(policies, client, "write", path, directory) == (client == other), path
    for path in downloads(other):
        assert may(policies, client, "read", path, directory) == (client == other), path
        assert not may(policies, client, "write", path, directory), path
    assert may(policies, client, "list", f"clients/{other}/", directory) == (client == other)


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("client", NAMES)
def test_a_client_reads_what_is_shared_and_writes_none_of_it(policies, client, directory):
    for path in READ_BY_ALL:
        assert may(policies, client, "read", path, directory), path
        assert not may(policies, client, "write", path, directory), path
    for path in FOR_THE_SERVER:
        assert not may(policies, client, "read", path, directory), path
        assert not may(policies, client, "write", path, directory), path


@pytest.mark.parametrize("directory", DIRECTORIES)
@pytest.mark.parametrize("client", NAMES)
def test_no_layout_below_the_layout_is_a_clients(policies, client, directory):
    """The ``*`` of ``tiny.*`` matches slashes too: such a key must not pass for one in a directory of another name."""
    others = [other for other in NAMES if other != client]
    theirs = [
        *READ_BY_ALL,
        *FOR_THE_SERVER,
        *(path for other in others for path in own_paths(other) + downloads(other)),
    ]
    places = {str(place) for path in theirs for place in (PurePosixPath(path), *PurePosixPath(path).parents)} - {"."}
    assert {"clients", "clients/plan" if client != "plan" else "clients/ann", "rounds/1/updates"} < places
    for place in places:
        for path in [*own_paths(client), *downloads(client), *READ_BY_ALL, *FOR_THE_SERVER]:
            assert not may(policies, client, "read", f"{place}/{path}", directory), (place, path)
            assert not may(policies, client, "write", f"{place}/{path}", directory), (place, path)


@pytest.mark.parametrize(
    "path",
    [
        "tiny.fedit/clients/bob/clients/ann/x",
        "tiny.fedit/clients/bob/rounds/1/updates/ann.json",
        "tiny.fedit/clients/ann-b/state/1.safetensors",
        "tiny./clients/ann-b/clients/ann/x",
        "tiny.fedit/rounds/1/updates/ann-b.json/clients/ann/x",
        f"tiny.fedit/clients/ann-b/masks/ann/{HASH}",
        "tiny.fedit/clients/ann-b/spec.yaml",
        "tiny.fedit/clients/ann-b/head.json",
        "tiny.fedit/clients/ann-b/rounds/1/global.safetensors",
        "tiny-fedit/clients/ann/x",
        "tiny-2.fedit/clients/ann/x",
        "tiny.fedit",
    ],
)
def test_a_star_that_matches_slashes_opens_nothing(spec, path):
    policy = role_policies(spec, STORE)["ann"]
    for action in ("s3:GetObject", "s3:PutObject"):
        assert not evaluate(policy, action, f"tuning/team/federations/{path}")


@pytest.mark.parametrize(
    "path",
    [
        "rounds/2/plan.json/updates/ann.json",
        "rounds/2/updates/ann-b.json/updates/ann.json",
        "rounds/2/updates/ann-b.json/x",
        "rounds/2/global.safetensors/updates/ann.safetensors",
        f"masks/ann/{HASH}/x",
        f"masks/ann/{HASH[1:]}",
        "clients/ann",
        "clients/ann-b",
        f"rounds/2/updates/ann.x/{HASH}.safetensors",
        "updates/ann.json",
        "",
    ],
)
def test_a_client_writes_nowhere_else(policies, path):
    """Especially not below another's key: where keys are files and directories, that one could no longer be written."""
    assert not may(policies, "ann", "write", path)


@pytest.mark.parametrize(
    "prefix", ["", "masks/", "masks/ann", "clients/", "clients/ann", "clients/ann-", "rounds/", "masks/ann-b/"]
)
def test_a_client_lists_by_its_own_prefixes_alone(spec, policies, prefix):
    for directory in DIRECTORIES:
        assert not may(policies, "ann", "list", prefix, directory)
    policy = role_policies(spec, STORE)["ann"]
    assert not evaluate(policy, "s3:ListBucket", "tuning", None)
    assert not evaluate(policy, "s3:ListBucket", "tuning", "")
    assert not evaluate(policy, "s3:ListAllMyBuckets", "*")


def test_nobody_deletes_or_configures(spec):
    for policy in role_policies(spec, STORE).values():
        for action in (
            "s3:DeleteObject",
            "s3:PutBucketPolicy",
            "s3:DeleteObjectVersion",
            "s3:PutBucketVersioning",
            "s3:GetObjectVersion",
            "s3:PutObjectAcl",
            "admin:CreateUser",
        ):
            assert not evaluate(policy, action, "tuning/team/federations/tiny/head.json")
            assert not evaluate(policy, action, "tuning")


@pytest.mark.parametrize("directory", DIRECTORIES)
def test_the_server_reads_all_but_the_clients_files_and_writes_its_own(policies, directory):
    for path in [*READ_BY_ALL, *FOR_THE_SERVER, *(path for client in NAMES for path in downloads(client))]:
        assert may(policies, SERVER, "read", path, directory), path
        assert may(policies, SERVER, "write", path, directory), path
    for client in NAMES:
        for path in own_paths(client):
            assert may(policies, SERVER, "read", path, directory) == (not path.startswith("clients/")), path
            assert not may(policies, SERVER, "write", path, directory), path
        for path in [*READ_BY_ALL, *FOR_THE_SERVER]:
            for action in ("read", "write"):
                assert not may(policies, SERVER, action, f"clients/{client}/{path}", directory), path
    assert may(policies, SERVER, "list", "rounds/", directory)
    assert may(policies, SERVER, "list", "masks/", directory)
    assert may(policies, SERVER, "list", "rounds/7/updates/", directory)
    assert not may(policies, SERVER, "list", "rounds/7/", directory)
    assert not may(policies, SERVER, "list", "clients/ann/", directory)
    assert not may(policies, SERVER, "list", "", directory)


def test_no_key_reaches_another_federation_or_store(spec):
    for policy in role_policies(spec, STORE).values():
        for key in (
            "team/federations/tiny-2/spec.yaml",
            "team/federations/tiny-2.fedit/spec.yaml",
            "team/federations/tiny-fedit/spec.yaml",
            "federations/tiny/spec.yaml",
            "teams/federations/tiny/spec.yaml",
        ):
            assert not evaluate(policy, "s3:GetObject", f"tuning/{key}")
        assert not evaluate(policy, "s3:GetObject", "tunings/team/federations/tiny/spec.yaml")


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
    with pytest.raises(PerfitError, match=r"is not (a|the URI of a) store|holds credentials") as refused:
        server_policy(spec, uri)
    assert "key:secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["data", "held_out"])
@pytest.mark.parametrize(
    "uri",
    [
        "s3://tuning/team/federations/tiny/clients/ann-b/adapter/adapter_model.safetensors",
        "s3://tuning/team/federations/other/rounds/1/updates/x.jsonl",
        "s3://tuning/federations/other/clients/eve/x.jsonl",
    ],
)
def test_no_policy_grants_a_federations_file_as_records(spec, key, uri):
    ann = spec.clients[0].model_copy(update={key: uri})
    with pytest.raises(PerfitError, match=r"client 'ann': .* is where the store s3://tuning/team keeps federations"):
        client_policy(spec, ann, STORE)
    assert client_policy(spec, ann, "s3://other/team")


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


def play(store: KeyedStore, rounds: int = 1, method: str = AS_IN_FILE) -> RoundSummary:
    """Run the steps of a federation, each with its own role's keys; return the last summary."""
    ids = {store.spec.secret_of(client): client.id for client in store.spec.clients}
    with store.acting(SERVER):
        prepared = prepare(store.spec.to_yaml(), store.uri, method)
    uri, (names,) = prepared.uri, prepared.participants
    for round in range(1, rounds + 1):
        for name in names:
            with store.acting(ids[name]):
                output, _ = train(uri, round, name, threads=1)
                assert output == {"client": ids[name], "status": "trained", "reason": ""}
                assert train(uri, round, name, threads=1).output == output, "a task that runs twice"
        with store.acting(SERVER):
            closed = close_round(uri, round, ["default"])
            assert "ann-b" in closed.report.html
            (names,) = closed.participants
    with store.acting(SERVER):
        return FederationContext.open(uri).summaries()[-1]


@pytest.fixture(scope="module")
def played(real_server, model, spec) -> KeyedStore:
    """A federation of the clients with trap names, one round old, and two of its run by a method with a state."""
    store = KeyedStore(real_server, "s3://perfit/team", spec.model_copy(update={"model": model}))
    assert [record.status for record in play(store).clients] == ["trained"] * len(NAMES)
    assert play(store, rounds=2, method="fedadam").round == 2
    return store


def test_a_round_succeeds_with_each_roles_own_keys(played):
    assert played.open(SERVER).read_head().round == 1
    for client in NAMES:
        assert "adapter/adapter_model.safetensors" in played.open(client).list_client_files(client)


def test_a_run_by_another_method_succeeds_with_the_same_keys(played):
    head = played.open(SERVER, "tiny.fedadam").read_head()
    assert (head.round, head.state.key) == (2, "rounds/2/state.safetensors")
    for client in NAMES:
        store = played.open(client, "tiny.fedadam")
        assert "adapter/adapter_model.safetensors" in store.list_client_files(client)
        with pytest.raises(AccessDenied):
            store.read_blob(head.state)


def test_methods_that_exchange_nothing_upload_nothing(real_server, model, spec):
    local = make_spec(
        model,
        Path(spec.client("ann").data).parent,
        name="local",
        method={"name": "local"},
        clients={"ann": {}, "ann-b": {}},
    )
    store = KeyedStore(real_server, "s3://perfit", local)
    records = play(store, rounds=2).clients
    assert [(type(record), record.update, record.bytes_up) for record in records] == [(UpdateRecord, None, 0)] * 2
    names = list(open_store("s3://perfit/federations/local", real_server.administrator).list("rounds/2/updates/"))
    assert names == ["rounds/2/updates/ann-b.json", "rounds/2/updates/ann.json"]
    assert store.open("ann").get_client_file("ann", "state/2.safetensors")
    with pytest.raises(AccessDenied):
        store.open(SERVER).get_client_file("ann", "state/2.safetensors")


def test_a_rollback_needs_the_servers_key_and_each_role_goes_on(real_server, model, spec):
    data = Path(spec.client("ann").data).parent
    two = make_spec(model, data, method={"name": "fedsa-lora"}, clients={"ann": {}, "ann-b": {}})
    store = KeyedStore(real_server, "s3://perfit/rolled-back", two)
    play(store, rounds=2)
    with store.acting(SERVER):
        context = FederationContext.open(store.open(SERVER).uri)
        planned = plan_rollback(context, 0)
    with pytest.raises(AccessDenied):
        store.open("ann").roll_back_head(planned.old, planned.new)
    roll_back(context, planned)
    assert play(store, rounds=2).clients[0].update.key == "rounds/2.1/updates/ann.safetensors"
    assert "state/2.1.safetensors" in store.open("ann").list_client_files("ann")


def test_preparing_needs_nothing_of_clients(real_server, model, spec):
    """It runs the clients' image under the server's key: a narrower one does, which lists masks and reads none."""
    founding = ("spec.yaml", "model.json", "head.json", "rounds/0/*.safetensors", "rounds/*/plan.json")
    keys = [f"arn:aws:s3:::perfit/founding/federations/tiny/{path}" for path in founding]
    narrow = {"Effect": "Allow", "Action": ["s3:GetObject", "s3:PutObject"], "Resource": keys}
    masks = {
        "Effect": "Allow",
        "Action": ["s3:ListBucket"],
        "Resource": ["arn:aws:s3:::perfit"],
        "Condition": {
            "StringLike": {"s3:prefix": ["founding/federations/tiny/masks/*", "founding/federations/tiny/rounds/*"]}
        },
    }
    real_server.add_users({"preparing": ("secret", {"Version": "2012-10-17", "Statement": [narrow, masks]})})
    tree = spec.model_copy(update={"model": model}).to_yaml()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in real_server.environment("preparing", "secret").items():
            patch.setenv(name, value)
        prepared = prepare(tree, "s3://perfit/founding")
        assert prepare(tree, "s3://perfit/founding") == prepared, "a task that runs twice"
    assert len(prepared.participants[0]) == len(NAMES)


def test_what_somebody_overwrites_is_found_again_where_the_bucket_keeps_versions(real_server, model, spec):
    """A store of one's own: a client writes over its own record, the operator finds the first."""
    administrator = S3Settings.from_environment(real_server.administrator).connect(retries=False)
    administrator.make_bucket("versions")
    administrator.set_bucket_versioning("versions", VersioningConfig(ENABLED))
    store = KeyedStore(real_server, "s3://versions", spec.model_copy(update={"model": model}))
    assert play(store).round == 1
    key = "federations/tiny/rounds/1/updates/ann.json"
    open_store("s3://versions", store.environment("ann")).put(key, b"forged")
    versions = [item.version_id for item in administrator.list_objects("versions", key, include_version=True)]
    contents = [administrator.get_object("versions", key, version_id=version).data for version in versions]
    assert contents[0] == b"forged"
    assert b'"status":"trained"' in contents[1].replace(b" ", b"")


@pytest.mark.parametrize("client", NAMES)
def test_the_server_refuses_what_is_another_clients(played, policies, client):
    objects = open_store(played.uri, played.environment(client))
    keys = list(open_store(played.uri, played.server.administrator).list(""))
    assert {key.split("/")[1] for key in keys} == {"tiny", "tiny.fedadam"}
    for key in keys:
        _, directory, path = key.split("/", 2)
        assert readable(objects, key) == may(policies, client, "read", path, directory), key


def readable(objects, key: str) -> bool:
    try:
        objects.get(key)
    except AccessDenied:
        return False
    return True


@pytest.mark.parametrize("directory", ["tiny", "tiny.fedadam"])
@pytest.mark.parametrize(
    "path",
    [
        "spec.yaml",
        "model.json",
        "head.json",
        "rounds/2/plan.json",
        "rounds/2/plan.json/updates/ann.json",
        "rounds/1/global.safetensors",
        "rounds/2/exchanged.safetensors",
        "rounds/2/downloads/ann.safetensors",
        "rounds/1/ranks/2.safetensors",
        "rounds/1/state.safetensors",
        "rounds/1/summary.json",
        "rounds/2/updates/ann-b.json",
        "rounds/2/updates/ann-b.json/updates/ann.json",
        f"masks/ann-b/{HASH}",
        "clients/ann-b/baseline.json",
        "clients/ann-b/state/1.safetensors",
        "clients/ann-b/clients/ann/x",
        "clients/ann-b/rounds/1/updates/ann.json",
        f"clients/ann-b/masks/ann/{HASH}",
        "clients/new/x",
    ],
)
def test_a_real_write_is_refused(played, path, directory):
    objects = open_store(played.uri, played.environment("ann"))
    for write in (objects.put, objects.create, lambda key, data: objects.replace(key, data, '"etag"')):
        with pytest.raises(AccessDenied):
            write(f"federations/{directory}/{path}", b"forged")


@pytest.mark.parametrize("directory", ["tiny", "tiny.fedadam"])
def test_a_layout_below_the_layout_is_really_out_of_reach(played, directory):
    """Also where the store's administrator has put something there, as nobody else can."""
    administrator = open_store(played.uri, played.server.administrator)
    hidden = ["clients/ann-b/clients/ann/x", "clients/ann-b/rounds/1/updates/ann.json", "clients/ann-b/head.json"]
    keys = [f"federations/{directory}/{path}" for path in hidden]
    objects = open_store(played.uri, played.environment("ann"))
    for key in keys:
        administrator.put(key, b"of ann-b")
    try:
        assert [key for key in keys if readable(objects, key)] == []
    finally:
        for key in keys:
            administrator.delete(key)


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
        lambda: list(client.list_objects(**bucket, prefix="team/federations/tiny.fedadam/masks/")),
        lambda: list(client.list_objects(**bucket, prefix="team/federations/tiny.fedadam/clients/ann-b/")),
        lambda: list(client.list_objects(**bucket, prefix="team/federations/tiny.")),
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
