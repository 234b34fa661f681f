"""What the server's key may do, against the layout that ``FederationStore`` writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.deploy.policies import server_policy
from perfit_storage import (
    AccessDenied,
    Blob,
    FederationStore,
    Head,
    ObjectNotFound,
    ObjectStore,
    RoundPlace,
    open_store,
)

from ..perfit_pipelines.store_roles import role_server
from .iam import PolicedStore, evaluate
from .rendering import MANIFESTS, WITH_MINIO, only

HASH = "0123456789abcdef" * 4
FOUNDING, FIRST = RoundPlace(0), RoundPlace(1)
TRAPS = ("ann", "plan", "summary", "report", "global", "state", "head", "spec")
"""Clients that are called as the server's own files and directories are."""


NO_SELF_SERVICE = json.loads((MANIFESTS / "base/minio/policies/no-self-service.json").read_text())


def policies_of(name: str) -> list[dict]:
    """Those of a federation's server, of which a run by another method is one more directory."""
    clients = [{"id": client, "data": f"owner/{client}"} for client in TRAPS]
    spec = ClusterSpec.model_validate({"name": name.partition(".")[0], "model": "owner/model", "clients": clients})
    return [server_policy(spec, "s3://perfit"), NO_SELF_SERVICE]


POLICIES = policies_of("tiny")


def may(action: str, key: str) -> bool:
    return evaluate(POLICIES, f"s3:{action}Object", f"perfit/{key}")


def may_list(prefix: str | None) -> bool:
    return evaluate(POLICIES, "s3:ListBucket", "perfit", prefix)


@pytest.fixture
def objects(tmp_path: Path) -> ObjectStore:
    """The bucket, with nobody's eyes."""
    return open_store(tmp_path.as_uri())


@pytest.fixture(params=["tiny", "tiny.fedadam", "clients", "rounds", "masks"])
def federation(request, objects) -> tuple[FederationStore, FederationStore]:
    """One federation, as the server may see it and as it is: also by another method, or called as the layout's own."""
    policed = PolicedStore(objects, policies_of(request.param), "perfit")
    return FederationStore(policed, request.param), FederationStore(objects, request.param)


def test_the_server_does_its_part_of_a_round(federation, objects):
    server, everybody = federation
    play_the_servers_part(server, everybody)


def test_the_server_of_another_federation_has_no_part_in_it(federation, objects):
    _, everybody = federation
    everybody.put_report(FIRST, b"<html>")
    for name in ("tin", "tiny-2", "ann", f"{everybody.name.partition('.')[0]}-2"):
        other = FederationStore(PolicedStore(objects, policies_of(name), "perfit"), everybody.name)
        with pytest.raises(AccessDenied):
            other.read_report(FIRST)
        with pytest.raises(AccessDenied):
            other.put_report(FIRST, b"forged")


def play_the_servers_part(server: FederationStore, everybody: FederationStore) -> None:
    """Each call of the server's steps: prepare, plan, aggregate, report."""
    with pytest.raises(ObjectNotFound, match="no federation"):
        server.read_spec()
    assert server.write_spec(b"spec", None)
    assert server.write_spec(b"spec 2", b"spec")
    assert server.read_model() is None
    assert server.write_model(b"model", expected=None)
    assert server.read_model() == b"model"
    base = Head(0, server.put_global(FOUNDING, b"initial"), server.put_state(FOUNDING, b"moments"))
    assert server.create_head(base)
    assert server.read_head() == base
    assert not server.has_masks()
    assert not server.has_rounds()
    base, first = base.rolled_back_to(base), base
    assert server.found_again(first, base)
    assert server.create_plan(FIRST, b"the plan") == b"the plan"
    assert server.read_record(FIRST, "ann") is None
    mask, values, update = put_update(everybody, 1, "ann")
    assert server.get_mask("ann", HASH) == mask
    assert server.read_record(FIRST, "ann") == b"trained"
    assert server.read_blob(update) == values
    assert server.read_blob(base.adapter) == b"initial"
    assert server.read_blob(base.state) == b"moments"
    one, moments = server.put_global(FIRST, b"one"), server.put_state(FIRST, b"moments 1")
    assert server.advance_head(base, Head(1, one, moments, branches=base.branches))
    assert server.put_global(FIRST, b"of another attempt").key.startswith("rounds/1/global.")
    assert server.put_state(FIRST, b"of another attempt").key.startswith("rounds/1/state.")
    summary = server.put_summary(FIRST, b"the summary")
    assert server.put_summary(FIRST, b"of another attempt").key.startswith("rounds/1/summary.")
    server.put_report(FIRST, b"<html>")
    server.put_report(FIRST, b"<html> again")
    assert server.read_blob(summary) == b"the summary"
    assert server.read_report(FIRST) == b"<html> again"


def put_update(store: FederationStore, round: int, client: str) -> tuple[bytes, bytes, Blob]:
    """What a client leaves: its mask, an update, its record, and files that are its own."""
    mask, values = f"mask of {client}".encode(), f"values of {client}".encode()
    store.put_mask(client, HASH, mask)
    store.put_client_file(client, "adapter/adapter_model.safetensors", b"personal")
    store.put_client_file(client, f"state/{round}.safetensors", b"kept")
    update = store.put_update(RoundPlace(round), client, values)
    store.put_record(RoundPlace(round), client, b"trained", lambda record: True)
    return mask, values, update


@pytest.mark.parametrize("client", TRAPS)
def test_the_server_cannot_read_or_write_what_is_a_clients_own(federation, client):
    server, everybody = federation
    put_update(everybody, 1, client)
    for attempt in forbidden(server, client):
        with pytest.raises(AccessDenied):
            attempt()
    assert server.read_record(FIRST, client) == b"trained"
    assert everybody.read_record(RoundPlace(2), client) is None


def forbidden(server: FederationStore, client: str) -> list[Callable[[], object]]:
    """What the server must not do with a client's things."""
    return [
        lambda: server.get_client_file(client, "adapter/adapter_model.safetensors"),
        lambda: server.get_client_file(client, "state/1.safetensors"),
        lambda: server.put_client_file(client, "state/1.safetensors", b"forged"),
        lambda: server.put_client_file(client, "rounds/1/state.safetensors", b"forged"),
        lambda: server.put_client_file(client, "adapter/adapter_model.safetensors", b"forged"),
        lambda: server.put_client_file(client, "head.json", b"forged"),
        lambda: server.put_mask(client, HASH, b"forged"),
        lambda: server.put_update(RoundPlace(2), client, b"forged"),
        lambda: server.put_record(RoundPlace(2), client, b"failed", lambda record: False),
        lambda: server.put_record(FIRST, client, b"forged", lambda record: False),
    ]


def test_the_server_deletes_nothing(federation, objects):
    server, _ = federation
    server.create_head(Head(0, server.put_global(FOUNDING, b"")))
    policed = PolicedStore(objects, POLICIES, "perfit")
    with pytest.raises(AccessDenied):
        policed.delete(f"federations/{server.name}/head.json")


@pytest.mark.parametrize(
    "key",
    [
        "head.json",
        "federations/spec.yaml",
        "federations/tiny/notes.txt",
        "federations/tiny/rounds/1/updates/ann.json",
        "federations/tiny/rounds/1/updates/plan.json",
        f"federations/tiny/rounds/1/updates/global.{HASH}.safetensors",
        f"federations/tiny/rounds/1/updates/state.{HASH}.safetensors",
        "federations/tiny/clients/ann/rounds/1/state.safetensors",
        f"federations/tiny/masks/ann/{HASH}",
        "federations/tiny/clients/ann/spec.yaml",
        "federations/tiny/clients/ann/model.json",
        "other/tiny/spec.yaml",
    ],
)
def test_writes_elsewhere_are_refused(key):
    assert not may("Put", key)


@pytest.mark.parametrize("key", ["head.json", "other/x", "federations/tiny/notes.txt", "federations/tiny/clients/a/x"])
def test_reads_elsewhere_are_refused(key):
    assert not may("Get", key)


def test_listings_begin_with_the_federations_directory():
    assert may_list("federations/tiny/rounds/")
    for prefix in (None, "", "other/", "feder", "federations/", "federations/tiny-2/rounds/"):
        assert not may_list(prefix)


@pytest.mark.parametrize(
    "action",
    [
        *("s3:DeleteObject", "s3:DeleteObjectVersion", "s3:PutBucketPolicy", "s3:DeleteBucket", "s3:ListAllMyBuckets"),
        *("s3:PutObjectAcl", "s3:GetObjectVersion", "s3:BypassGovernanceRetention", "s3:CreateBucket"),
        *("admin:CreateUser", "admin:CreateServiceAccount", "admin:ConfigUpdate"),
    ],
)
def test_no_other_request_is_granted(action):
    for resource in ("perfit", "perfit/federations/tiny/head.json", "another-bucket/x"):
        assert not evaluate(POLICIES, action, resource)


def test_another_bucket_is_out_of_reach():
    for action in ("s3:GetObject", "s3:PutObject"):
        assert not evaluate(POLICIES, action, "perfit-2/federations/tiny/spec.yaml")
    assert not evaluate(POLICIES, "s3:ListBucket", "perfit-2", "federations/")


def test_users_may_not_manage_their_own_keys():
    """MinIO lets everybody who is not denied it: a thief's second key would outlive the rotation of the first."""
    allow_all = {"Statement": [{"Effect": "Allow", "Action": ["admin:*"]}]}
    assert evaluate([allow_all], "admin:CreateServiceAccount", "")
    assert not evaluate([allow_all, NO_SELF_SERVICE], "admin:CreateServiceAccount", "")


@pytest.mark.parametrize("overlay", WITH_MINIO)
def test_the_setup_gets_these_policies(overlay):
    data = only(overlay, "ConfigMap", "minio-policies")["data"]
    assert {name: json.loads(text) for name, text in data.items()} == {"no-self-service.json": NO_SELF_SERVICE}


def test_a_real_server_takes_the_policy_and_enforces_it(tmp_path):
    """SeaweedFS evaluates such documents whole; MinIO itself cannot be had where these tests run."""
    with role_server(tmp_path / "server") as running:
        running.add_users({"perfitserver-tiny": ("secret", POLICIES[0])})
        environment = running.environment("perfitserver-tiny", "secret")
        server = FederationStore.open("s3://perfit", "tiny", environment)
        everybody = FederationStore.open("s3://perfit", "tiny", running.administrator)
        play_the_servers_part(server, everybody)
        for attempt in forbidden(server, "plan"):
            with pytest.raises(AccessDenied):
                attempt()
