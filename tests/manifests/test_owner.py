"""What an owner runs its client with: a Deployment or a Job in a namespace of its own, or a unit of systemd."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from perfit_components import remote_client
from perfit_pipelines import cli

from .network import Peer, allows
from .pod_security import violations
from .rendering import MANIFESTS, containers, of_kind, only, pod_templates, render
from .test_rendering import KUBERNETES, schema_errors

KINDS = {"owner/service": "Deployment", "owner/job": "Job"}
UNIT = MANIFESTS / "owner/systemd/perfit-client@.service"
ADMITTING = yaml.safe_load((MANIFESTS / "components/owners/network.yaml").read_text())

CLIENT = {"perfit/role": "client"}
SEAWEEDFS = Peer("10.244.1.4", "perfit", {"app.kubernetes.io/name": "seaweedfs"})
DNS = Peer("10.244.9.1", "kube-system", {"k8s-app": "kube-dns"})
API_SERVER = Peer("172.18.0.2")


def options(command: list[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """What the command `perfit client` makes of arguments, with what the operator's file brings."""
    for name in ("FEDERATION", "CLIENT"):
        monkeypatch.setenv(f"PERFIT_{name}", "of the operator's file")
    program, name, *arguments = command
    assert (Path(program).name, name) == ("perfit", "client")
    return get_command(cli.app).commands[name].make_context(name, arguments).params


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("directory", KINDS)
def test_schemas_accept_every_object(directory, version):
    for item in (*render(directory), ADMITTING):
        assert schema_errors(json.dumps(item), version) is None, item["metadata"]["name"]


@pytest.mark.parametrize(("directory", "kind"), KINDS.items())
def test_the_pod_is_restricted_has_no_token_and_one_key(directory, kind, monkeypatch):
    ((where, template),) = pod_templates(directory)
    assert where == f"{kind} perfit-owner/perfit-client"
    assert violations(template) == []
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    (container,) = containers(spec)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert container["envFrom"] == [{"secretRef": {"name": "perfit-client"}}]
    claims = {item["metadata"]["name"] for item in of_kind(directory, "PersistentVolumeClaim")}
    mounted = {v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"] if "persistentVolumeClaim" in v}
    assert mounted == claims
    assert {mount["mountPath"]: mount.get("readOnly", False) for mount in container["volumeMounts"]}["/data"]
    given = options(container["args"], monkeypatch)
    assert str(given["threads"]) == container["resources"]["limits"]["cpu"]
    assert given["data"].startswith("/data/")
    assert given["rounds"] == (1 if kind == "Job" else None)


def test_two_clients_of_one_owner_never_run_at_once():
    deployment = only("owner/service", "Deployment", "perfit-client")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})


def test_a_job_gives_up_where_trying_again_is_no_use():
    ignore, fail = only("owner/job", "Job", "perfit-client")["spec"]["podFailurePolicy"]["rules"]
    assert ignore["action"] == "Ignore"
    assert set(fail["onExitCodes"]["values"]) == {1, 2, remote_client.FAILED, remote_client.TIMED_OUT}


@pytest.mark.parametrize("directory", KINDS)
def test_a_client_reaches_the_store_alone_where_it_is_admitted(directory):
    own, client = of_kind(directory, "NetworkPolicy"), Peer("10.244.2.1", "perfit-owner", CLIENT)
    closed = {**ADMITTING, "metadata": {"name": "closed", "namespace": "perfit"}}
    closed["spec"] = {"podSelector": {}, "policyTypes": ["Ingress"]}
    assert allows(own, client, SEAWEEDFS, 8333)
    assert allows(own, client, DNS, 53, "UDP")
    for target, port in ((SEAWEEDFS, 18333), (API_SERVER, 443), (Peer("18.164.174.23"), 443)):
        assert not allows(own, client, target, port)
    assert not allows(own, Peer("10.244.3.1", "perfit-owner"), client, 80)
    assert not allows([*own, closed], client, SEAWEEDFS, 8333)
    (source,) = ADMITTING["spec"]["ingress"][0]["from"]
    assert source["namespaceSelector"]["matchLabels"] == {"perfit/owner": "admitted"}, "an administrator's label"
    assert source["podSelector"]["matchLabels"] == CLIENT


def test_the_unit_stops_its_client_as_a_client_expects(monkeypatch):
    lines = [line.partition("=") for line in UNIT.read_text().splitlines() if "=" in line and line[0] != "#"]
    unit = {key: value for key, _, value in lines}
    assert unit["KillMode"] == "mixed", "the process that trains is its client's to end"
    assert unit["SuccessExitStatus"] == "143"
    assert options(shlex.split(unit["ExecStart"]), monkeypatch)["data"] == "/etc/perfit/%i.jsonl"


def test_systemd_takes_the_unit(tmp_path):
    systemd = shutil.which("systemd-analyze")
    if systemd is None:
        pytest.skip("systemd-analyze is not installed")
    program = tmp_path / "perfit"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / "perfit-client@hospital.service"
    unit.write_text(UNIT.read_text().replace("/opt/perfit/bin/perfit", str(program)))
    done = subprocess.run([systemd, "verify", "--man=no", str(unit)], capture_output=True, text=True)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "perfit-client@" in line]) == (0, [])
