"""``perfit deploy --apply``: the real kubectl against a small API server."""

from __future__ import annotations

import base64
import os
import tempfile
from pathlib import Path

import pytest

from perfit.errors import PerfitError
from perfit_pipelines.deploy.kubectl import Kubectl, find_kubectl

from .conftest import write_federation


def contents(cluster, name: str, namespace: str = "kubeflow") -> dict[str, str]:
    data = cluster.get("Secret", name, namespace)["data"]
    return {key: base64.b64decode(value).decode() for key, value in data.items()}


def client_files(cluster) -> dict[str, str]:
    """What MinIO's setup reads about clients."""
    names = [key[3] for key in cluster.objects if key[1] == "secrets" and key[3].startswith("perfit-clients-")]
    return {file: text for name in names for file, text in contents(cluster, name, "perfit").items()}


def all_secrets(cluster) -> list[str]:
    keys = [contents(cluster, key[3], key[2]) for key in cluster.objects if key[1] == "secrets"]
    return [text for texts in keys for name, text in texts.items() if "SECRET" in name or "PASSWORD" in name]


@pytest.fixture(autouse=True)
def scratch(place, monkeypatch) -> Path:
    """The directory of temporary files."""
    directory = place / "scratch"
    directory.mkdir()
    monkeypatch.setenv("TMPDIR", str(directory))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return directory


def test_the_cluster_gets_all_and_the_disk_nothing(deploy, cluster, place, scratch):
    said = deploy("federation.yaml", "--overlay", "kind", "--apply")
    assert "statefulset.apps/minio serverside-applied" in said
    assert "keys of the server and of 2 clients, as Secrets in namespace kubeflow" in said
    key = contents(cluster, "perfitserver-tiny")["AWS_SECRET_ACCESS_KEY"]
    assert client_files(cluster)["perfitserver-tiny.secret-key"] == key
    assert client_files(cluster)["tiny.ann.secret-key"] == contents(cluster, "perfit-tiny-ann")["AWS_SECRET_ACCESS_KEY"]
    assert list(scratch.iterdir()) == []
    assert not (place / ".perfit").exists()
    assert len(all_secrets(cluster)) == 4
    assert not any(secret in said for secret in all_secrets(cluster))


def test_keys_that_the_cluster_has_are_kept(deploy, cluster):
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    first = {key: value["data"] for key, value in cluster.objects.items() if key[1] == "secrets"}
    cluster.requests.clear()
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    assert {key: value["data"] for key, value in cluster.objects.items() if key[1] == "secrets"} == first
    setups = [
        request for request in cluster.requests if "jobs/minio-setup" in request and not request.startswith("GET")
    ]
    assert [request.split()[0] for request in setups] == ["DELETE", "PATCH"], "the Job runs again"
    deploy("federation.yaml", "--overlay", "kind", "--apply", "--rotate", "server")
    changed = {key[2:] for key, data in first.items() if cluster.objects[key]["data"] != data}
    (shard,) = (name for namespace, name in changed if namespace == "perfit")
    assert changed == {("kubeflow", "perfitserver-tiny"), ("perfit", shard)}
    assert "perfitserver-tiny.secret-key" in contents(cluster, shard, "perfit")


@pytest.mark.parametrize("secret", ["perfitserver-tiny", "perfit-tiny-ann"])
def test_a_role_has_one_key_in_all_namespaces(deploy, cluster, secret):
    """MinIO knows one: a second namespace must not lock out the first, nor one be left behind by a rotation."""
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    deploy("federation.yaml", "--overlay", "kind", "--apply", "--namespace", "alice", "--rotate", "all")
    assert contents(cluster, secret, "alice") != contents(cluster, secret)
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    assert contents(cluster, secret, "alice") == contents(cluster, secret)


def test_another_federation_changes_no_key_of_the_first(deploy, cluster, place):
    """By ``--apply``, or by a directory that is applied."""
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    first = client_files(cluster), {name: contents(cluster, name) for name in ("perfitserver-tiny", "perfit-tiny-ann")}
    other = write_federation(place / "other.yaml", name="other")
    deploy(other, "--overlay", "kind", "--output", place / "out")
    Kubectl().apply(place / "out", "perfit-other", [])
    deploy(other, "--overlay", "kind", "--apply")
    assert client_files(cluster).items() >= first[0].items()
    assert {name: contents(cluster, name) for name in first[1]} == first[1]
    assert contents(cluster, "perfitserver-other") != contents(cluster, "perfitserver-tiny")


@pytest.mark.parametrize("how", [("--apply",), ("--output", "out")])
def test_an_overlay_that_changes_while_the_secrets_keep_another_endpoint_is_told(deploy, cluster, how):
    elsewhere = ("--overlay", "existing-minio", "--endpoint", "https://s3.example.com")
    assert "endpoint" not in deploy("federation.yaml", *elsewhere, "--apply")
    said = deploy("federation.yaml", "--overlay", "existing-minio", *how)
    assert "the Secrets keep the endpoint https://s3.example.com: overlay 'existing-minio' has no store" in said
    said = deploy("federation.yaml", "--overlay", "kind", *how)
    own = "http://minio.perfit.svc:9000"
    assert "WARNING: the Secrets keep the endpoint https://s3.example.com, not that of overlay 'kind'" in said
    assert f"Give --endpoint {own} to move" in said
    said = deploy("federation.yaml", "--overlay", "kind", "--endpoint", own, "--apply")
    assert "WARNING" not in said
    assert contents(cluster, "perfit-tiny-ann")["AWS_ENDPOINT_URL"] == own
    assert "WARNING" not in deploy("federation.yaml", "--overlay", "kind", *how)


def test_runs_of_every_namespace_reach_the_store(deploy, cluster):
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    deploy("federation.yaml", "--overlay", "kind", "--apply", "--namespace", "alice")
    for namespace in ("kubeflow", "alice"):
        policy = cluster.get("NetworkPolicy", f"minio-runs-{namespace}", "perfit")
        (source,) = policy["spec"]["ingress"][0]["from"]
        assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": namespace}


def test_federations_do_not_take_each_others_users_away(deploy, cluster, place):
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    other = write_federation(place / "other.yaml", name="other")
    deploy(other, "--overlay", "kind", "--apply")
    write_federation(place / "federation.yaml", clients=[{"id": "bob", "data": "owner/bob:train"}])
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    users = {name.removesuffix(".secret-key") for name in client_files(cluster) if name.endswith(".secret-key")}
    assert users == {"perfitserver-other", "other.ann", "other.bob", "perfitserver-tiny", "tiny.bob"}


def test_a_secret_of_another_federations_client_is_refused(deploy, cluster, place):
    """Client ``a-b`` of federation ``tiny`` and client ``b`` of federation ``tiny-a`` have the same name of Secret."""
    deploy(
        write_federation(place / "one.yaml", clients=[{"id": "a-b", "data": "o/d:train"}]),
        "--overlay",
        "kind",
        "--apply",
    )
    two = write_federation(place / "two.yaml", name="tiny-a", clients=[{"id": "b", "data": "o/d:train"}])
    with pytest.raises(PerfitError, match=r"'perfit-tiny-a-b' holds the key of 'tiny\.a-b', not of 'tiny-a\.b'"):
        deploy(two, "--overlay", "kind", "--apply")


def test_a_dry_run_changes_nothing(deploy, cluster):
    before = dict(cluster.objects)
    said = deploy("federation.yaml", "--overlay", "kind", "--apply", "--dry-run")
    assert "nothing was changed" in said
    assert "secret/perfit-tiny-ann serverside-applied (server dry run)" in said
    assert cluster.objects == before


def test_what_the_cluster_refuses_is_shown_without_secrets(deploy, cluster):
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    secret = contents(cluster, "perfit-tiny-ann")["AWS_SECRET_ACCESS_KEY"]
    # A server that quotes what it was sent, in both forms in which a secret travels.
    cluster.quote = [secret, base64.b64encode(secret.encode()).decode()]
    cluster.forbidden.add("services")
    with pytest.raises(PerfitError, match=r"(?s)not all of the overlay.*services is forbidden.*\(hidden\)") as refused:
        deploy("federation.yaml", "--overlay", "kind", "--apply")
    assert not any(text in str(refused.value) for text in cluster.quote)


def test_no_cluster(deploy):
    Path(os.environ["KUBECONFIG"]).write_text("")
    with pytest.raises(PerfitError, match="Secrets in namespace kubeflow cannot be read"):
        deploy("federation.yaml", "--overlay", "kind", "--apply")


def test_nothing_secret_is_on_a_command_line(deploy, cluster, place, monkeypatch):
    """A kubectl in front of the real one records how it is called."""
    log, front = place / "calls.log", place / "bin"
    front.mkdir()
    (front / "kubectl").write_text(f'#!/bin/sh\necho "$@" >>{log}\nexec {find_kubectl()} "$@"\n')
    (front / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{front}:{os.environ['PATH']}")
    deploy("federation.yaml", "--overlay", "kind", "--apply", "--context", "test")
    calls = log.read_text()
    assert calls.count("--context test") == 5
    assert not any(secret in calls for secret in all_secrets(cluster))


def test_the_key_of_a_remote_client_is_kept_by_the_store_and_handed_over_on_request(deploy, cluster, place):
    clients = [{"id": "ann", "data": "owner/ann:train"}, {"id": "bob", "tier": "far"}]
    tiers = {"default": {}, "far": {"runner": "remote"}}
    file = write_federation(place / "remote.yaml", tiers=tiers, clients=clients)
    assert "remote clients: bob. Give --owners DIR" in deploy(file, "--overlay", "seaweedfs", "--apply")
    assert ("perfit-tiny-bob", "kubeflow") not in {(key[3], key[2]) for key in cluster.objects}
    deploy(file, "--overlay", "seaweedfs", "--apply", "--owners", place / "owners")
    key = client_files(cluster)["tiny.bob.secret-key"]
    assert f"AWS_SECRET_ACCESS_KEY={key}" in (place / "owners/bob.env").read_text().splitlines()
