"""Every name that an object refers to is in the same overlay, or comes from `perfit deploy` or Kubeflow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from perfit_pipelines.deploy.render import USER_SECRETS

from .rendering import (
    OVERLAYS,
    WITH_STORE,
    Object,
    identity,
    of_kind,
    pod_templates,
    render,
    run_namespace,
    store_of,
    walk,
)

Identity = tuple[str, str | None, str]
"""Kind, namespace (None without one) and name."""

RUN = "the run namespace"

FROM_DEPLOY = {("Secret", "perfit", name) for name in USER_SECRETS}
FROM_KUBEFLOW = {("ConfigMap", RUN, "kfp-launcher"), ("Secret", RUN, "mlpipeline-minio-artifact")}
"""What others bring."""

NAMED_BY = {
    "configMapKeyRef": "ConfigMap",
    "configMapRef": "ConfigMap",
    "configMap": "ConfigMap",
    "secretKeyRef": "Secret",
    "secretRef": "Secret",
    "secret": "Secret",
    "persistentVolumeClaim": "PersistentVolumeClaim",
}
"""Fields of a pod's spec that name an object of a kind."""

KINDS = {"secrets": "Secret", "configmaps": "ConfigMap", "serviceaccounts": "ServiceAccount"}
"""By what roles call them."""
OF_COMPONENTS = {"perfit-queue-limit"}
"""What a role of every overlay may read and only a component brings."""


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_whatever_is_referred_to_is_there(overlay):
    run = run_namespace(overlay)
    provided = {(kind, run if place == RUN else place, name) for kind, place, name in FROM_DEPLOY | FROM_KUBEFLOW}
    if overlay in WITH_STORE:
        provided.add(("Secret", "perfit", store_of(overlay).root_secret))
    else:
        provided = {entry for entry in provided if entry[1] == run}
    named = {*by_pods(overlay), *by_roles(overlay), *by_services(overlay)}
    assert named - {identity(item) for item in render(overlay)} == provided


def by_pods(overlay: str) -> Iterator[Identity]:
    for where, template in pod_templates(overlay):
        namespace = where.split(" ")[1].split("/")[0]
        yield "ServiceAccount", namespace, template["spec"]["serviceAccountName"]
        yield "PriorityClass", None, template["spec"]["priorityClassName"]
        for entry in walk(template["spec"]):
            for field in NAMED_BY.keys() & entry.keys():
                yield NAMED_BY[field], namespace, name_in(entry[field])


def name_in(reference: Object) -> str:
    (name,) = (reference[key] for key in ("name", "secretName", "claimName") if key in reference)
    return name


def by_services(overlay: str) -> Iterator[Identity]:
    for item in of_kind(overlay, "StatefulSet"):
        yield "Service", item["metadata"]["namespace"], item["spec"]["serviceName"]


def by_roles(overlay: str) -> Iterator[Identity]:
    for item in of_kind(overlay, "RoleBinding"):
        yield item["roleRef"]["kind"], item["metadata"]["namespace"], item["roleRef"]["name"]
        for subject in item["subjects"]:
            yield subject["kind"], subject["namespace"], subject["name"]
    for item in of_kind(overlay, "Role"):
        for rule in item["rules"]:
            for name in set(rule.get("resourceNames", [])) - OF_COMPONENTS:
                yield KINDS[rule["resources"][0]], item["metadata"]["namespace"], name
