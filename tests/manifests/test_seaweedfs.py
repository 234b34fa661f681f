"""The overlay's SeaweedFS gives each key what its policy says, by a real server that start.sh runs."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from urllib.parse import urlencode, urlsplit

import pytest
import urllib3
from minio.credentials.credentials import Credentials
from minio.error import S3Error
from minio.signer import _sign_v4

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.deploy.policies import policy_text
from perfit_pipelines.deploy.roles import Role, roles_of

from .iam import evaluate
from .seaweedfs import ROOT, SHELLS, Seaweedfs, read, seaweedfs

HASH = "0123456789abcdef" * 4
NAMES = ("ann", "ann-b", "plan", "global")
"""Clients with dangerous names: the prefix of another's, and the names of shared files."""


def federation(name: str = "tiny", clients: tuple[str, ...] = NAMES) -> ClusterSpec:
    """A client's records are in the store, under a name that JSON and awk escape."""
    entries = [{"id": client, "data": f's3://perfit/records/{client} "ü&.jsonl'} for client in clients]
    return ClusterSpec.model_validate({"name": name, "model": "owner/model", "clients": entries})


def secret_of(role: Role) -> str:
    return f"secret-of-{role.access_key}&/+="


def files_of(*roles: Role) -> dict[str, str]:
    """What `perfit deploy` puts into the Secrets."""
    return {f"{role.access_key}.secret-key": secret_of(role) for role in roles} | {
        f"{role.access_key}.policy.json": policy_text(role.policy) for role in roles
    }


ROLES = roles_of(federation(), "s3://perfit")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Seaweedfs]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs"), files_of(*ROLES)) as running:
        yield running


def paths() -> list[str]:
    """Keys of two federations, of a run by another method, and others."""
    own = [
        path
        for name in (*NAMES, "eve")
        for path in (
            f"masks/{name}/{HASH}",
            f"clients/{name}/checkpoint.safetensors",
            f"rounds/1/updates/{name}.json",
            f"rounds/1/updates/{name}.{HASH}.safetensors",
            f"rounds/1/downloads/{name}.safetensors",
        )
    ]
    shared = ("spec.yaml", "head.json", "rounds/1/plan.json", "rounds/1/summary.json", "rounds/0/global.safetensors")
    directories = ("federations/tiny", "federations/tiny.fedit", "federations/tiny2")
    records = [f'records/{name} "ü&.jsonl' for name in NAMES]
    return [f"{directory}/{path}" for directory in directories for path in (*own, *shared)] + [*records, "elsewhere"]


def refused(call) -> bool:
    """Whether a request is denied; one for what is not there is not."""
    try:
        call()
    except S3Error as error:
        if error.code not in ("AccessDenied", "NoSuchKey"):
            raise
        return error.code == "AccessDenied"
    return False


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_each_key_may_do_exactly_what_its_policy_says(server, role):
    client = server.client(role.access_key, secret_of(role))
    for key in paths():
        requests = {
            "s3:GetObject": lambda key=key: read(client, key),
            "s3:PutObject": lambda key=key: client.put_object(
                bucket_name="perfit", object_name=key, data=io.BytesIO(b"1"), length=1
            ),
            "s3:DeleteObject": lambda key=key: client.remove_object(bucket_name="perfit", object_name=key),
        }
        for action, request in requests.items():
            assert refused(request) != evaluate([role.policy], action, f"perfit/{key}"), (action, key)


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_each_key_lists_what_its_policy_says(server, role):
    client = server.client(role.access_key, secret_of(role))
    prefixes = {path[: path.rindex("/") + 1] for path in paths() if "/" in path} | {"", "federations/"}
    for prefix in prefixes:
        allowed = evaluate([role.policy], "s3:ListBucket", "perfit", prefix)
        call = lambda prefix=prefix: list(client.list_objects(bucket_name="perfit", prefix=prefix))  # noqa: E731
        assert refused(call) != allowed, prefix


def test_nobody_configures(server):
    for role in ROLES:
        client = server.client(role.access_key, secret_of(role))
        assert refused(lambda client=client: client.make_bucket(bucket_name="another"))
        assert refused(lambda client=client: client.remove_bucket(bucket_name="perfit"))
        assert refused(lambda client=client: client.set_bucket_policy(bucket_name="perfit", policy="{}"))
        assert refused(client.list_buckets) or list(client.list_buckets()) == []


def test_the_iam_api_is_off(server):
    """With it a client could make itself a key that outlives a rotation."""
    client = ROLES[1]
    for name, secret in (ROOT, (client.access_key, secret_of(client))):
        added = {"UserName": client.access_key, "AccessKeyId": "another1", "SecretAccessKey": "another-secret"}
        assert call_iam(server, name, secret, "CreateAccessKey", **added) >= 400
    assert server.answer("another1", "another-secret") == "InvalidAccessKeyId"


def call_iam(server: Seaweedfs, access_key: str, secret_key: str, action: str, **parameters: str) -> int:
    """A signed request to the IAM API; returns the status."""
    url = f"http://127.0.0.1:{8333 + server.offset}/"
    body = urlencode({"Action": action, "Version": "2010-05-08", **parameters})
    hashed, now = hashlib.sha256(body.encode()).hexdigest(), datetime.now(UTC)
    headers = {
        "Host": urlsplit(url).netloc,
        "Content-Type": "application/x-www-form-urlencoded",
        "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
        "x-amz-content-sha256": hashed,
    }
    signed = _sign_v4(
        service_name="iam",
        method="POST",
        url=urlsplit(url),
        region="us-east-1",
        headers=headers,
        credentials=Credentials(access_key, secret_key),
        content_sha256=hashed,
        date=now,
    )
    return urllib3.request("POST", url, body=body, headers=signed, retries=False).status


def test_only_the_s3_server_listens_beyond_the_pod(server):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect(("198.51.100.1", 9))  # Sends nothing; says which of this machine's addresses would be used.
        address = route.getsockname()[0]
    for port, reachable in {8333: True, 9333: False, 8080: False, 8888: False, 18888: False, 19333: False}.items():
        with socket.socket() as probe:
            assert (probe.connect_ex((address, port + server.offset)) == 0) == reachable, port


def test_the_grpc_port_makes_nobody_a_user(server):
    """Without a key, SeaweedFS 4.48 lets anyone add an administrator there."""
    if (
        shutil.which("curl") is None
        or "HTTP2" not in subprocess.run(["curl", "--version"], capture_output=True, text=True).stdout
    ):
        pytest.skip("there is no curl that speaks HTTP/2")
    field = lambda number, data: bytes([number << 3 | 2, len(data)]) + data  # noqa: E731
    credential = field(1, b"mallory") + field(2, b"secret-of-mallory")
    identity = field(1, field(1, b"mallory") + field(2, credential) + field(3, b"Admin"))
    url = f"http://127.0.0.1:{18333 + server.offset}/messaging_pb.SeaweedS3IamCache/PutIdentity"
    headers = ["-H", "content-type: application/grpc", "-H", "te: trailers"]
    call = ["curl", "-s", "-i", "--http2-prior-knowledge", "--max-time", "10", *headers, "--data-binary", "@-", url]
    body = b"\0" + struct.pack(">I", len(identity)) + identity
    done = subprocess.run(call, input=body, capture_output=True)
    assert b"grpc-status: 16" in done.stdout, done.stdout  # UNAUTHENTICATED
    assert server.answer("mallory", "secret-of-mallory") == "InvalidAccessKeyId"


def test_unknown_keys_and_none_are_refused(server):
    assert server.answer("nobody", "secret") == "InvalidAccessKeyId"
    assert server.answer(ROLES[1].access_key, "wrong") == "SignatureDoesNotMatch"
    with socket.create_connection(("127.0.0.1", 8333 + server.offset)) as plain:
        plain.sendall(b"GET /perfit/elsewhere HTTP/1.0\r\n\r\n")
        assert b" 403 " in plain.recv(100)


@pytest.mark.parametrize("shell", SHELLS)
def test_what_changes_in_the_secrets_changes_in_the_store(tmp_path, shell):
    """A client that leaves, one that joins, a rotated key and a changed policy, without a restart."""
    ann, bob, eve = roles_of(federation(clients=("ann", "bob", "eve")), "s3://perfit")[1:]
    with seaweedfs(tmp_path, files_of(ann, bob), shell) as server:
        assert server.answer(ann.access_key, secret_of(ann)) == "AccessDenied"
        assert server.answer(eve.access_key, secret_of(eve)) == "InvalidAccessKeyId"
        server.client(*ROOT).put_object(
            bucket_name="perfit", object_name="nothing-else", data=io.BytesIO(b"1"), length=1
        )
        policy = json.dumps(
            {
                "Version": "2012-10-17",
                "Statement": [
                    {"Effect": "Allow", "Action": ["s3:GetObject"], "Resource": ["arn:aws:s3:::perfit/nothing"]}
                ],
            }
        )
        server.mount(files_of(eve) | {"tiny.bob.secret-key": "a-new-secret", "tiny.bob.policy.json": policy})
        server.wait_for(ann.access_key, secret_of(ann), "InvalidAccessKeyId")
        assert server.answer(bob.access_key, secret_of(bob)) == "SignatureDoesNotMatch"
        assert server.answer(bob.access_key, "a-new-secret") == "NoSuchKey"
        assert server.answer(eve.access_key, secret_of(eve)) == "AccessDenied"
        server.mount(files_of(ann))
        server.wait_for(ann.access_key, secret_of(ann), "AccessDenied")
        assert server.answer(eve.access_key, secret_of(eve)) == "InvalidAccessKeyId"


def test_without_any_client_the_store_is_closed(tmp_path):
    with seaweedfs(tmp_path, {}) as server:
        assert server.answer("nobody", "secret") == "InvalidAccessKeyId"
        assert server.answer(*ROOT) == "NoSuchKey"


def test_a_thousand_clients_in_one_step(tmp_path):
    clients = tuple(f"client-{number:04d}" for number in range(1000))
    roles = roles_of(federation(clients=clients), "s3://perfit")
    with seaweedfs(tmp_path, files_of(roles[0])) as server:
        server.mount(files_of(*roles))
        server.wait_for(roles[-1].access_key, secret_of(roles[-1]), "AccessDenied")
        for role in roles[::100]:
            own = f"federations/tiny/clients/{role.client}/checkpoint.safetensors"
            client = server.client(role.access_key, secret_of(role))
            allowed = not refused(lambda own=own, client=client: read(client, own))
            assert allowed == (role.client is not None)
