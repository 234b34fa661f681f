"""Components that no overlay has: what they add to the objects that runs need, and what they open."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from perfit_components.images import SERVER_IMAGE
from perfit_components.train_job_object import NODES_LABEL
from perfit_pipelines.deploy.kubectl import find_kubectl

from .network import Peer, allows
from .pod_security import violations
from .rendering import MANIFESTS, Object, identity
from .test_rbac import rules
from .test_rendering import KUBERNETES, schema_errors

ADDED = {
    "kueue": {
        ("ServiceAccount", "perfit-queue-limit"),
        ("Role", "perfit-queue-limit"),
        ("RoleBinding", "perfit-queue-limit"),
        ("CronJob", "perfit-queue-limit"),
    },
    "trainjob": {(kind, "perfit-trainjob") for kind in ("NetworkPolicy", "Role", "RoleBinding")},
}


Objects = dict[tuple[str, str], Object]


def rendered(component: str, directory: Path) -> tuple[Objects, Objects]:
    """What runs need with a component, as an overlay of one's own would have it, and without."""
    run, own = MANIFESTS / "base/run", MANIFESTS / "components" / component
    kustomization = {
        "resources": [os.path.relpath(run, directory)],
        "components": [os.path.relpath(own, directory)],
        "namespace": "team",
    }
    (directory / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    objects = []
    for place in (directory, run):
        done = subprocess.run([find_kubectl(), "kustomize", str(place)], capture_output=True, text=True, check=True)
        assert not done.stderr
        objects.append({(item["kind"], item["metadata"]["name"]): item for item in yaml.safe_load_all(done.stdout)})
    return tuple(objects)


def added(component: str, directory: Path) -> list[Object]:
    """What a component adds to what runs need."""
    whole, base = rendered(component, directory)
    return [item for key, item in whole.items() if key not in base]


@pytest.mark.parametrize("component", ADDED)
def test_a_component_adds_these_objects_and_schemas_accept_them(component, tmp_path):
    objects = added(component, tmp_path)
    assert {(item["kind"], item["metadata"]["name"]) for item in objects} == ADDED[component]
    for item in objects:
        assert item["metadata"]["labels"]["app.kubernetes.io/part-of"] == "perfit"
        assert item["metadata"]["namespace"] == "team"
        for version in KUBERNETES:
            assert schema_errors(json.dumps(item), version) is None, identity(item)


def test_what_ends_waiting_may_do_that_alone_by_an_account_of_its_own(tmp_path):
    objects = {item["kind"]: item for item in added("kueue", tmp_path)}
    assert rules(objects["Role"]) == [("", "pods", None, "list"), ("", "pods/status", None, "patch")]
    assert [subject["name"] for subject in objects["RoleBinding"]["subjects"]] == ["perfit-queue-limit"]
    template = objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]
    assert violations(template) == []
    assert template["spec"]["serviceAccountName"] == "perfit-queue-limit"
    (container,) = template["spec"]["containers"]
    assert container["image"] == SERVER_IMAGE
    assert container["command"] == ["python", "-m", "perfit_components.queue_limit"]


def test_runs_get_trainjobs_and_nothing_else_by_a_role_of_their_own(tmp_path):
    objects = {item["kind"]: item for item in added("trainjob", tmp_path)}
    assert rules(objects["Role"]) == [("trainer.kubeflow.org", "trainjobs", None, "create get delete")]
    assert objects["RoleBinding"]["roleRef"]["name"] == "perfit-trainjob"
    assert [subject["name"] for subject in objects["RoleBinding"]["subjects"]] == ["perfit-runner"]


def test_the_nodes_of_a_job_reach_each_other_and_no_others_reach_them(tmp_path):
    policies = [item for item in rendered("trainjob", tmp_path)[0].values() if item["kind"] == "NetworkPolicy"]
    node, alone = (Peer("10.244.2.1", "team", {"perfit/role": "client", **label}) for label in (NODES_LABEL, {}))
    assert allows(policies, node, node, 29_400)
    for source, target in ((node, alone), (alone, node), (alone, alone)):
        assert not allows(policies, source, target, 29_400)
