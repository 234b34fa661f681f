"""Components that no overlay has: what they add to the objects that runs need, and what they open."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml

from perfit_components.images import SERVER_IMAGE
from perfit_pipelines.deploy.kubectl import find_kubectl

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
    "trainjob": {("Role", "perfit-trainjob"), ("RoleBinding", "perfit-trainjob")},
}


def added(component: str, directory: Path) -> list[Object]:
    """What a component adds to what runs need, as an overlay of one's own would have it."""
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
    whole, base = objects
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
