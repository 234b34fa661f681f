"""All checks, in the order in which they build on each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kubernetes.client import V1Node

from perfit.errors import PerfitError
from perfit.spec import Federation
from perfit_pipelines.cluster.endpoint import Endpoint
from perfit_pipelines.doctor.check import Check, fail, ok, unknown
from perfit_pipelines.doctor.cluster import Cluster, NotAllowed
from perfit_pipelines.doctor.images_check import check_images
from perfit_pipelines.doctor.nodes_check import check_tiers, fitting_nodes
from perfit_pipelines.doctor.pipelines_check import check_pipelines
from perfit_pipelines.doctor.quota_check import check_quotas
from perfit_pipelines.doctor.secrets_check import RoleKeys, check_secrets
from perfit_pipelines.doctor.store_check import check_store
from perfit_pipelines.doctor.volumes_check import check_volumes

_ALLOW_FIX = "let an administrator bind you to the Role and ClusterRole perfit-doctor of manifests/, or run it"


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        spec: The federation.
        endpoint: How to reach Kubeflow Pipelines.
        namespace: Where runs live.
        context: Of the kubeconfig; None for its current one.
        store: URI of the store.
        store_endpoint: URL of the store as this machine reaches it; None for that of the Secrets.
        service_account: That runs act as.
        images: Of clients and server.
    """

    spec: Federation
    endpoint: Endpoint
    namespace: str
    context: str | None
    store: str | None
    store_endpoint: str | None
    service_account: str
    images: Sequence[str]


def examine(subject: Subject) -> list[Check]:
    """Check everything that a run of the federation needs; what fails does not keep the rest from being checked."""
    checks = check_pipelines(subject.endpoint, subject.namespace)
    try:
        cluster = Cluster(subject.context)
        return checks + _examine_cluster(subject, cluster)
    except PerfitError as error:
        return [*checks, fail("Kubernetes", error.problem, error.fix)]


def _examine_cluster(subject: Subject, cluster: Cluster) -> list[Check]:
    spec, namespace = subject.spec, subject.namespace
    checks = _allowed("namespace", lambda: _check_namespace(cluster, namespace))
    checks += _allowed("service account", lambda: _check_account(cluster, namespace, subject.service_account))
    found, roles = check_secrets(cluster, spec, namespace)
    checks += found
    checks += _check_store(subject, roles)
    nodes: list[V1Node] = []
    refused = _allowed("nodes", lambda: nodes.extend(cluster.nodes()) or [])
    checks += refused
    fitting = [node for node in nodes if any(fitting_nodes(spec.tiers[tier], [node]) for tier in spec.tiers_in_use())]
    checks += _allowed("volumes", lambda: check_volumes(cluster, spec, namespace, len(fitting)))
    if not refused:
        checks += check_tiers(spec, nodes)
        checks += check_images(subject.images, fitting)
    return checks + _allowed("quota", lambda: check_quotas(cluster, spec, namespace))


def _check_store(subject: Subject, roles: Sequence[RoleKeys]) -> list[Check]:
    return check_store(subject.spec, subject.store, roles, subject.store_endpoint)


def _allowed(name: str, check: Callable[[], list[Check]]) -> list[Check]:
    try:
        return check()
    except NotAllowed as error:
        return [unknown(name, f"you may not {error}", _ALLOW_FIX)]


def _check_namespace(cluster: Cluster, name: str) -> list[Check]:
    found = cluster.namespace(name)
    if found is None:
        return [fail("namespace", f"there is no namespace {name}", "give the one where Kubeflow runs pipelines")]
    if found.status and found.status.phase == "Terminating":
        return [fail("namespace", f"the namespace {name} is being deleted", "give another with --namespace")]
    return [ok("namespace", f"{name} is there")]


def _check_account(cluster: Cluster, namespace: str, name: str) -> list[Check]:
    if cluster.service_account(namespace, name):
        return [ok("service account", f"{name} is there")]
    finding = f"there is no service account {name} in namespace {namespace}: no pod of a run would start"
    fix = "perfit deploy FILE --overlay NAME --apply makes perfit-runner; for another one give --service-account"
    return [fail("service account", finding, fix)]
