"""``perfit deploy`` and ``perfit doctor`` against a real kube-apiserver: its validation, its field owners, its RBAC."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from perfit_pipelines.deploy import register as register_deploy
from perfit_pipelines.doctor import register as register_doctor
from perfit_pipelines.kube import Cluster, NotAllowed

from .kube_apiserver import ANN, ApiServer, api_server

OVERLAYS = sorted(path.name for path in (Path(__file__).parents[2] / "manifests/overlays").iterdir())
RUNNER = "system:serviceaccount:kubeflow:perfit-runner"


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[ApiServer]:
    assets = os.environ.get("KUBEBUILDER_ASSETS")
    if not assets:
        pytest.skip("KUBEBUILDER_ASSETS names no directory with etcd and kube-apiserver: setup-envtest downloads one")
    with api_server(Path(assets), tmp_path_factory.mktemp("kubernetes")) as server:
        for namespace in ("kubeflow", "kubeflow-user-example-com", "perfit", "alice"):
            server.kubectl("create", "namespace", namespace)
        yield server


@pytest.fixture
def perfit(server, tmp_path, monkeypatch) -> Callable[..., str]:
    """A function that runs the commands of this module and returns what they printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig))
    app = typer.Typer()
    register_deploy(app)
    register_doctor(app)

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == code, result.output or result.exception
        return result.output

    return run


def write(name: str, *clients: str) -> str:
    """Write a federation file; return its path."""
    entries = [{"id": client, "data": f"owner/{client}:train"} for client in clients]
    Path(f"{name}.yaml").write_text(
        yaml.safe_dump({"name": name, "model": "owner/model", "store": "s3://perfit", "clients": entries})
    )
    return f"{name}.yaml"


def users(server: ApiServer) -> set[str]:
    """The users whose keys MinIO's setup finds."""
    items = json.loads(server.kubectl("get", "secrets", "-n", "perfit", "-o", "json"))["items"]
    shards = [item.get("data", {}) for item in items if item["metadata"]["name"].startswith("perfit-clients-")]
    return {key.removesuffix(".secret-key") for data in shards for key in data if key.endswith(".secret-key")}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_server_takes_every_overlay(perfit, overlay):
    endpoint = ["--endpoint", "https://s3.example.com"] if overlay == "existing-minio" else []
    said = perfit("deploy", write("one", "a", "b"), "--overlay", overlay, "--apply", "--dry-run", *endpoint)
    assert "the server would take all of this" in said


def test_federations_share_a_store_and_leave_each_others_keys(perfit, server):
    perfit("deploy", write("one", "a", "b"), "--overlay", "kind", "--apply")
    perfit("deploy", write("two", "a"), "--overlay", "kind", "--apply", "--namespace", "alice")
    assert users(server) == {"perfitserver-one", "one.a", "one.b", "perfitserver-two", "two.a"}
    perfit("deploy", write("one", "b"), "--overlay", "kind", "--apply")
    assert users(server) == {"perfitserver-one", "one.b", "perfitserver-two", "two.a"}
    policies = server.kubectl("get", "networkpolicies", "-n", "perfit", "-o", "name")
    assert {"minio-runs-kubeflow", "minio-runs-alice"} <= {line.split("/")[1] for line in policies.splitlines()}
    places = {"perfitserver-one": "kubeflow", "perfitserver-two": "alice"}
    keys = [server.kubectl("get", "secret", name, "-n", place, "-o", "json") for name, place in places.items()]
    secrets = {json.loads(key)["data"]["AWS_SECRET_ACCESS_KEY"] for key in keys}
    assert [len(base64.b64decode(secret)) for secret in secrets] == [40, 40]


def test_runs_may_not_read_the_keys_in_their_namespace(perfit, server):
    perfit("deploy", write("one", "a"), "--overlay", "kind", "--apply")
    for what in ("secrets", "secrets/perfitserver-one", "secrets/perfit-one-a"):
        assert not server.may(RUNNER, "get", what, "kubeflow"), what
    assert server.may(RUNNER, "get", "secrets/mlpipeline-minio-artifact", "kubeflow")
    assert not server.may(RUNNER, "create", "pods", "kubeflow")


def test_the_doctor_s_roles_open_what_it_asks_for(perfit, server):
    file = write("one", "a")
    perfit("deploy", file, "--overlay", "kind", "--apply")
    arguments = ("doctor", file, "--host", "http://127.0.0.1:1", "--context", ANN, "--json")

    def unknown() -> set[str]:
        checks = json.loads(perfit(*arguments, code=1))["checks"]
        return {check["name"] for check in checks if check["finding"].startswith("you may not")}

    everything = {"namespace", "service account", "Secrets", "nodes", "volumes", "quota"}
    assert unknown() == everything
    server.kubectl("create", "clusterrolebinding", "doctor-of-ann", "--clusterrole=perfit-doctor", f"--user={ANN}")
    server.kubectl("create", "rolebinding", "doctor-of-ann", "-n", "kubeflow", "--role=perfit-doctor", f"--user={ANN}")
    assert unknown() == {"Secrets"}, "whose names are the federation's, not the role's"


def test_the_doctor_s_role_opens_what_following_a_run_reads(perfit, server):
    perfit("deploy", write("one", "a"), "--overlay", "kind", "--apply", "--namespace", "alice")
    cluster = Cluster(ANN)
    for read in (cluster.pods, cluster.workflows):
        with pytest.raises(NotAllowed):
            read("alice", "pipeline/runid=1")
    server.kubectl("create", "rolebinding", "doctor-of-ann", "-n", "alice", "--role=perfit-doctor", f"--user={ANN}")
    assert cluster.pods("alice", "pipeline/runid=1") == cluster.workflows("alice", "pipeline/runid=1") == []
