"""Every overlay renders to objects that Kubernetes' own schemas accept and that hang together."""

from __future__ import annotations

import functools
import json
import re

import kubernetes_validate
import pytest
import yaml

from perfit.cluster_spec import Cluster
from perfit_pipelines.deploy.render import USER_SECRETS

from .network import matches
from .rendering import (
    MANIFESTS,
    OVERLAYS,
    WITH_MINIO,
    WITH_SEAWEEDFS,
    WITH_STORE,
    containers,
    identity,
    of_kind,
    only,
    pod_templates,
    render,
    run_namespace,
    store_of,
    walk,
)

KUBERNETES = ("1.29", kubernetes_validate.latest_version())
"""The oldest release that KFP 2.16 runs on, and the newest that has schemas here."""

WITHOUT_SCHEMA: set[str] = set()
"""Kinds of other projects, exempt from the schemas. There are none: see components/outside-mesh for Istio's."""

CLUSTER_SCOPED = {"Namespace", "PriorityClass", "ClusterRole"}
STORE_NAMESPACE = "perfit"


@functools.cache
def schema_errors(text: str, version: str) -> str | None:
    """What the strict schemas, which know no other fields, find wrong with an object."""
    try:
        kubernetes_validate.validate(json.loads(text), version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(str(part) for part in error.path)}: {error.message}"
    return None


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_schemas_accept_every_object(overlay, version):
    for item in render(overlay):
        if item["kind"] not in WITHOUT_SCHEMA:
            where = f"{item['kind']} {item['metadata']['name']}"
            assert schema_errors(json.dumps(item), version) is None, where


def test_the_schemas_find_mistakes():
    service = only("base", "Service", "minio")
    for mistake in ({"ports": [{"port": "s3"}]}, {"selctor": {}}, {"ports": "9000"}):
        assert schema_errors(json.dumps(service | {"spec": service["spec"] | mistake}), KUBERNETES[-1])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_objects_have_names_of_their_own_and_a_known_place(overlay):
    keys = [identity(item) for item in render(overlay)]
    assert len(keys) == len(set(keys))
    for kind, namespace, name in keys:
        assert namespace in ({None} if kind in CLUSTER_SCOPED else {STORE_NAMESPACE, run_namespace(overlay)}), name
    assert all(item["metadata"]["labels"]["app.kubernetes.io/part-of"] == "perfit" for item in render(overlay))


def test_runs_have_their_namespace_where_kubeflow_runs_them():
    namespaces = {overlay: run_namespace(overlay) for overlay in OVERLAYS}
    assert namespaces.pop("overlays/kubeflow-multiuser") == "kubeflow-user-example-com"
    assert set(namespaces.values()) == {"kubeflow"}
    for overlay in OVERLAYS:
        assert "the-run-namespace" not in json.dumps(render(overlay))


@pytest.mark.parametrize("overlay", WITH_STORE)
def test_selectors_select_the_pods_that_are_meant(overlay):
    server = store_of(overlay)
    store = only(overlay, "StatefulSet", server.name)["spec"]
    labels = store["template"]["metadata"]["labels"]
    service = only(overlay, "Service", server.name)["spec"]
    assert matches(store["selector"], labels)
    assert matches({"matchLabels": service["selector"]}, labels)
    (port,) = service["ports"]
    (listens,) = store["template"]["spec"]["containers"][0]["ports"]
    assert (port["port"], port["targetPort"]) == (server.port, listens["name"])
    assert listens["containerPort"] == server.port


@pytest.mark.parametrize("overlay", WITH_MINIO)
def test_the_service_is_not_the_setups(overlay):
    setup = only(overlay, "Job", "minio-setup")["spec"]["template"]["metadata"]["labels"]
    assert not matches({"matchLabels": only(overlay, "Service", "minio")["spec"]["selector"]}, setup)


@pytest.mark.parametrize("overlay", WITH_SEAWEEDFS)
def test_seaweedfs_mounts_what_its_script_reads(overlay):
    files = {name: (MANIFESTS / "base/seaweedfs" / name).read_text() for name in ("start.sh", "users.awk")}
    assert only(overlay, "ConfigMap", "seaweedfs-start")["data"] == files
    pod = only(overlay, "StatefulSet", "seaweedfs")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["command"] == ["/bin/sh", "/start/start.sh"]
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {*("/start", "/clients", "/data", "/tmp")}
    (clients,) = (volume["projected"]["sources"] for volume in pod["volumes"] if volume["name"] == "clients")
    assert clients == [{"secret": {"name": name, "optional": True}} for name in USER_SECRETS]
    references = [entry["valueFrom"]["secretKeyRef"]["key"] for entry in container["env"] if "valueFrom" in entry]
    assert references == [store_of(overlay).root_user, store_of(overlay).root_password]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_pinned(overlay):
    for where, template in pod_templates(overlay):
        for container in containers(template["spec"]):
            assert re.fullmatch(
                r"[a-z.]+/[a-z/]+(:RELEASE[-.\dTZ]+|:\d+\.\d+|@sha256:[\da-f]{64})", container["image"]
            ), where


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_no_secret_in_what_is_rendered(overlay):
    assert of_kind(overlay, "Secret") == []
    names = re.compile(r"password|secret|token|access.?key", re.IGNORECASE)
    plain = [entry for item in render(overlay) for entry in walk(item) if "value" in entry and "name" in entry]
    assert not [entry for entry in plain if names.search(entry["name"])]


def test_there_is_no_secret_in_the_files():
    for path in MANIFESTS.rglob("*.y*ml"):
        for item in filter(None, yaml.safe_load_all(path.read_text())):
            assert item["kind"] != "Secret", path
            assert "secretGenerator" not in item, path


def test_the_pipelines_mount_the_same_cache():
    only("base", "PersistentVolumeClaim", Cluster().model_cache)


def test_a_cluster_with_many_nodes_has_a_cache_that_all_can_mount():
    claim = only("overlays/gpu", "PersistentVolumeClaim", "perfit-model-cache")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    assert only("overlays/gpu", "ResourceQuota", "perfit-gpus")["spec"] == {"hard": {"requests.nvidia.com/gpu": "8"}}


def test_quotas_do_not_keep_kubeflow_from_coming_back():
    """In the run namespace only what has a deadline is counted, and no pod must state CPU and memory."""
    for overlay in OVERLAYS:
        for quota in of_kind(overlay, "ResourceQuota"):
            if quota["metadata"]["namespace"] == STORE_NAMESPACE:
                continue
            devices = all(name.startswith("requests.nvidia.com/") for name in quota["spec"]["hard"])
            assert devices or quota["spec"] == {
                "scopes": ["Terminating"],
                "hard": {"pods": quota["spec"]["hard"]["pods"]},
            }


@pytest.mark.parametrize("overlay", WITH_STORE)
def test_the_stores_pods_fit_in_its_quota(overlay):
    quota = only(overlay, "ResourceQuota", "perfit")["spec"]["hard"]
    templates = [template for _, template in pod_templates(overlay)]
    for side in ("requests", "limits"):
        for resource, unit in (("cpu", 1), ("memory", 2**30)):
            asked = [quantity(c["resources"][side][resource]) for t in templates for c in containers(t["spec"])]
            assert sum(asked) <= quantity(quota[f"{side}.{resource}"])
            assert unit * max(asked) > 0
    assert len(templates) <= int(quota["pods"])


def test_nothing_of_the_store_joins_the_mesh():
    overlay = "overlays/kubeflow-multiuser"
    labels = only(overlay, "Namespace", STORE_NAMESPACE)["metadata"]["labels"]
    assert labels["istio-injection"] == "disabled"
    assert labels["istio.io/dataplane-mode"] == "none"
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    for where, template in pod_templates(overlay):
        assert template["metadata"]["labels"]["sidecar.istio.io/inject"] == "false", where


def quantity(text: str) -> float:
    """A quantity of CPUs or bytes."""
    number, unit = re.fullmatch(r"([\d.]+)(m|Mi|Gi)?", text).groups()
    return float(number) * {None: 1, "m": 0.001, "Mi": 2**20, "Gi": 2**30}[unit]
