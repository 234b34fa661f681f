"""``perfit deploy`` into a directory, over the overlays of this repository, built by kubectl."""

from __future__ import annotations

import base64
import json
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from perfit.errors import PerfitError
from perfit_pipelines.deploy.kubectl import Kubectl

from ..kubernetes_api import read_object
from .conftest import write_federation

OVERLAYS = ["kind", "seaweedfs", "gpu", "kubeflow-multiuser", "existing-minio"]
RUNS = {"kubeflow-multiuser": "kubeflow-user-example-com"}
pytestmark = pytest.mark.usefixtures("cluster")
EXISTING = ("--endpoint", "https://s3.example.com", "--region", "eu-west-1")


def options(overlay: str) -> tuple[str, ...]:
    return ("--overlay", overlay, *(EXISTING if overlay == "existing-minio" else ()))


def build(directory: Path) -> dict[tuple[str, str, str], dict]:
    """Build a kustomization; return its objects by kind, namespace and name."""
    objects = Kubectl().build(directory)
    return {(item["kind"], item["metadata"].get("namespace", ""), item["metadata"]["name"]): item for item in objects}


def texts(secret: dict) -> dict[str, str]:
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


def written_secrets(directory: Path) -> dict[tuple[str, str], dict[str, str]]:
    documents = yaml.safe_load_all((directory / "secrets.yaml").read_text())
    return {(item["metadata"]["namespace"], item["metadata"]["name"]): texts(item) for item in documents}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_written_is_a_kustomization_on_top_of_the_overlay(deploy, overlay):
    deploy("federation.yaml", *options(overlay), "--output", "out")
    objects = build(Path("out"))
    for item in objects.values():
        read_object(item)
    run = RUNS.get(overlay, "kubeflow")
    keys = {"perfitserver-tiny": "perfitserver-tiny", "perfit-tiny-ann": "tiny.ann", "perfit-tiny-bob": "tiny.bob"}
    for name, access_key in keys.items():
        contents = texts(objects["Secret", run, name])
        assert set(contents) == {"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"}
        assert contents["AWS_ACCESS_KEY_ID"] == access_key
    assert ("ServiceAccount", run, "perfit-runner") in objects


@pytest.mark.parametrize("overlay", ["kind", "gpu", "kubeflow-multiuser"])
def test_minios_setup_finds_what_it_reads(deploy, overlay):
    """Resolves the setup Job's volumes as a kubelet would, and looks for the files that setup.sh names."""
    deploy("federation.yaml", *options(overlay), "--output", "out")
    objects = build(Path("out"))
    pod = objects["Job", "perfit", "minio-setup"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    run = RUNS.get(overlay, "kubeflow")
    server, ann = (texts(objects["Secret", run, name]) for name in ("perfitserver-tiny", "perfit-tiny-ann"))
    assert server["AWS_ENDPOINT_URL"] == "http://minio.perfit.svc:9000"

    clients: dict[str, str] = {}
    for source in volumes["clients"]["projected"]["sources"]:
        secret = objects.get(("Secret", "perfit", source["secret"]["name"]))
        assert secret or source["secret"]["optional"]
        clients |= texts(secret) if secret else {}
    users = ("perfitserver-tiny", "tiny.ann", "tiny.bob")
    assert sorted(clients) == [f"{user}.{end}" for user in users for end in ("policy.json", "secret-key")]
    assert clients["perfitserver-tiny.secret-key"] == server["AWS_SECRET_ACCESS_KEY"]
    assert clients["tiny.ann.secret-key"] == ann["AWS_SECRET_ACCESS_KEY"]
    policy = json.loads(clients["tiny.ann.policy.json"])
    assert "arn:aws:s3:::perfit/federations/tiny/clients/ann/*" in policy["Statement"][0]["Resource"]

    root = texts(objects["Secret", "perfit", pod["containers"][0]["envFrom"][0]["secretRef"]["name"]])
    assert set(root) == {"MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}
    assert root["MINIO_ROOT_PASSWORD"].isalnum()


def test_seaweedfs_finds_what_it_reads(deploy):
    said = deploy("federation.yaml", "--overlay", "seaweedfs", "--output", "out")
    assert "SeaweedFS takes new keys about a minute after they are applied" in said
    assert "kubectl delete job" not in said
    objects = build(Path("out"))
    pod = objects["StatefulSet", "perfit", "seaweedfs"]["spec"]["template"]["spec"]
    for entry in pod["containers"][0]["env"]:
        if reference := entry.get("valueFrom", {}).get("secretKeyRef"):
            assert texts(objects["Secret", "perfit", reference["name"]])[reference["key"]]
    (clients,) = (volume["projected"]["sources"] for volume in pod["volumes"] if volume["name"] == "clients")
    names = [source["secret"]["name"] for source in clients]
    mounted = {key: text for name in names for key, text in texts(objects["Secret", "perfit", name]).items()}
    ann = texts(objects["Secret", "kubeflow", "perfit-tiny-ann"])
    assert mounted["tiny.ann.secret-key"] == ann["AWS_SECRET_ACCESS_KEY"]
    assert ann["AWS_ENDPOINT_URL"] == "http://seaweedfs.perfit.svc:8333"


def test_an_overlay_has_one_store(deploy, place):
    bases = Path(__file__).parents[3] / "manifests" / "base"
    own = place / "own"
    own.mkdir()
    shutil.copytree(bases, own / "base")
    resources = ["base/run", "base/seaweedfs", "minio.yaml"]
    shutil.copy(bases / "minio/minio.yaml", own)
    (own / "kustomization.yaml").write_text(yaml.safe_dump({"resources": resources}))
    with pytest.raises(PerfitError, match="has two stores"):
        deploy("federation.yaml", "--overlay", own, "--output", "out")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_runs_in_another_namespace(deploy, overlay):
    deploy("federation.yaml", *options(overlay), "--output", "out", "--namespace", "alice")
    objects = build(Path("out"))
    assert {namespace for _, namespace, _ in objects} - {"", "perfit"} == {"alice"}
    assert objects["RoleBinding", "alice", "perfit-runner"]["subjects"][0]["namespace"] == "alice"
    if overlay != "existing-minio":
        store = "seaweedfs" if overlay == "seaweedfs" else "minio"
        source = objects["NetworkPolicy", "perfit", f"{store}-runs-alice"]["spec"]["ingress"][0]["from"][0]
        assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "alice"}


def test_what_is_written_holds_the_keys_that_the_cluster_has(deploy, cluster, place):
    """Another root password or server key would lock out the runs of existing federations."""
    deploy("federation.yaml", "--overlay", "kind", "--output", "older")
    deploy("federation.yaml", "--overlay", "kind", "--apply")
    for output in ("older", "new"):
        deploy("federation.yaml", "--overlay", "kind", "--output", output)
        for (namespace, name), contents in written_secrets(Path(output)).items():
            assert contents == texts(cluster.get("Secret", name, namespace)), name


def test_without_a_cluster_to_ask_nothing_is_written(deploy, monkeypatch):
    monkeypatch.setenv("KUBECONFIG", "none")
    with pytest.raises(PerfitError, match=r"cannot be read(?s:.*)lock out running federations(?s:.*)--offline"):
        deploy("federation.yaml", "--overlay", "kind", "--output", "out")
    assert not Path("out").exists()
    deploy("federation.yaml", "--overlay", "kind", "--output", "out", "--offline")
    assert Path("out/secrets.yaml").is_file()


def test_a_second_call_keeps_the_keys_but_the_rotated_one(deploy, place):
    deploy("federation.yaml", "--overlay", "kind", "--output", "out")
    first = written_secrets(Path("out"))
    deploy("federation.yaml", "--overlay", "kind", "--output", "out")
    assert written_secrets(Path("out")) == first
    deploy("federation.yaml", "--overlay", "kind", "--output", "out", "--rotate", "ann")
    second = written_secrets(Path("out"))
    changed = {name for name in first if first[name] != second[name]}
    shard = next(key for key, held in second.items() if "tiny.ann.secret-key" in held)
    assert changed == {("kubeflow", "perfit-tiny-ann"), shard}

    eve = {"id": "eve", "data": "owner/eve:train"}
    clients = [{"id": "ann", "data": "owner/ann:train"}, eve]
    write_federation(place / "federation.yaml", clients=clients)
    deploy("federation.yaml", "--overlay", "kind", "--output", "out")
    third = written_secrets(Path("out"))
    assert third["kubeflow", "perfit-tiny-ann"] == second["kubeflow", "perfit-tiny-ann"]
    assert ("kubeflow", "perfit-tiny-eve") in third
    assert ("kubeflow", "perfit-tiny-bob") not in third
    assert not any("tiny.bob.secret-key" in held for held in third.values())


def test_a_store_that_is_there_already(deploy):
    with pytest.raises(PerfitError, match=r"no store of its own(?s:.*)--endpoint"):
        deploy("federation.yaml", "--overlay", "existing-minio", "--output", "out")
    said = deploy("federation.yaml", *options("existing-minio"), "--output", "out", "--store", "s3://tuning/team")
    held = written_secrets(Path("out"))["kubeflow", "perfit-tiny-ann"]
    assert (held["AWS_ENDPOINT_URL"], held["AWS_REGION"]) == ("https://s3.example.com", "eu-west-1")
    policies = {path.name: json.loads(path.read_text()) for path in Path("out/policies").iterdir()}
    assert set(policies) == {"perfitserver-tiny.json", "tiny.ann.json", "tiny.bob.json"}
    assert (
        "arn:aws:s3:::tuning/team/federations/tiny/spec.yaml" in policies["tiny.ann.json"]["Statement"][1]["Resource"]
    )
    assert "tiny.ann  out/policies/tiny.ann.json" in said
    deploy("federation.yaml", "--overlay", "existing-minio", "--output", "out", "--store", "s3://tuning/team")
    assert written_secrets(Path("out"))["kubeflow", "perfit-tiny-ann"] == held, "endpoint and region are kept too"


def test_files_are_the_owners_alone_and_nothing_secret_is_said(deploy):
    said = deploy("federation.yaml", "--overlay", "kind", "--output", "deep/out")
    for path in Path("deep/out").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE(Path("deep/out").stat().st_mode) == 0o700
    for contents in written_secrets(Path("deep/out")).values():
        for name, text in contents.items():
            if "SECRET" in name or "PASSWORD" in name or name.endswith("secret-key"):
                assert text not in said
    assert "kubectl apply --server-side --force-conflicts --field-manager=perfit-tiny -k deep/out" in said
    assert "kubectl delete job minio-setup -n perfit --ignore-not-found" in said


def test_a_work_tree_is_refused_unless_it_ignores_the_directory(deploy):
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    subprocess.run(["git", "init", "-q", "tree"], check=True)
    with pytest.raises(PerfitError, match=r"tree/out is in a git work tree(?s:.*)out/ to \.gitignore"):
        deploy("federation.yaml", "--overlay", "kind", "--output", "tree/out")
    assert not Path("tree/out").exists()
    Path("tree/.gitignore").write_text("out/\n")
    deploy("federation.yaml", "--overlay", "kind", "--output", "tree/out")
    assert Path("tree/out/secrets.yaml").is_file()


def test_by_default_the_directory_is_among_the_users_files(deploy):
    deploy("federation.yaml", "--overlay", "kind")
    assert Path(".perfit/deploy/tiny/kind/kustomization.yaml").is_file()


def test_a_directory_with_other_files_is_refused(deploy):
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("kept")
    with pytest.raises(PerfitError, match="mine exists and was not written by this command"):
        deploy("federation.yaml", "--overlay", "kind", "--output", "mine")
    assert [path.name for path in Path("mine").iterdir()] == ["notes.txt"]


def test_an_overlay_by_its_path(deploy, place):
    overlays = Path(__file__).parents[3] / "manifests" / "overlays"
    with pytest.raises(
        PerfitError, match=r"no overlay 'none'(?s:.*)existing-minio, gpu, kind, kubeflow-multiuser, seaweedfs"
    ):
        deploy("federation.yaml", "--overlay", "none")
    own = place / "own"
    own.mkdir()
    resources = [str(Path("..", *[".."] * (len(place.parts) - 1), *overlays.parts[1:], "kind"))]
    (own / "kustomization.yaml").write_text(yaml.safe_dump({"resources": resources}))
    deploy("federation.yaml", "--overlay", own, "--output", "out")
    assert ("Secret", "kubeflow", "perfit-tiny-ann") in build(Path("out"))


@pytest.mark.parametrize(
    ("store", "problem"),
    [
        ("s3://perfit/team", r"keeps federations in s3://perfit"),
        ("file:///store", r"keeps federations in s3://perfit"),
        (None, r"names no store"),
    ],
)
def test_minio_of_the_overlays_has_one_place(deploy, place, store, problem):
    write_federation(place / "federation.yaml", store=store)
    with pytest.raises(PerfitError, match=problem):
        deploy("federation.yaml", "--overlay", "kind", "--output", "out")
    assert not Path("out").exists()


def test_without_kubectl(deploy, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(PerfitError, match="no `kubectl` on PATH or beside this Python"):
        deploy("federation.yaml", "--overlay", "kind")


def remote(place: Path, client: str = "bob") -> Path:
    """A federation file with a remote client."""
    clients = [{"id": "ann", "data": "owner/ann:train"}, {"id": client, "tier": "far"}]
    return write_federation(place / "remote.yaml", tiers={"default": {}, "far": {"runner": "remote"}}, clients=clients)


@pytest.mark.parametrize("overlay", ["kind", "existing-minio"])
def test_a_remote_clients_key_is_in_no_namespace_of_runs_but_in_a_file_for_its_owner(deploy, place, overlay):
    said = deploy(remote(place), *options(overlay), "--output", "out", "--owner-endpoint", "https://s3.example.org")
    secrets = written_secrets(Path("out"))
    assert {name for namespace, name in secrets if namespace == "kubeflow"} == {"perfitserver-tiny", "perfit-tiny-ann"}
    file = Path("out/owners/bob.env")
    held = variables(file)
    assert "out/owners/<client>.env: hand each file to its owner" in said
    existing = overlay == "existing-minio"
    assert ("and delete it" in said, "keep a copy" in said) == (not existing, existing)
    assert ("tiny.bob  out/policies/tiny.bob.json  (its secret key: out/owners/bob.env)\n" in said) == existing
    assert held.pop("AWS_SECRET_ACCESS_KEY") not in said
    assert held == {
        "AWS_ENDPOINT_URL": "https://s3.example.org",
        "AWS_REGION": secrets["kubeflow", "perfit-tiny-ann"]["AWS_REGION"],
        "AWS_ACCESS_KEY_ID": "tiny.bob",
        "PERFIT_FEDERATION": "s3://perfit/federations/tiny",
        "PERFIT_CLIENT": "bob",
    }
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["bob.env"]
    before = variables(file)
    deploy(remote(place), *options(overlay), "--output", "out")
    assert variables(file) == before, "key and endpoint are kept"


def test_a_handed_over_file_may_be_deleted_before_the_overlay_is_applied(deploy, place):
    """The users in secrets.yaml keep its key, and a rotated one where the file is in another directory."""
    file = Path("out/owners/bob.env")

    def key(*arguments: str) -> str:
        deploy(remote(place), *options("kind"), "--output", "out", *arguments)
        return variables(file)["AWS_SECRET_ACCESS_KEY"]

    first = key("--offline")
    file.unlink()
    assert key("--offline") == first
    file.unlink()
    assert key() == first, "the cluster has none yet"
    assert key("--rotate", "bob", "--owners", "handed") == first, "this file is of before"
    rotated = variables(Path("handed/bob.env"))["AWS_SECRET_ACCESS_KEY"]
    assert first != rotated == key()


def test_an_owner_is_not_given_an_address_that_only_pods_reach_without_a_word(deploy, place):
    said = deploy(remote(place), *options("kind"), "--output", "out", "--owners", "handed")
    assert "WARNING: only pods of this cluster reach http://minio.perfit.svc:9000" in said
    assert variables(Path("handed/bob.env"))["AWS_ENDPOINT_URL"] == "http://minio.perfit.svc:9000"


@pytest.mark.parametrize(
    ("overlay", "owner_endpoint", "warned"),
    [("kind", "https://s3.example.org", False), ("existing-minio", "http://minio.perfit.svc.cluster.local:9000", True)],
)
def test_what_is_said_of_the_address_is_of_that_in_the_files(deploy, place, overlay, owner_endpoint, warned):
    """The second call keeps the first one's, which is not that of the pods."""
    command = (remote(place), *options(overlay), "--output", "out")
    for said in (deploy(*command, "--owner-endpoint", owner_endpoint), deploy(*command)):
        assert (f"only pods of this cluster reach {owner_endpoint}:" in said) == warned
        assert ("WARNING: only pods" in said) == warned


def test_keys_of_owners_are_not_written_where_git_would_commit_them(deploy, place):
    if shutil.which("git") is None:
        pytest.skip("there is no git")
    subprocess.run(["git", "init", "-q", "tree"], check=True)
    Path("tree/.gitignore").write_text("secrets.yaml\n")
    with pytest.raises(PerfitError, match=r"tree/out/owners is in a git work tree(?s:.*)owners/ to \.gitignore"):
        deploy(remote(place), *options("kind"), "--output", "tree/out")
    assert not Path("tree/out").exists()
    Path("tree/.gitignore").write_text("secrets.yaml\n*.env\n")
    deploy(remote(place), *options("kind"), "--output", "tree/out")
    assert Path("tree/out/owners/bob.env").is_file()


def test_a_project_with_an_env_file_is_no_directory_of_owners_keys(deploy, place):
    project = place / "project"
    project.mkdir(mode=0o755)
    (project / ".env").write_text("")
    command = (*options("kind"), "--output", "out", "--owners", project)
    with pytest.raises(PerfitError, match="project exists and was not written by this command"):
        deploy(remote(place), *command)
    deploy("federation.yaml", *command)
    assert stat.S_IMODE(project.stat().st_mode) == 0o755, "without remote clients nothing is written there"
    assert [path.name for path in project.iterdir()] == [".env"]


def test_another_remote_client_takes_the_place_of_the_only_one(deploy, place):
    deploy(remote(place), *options("kind"), "--output", "out")
    deploy(remote(place, "eve"), *options("kind"), "--output", "out")
    assert variables(Path("out/owners/eve.env"))["PERFIT_CLIENT"] == "eve"


def variables(file: Path) -> dict[str, str]:
    """As systemd and docker read such a file."""
    lines = (line for line in file.read_text().splitlines() if not line.startswith("#"))
    return dict(line.split("=", 1) for line in lines)
