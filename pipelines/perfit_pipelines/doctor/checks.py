"""Running all checks, in the order in which they build on each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kubernetes.client import V1Node

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit_pipelines.cluster.connection import Endpoint
from perfit_pipelines.doctor.finding import Finding, allowed, fail
from perfit_pipelines.doctor.jobs_check import check_jobs
from perfit_pipelines.doctor.namespace_check import check_account, check_namespace, check_quotas, check_volumes
from perfit_pipelines.doctor.nodes_check import check_images, check_server, check_tiers, fitting_nodes, server_tier
from perfit_pipelines.doctor.pipelines_check import check_pipelines
from perfit_pipelines.doctor.queue_check import check_queues
from perfit_pipelines.doctor.secrets_check import RoleKeys, check_secrets
from perfit_pipelines.doctor.store_check import check_store
from perfit_pipelines.doctor.store_owner_check import check_authority, check_store_owner
from perfit_pipelines.kube import Cluster


@dataclass(frozen=True)
class Setup:
    """What is checked: a federation, and where it is to run.

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

    spec: ClusterSpec
    endpoint: Endpoint
    namespace: str
    context: str | None
    store: str | None
    store_endpoint: str | None
    service_account: str
    images: Sequence[str]


def run_checks(setup: Setup) -> list[Finding]:
    """Check everything that a run of the federation needs; after a failed check the others still run."""
    findings = check_pipelines(setup.endpoint, setup.namespace)
    try:
        cluster = Cluster(setup.context)
        return findings + _check_cluster(setup, cluster)
    except PerfitError as error:
        return [*findings, fail("Kubernetes", error.problem, error.fix)]


def _check_cluster(setup: Setup, cluster: Cluster) -> list[Finding]:
    spec, namespace = setup.spec, setup.namespace
    findings = allowed("namespace", lambda: check_namespace(cluster, namespace))
    findings += allowed("service account", lambda: check_account(cluster, namespace, setup.service_account))
    secrets, roles = check_secrets(cluster, spec, namespace)
    findings += secrets
    findings += allowed("store", lambda: check_authority(cluster, spec, namespace))
    findings += _check_store(setup, roles)
    findings += check_store_owner(cluster, namespace, setup.store, roles, setup.store_endpoint)
    nodes: list[V1Node] = []
    refused = allowed("nodes", lambda: nodes.extend(cluster.nodes()) or [])
    findings += refused
    tiers = [spec.tiers[tier] for tier in spec.pod_tiers()] or [server_tier(spec)]
    fitting = [node for node in nodes if any(fitting_nodes(tier, [node]) for tier in tiers)]
    findings += allowed("volumes", lambda: check_volumes(cluster, spec, namespace, len(fitting)))
    if not refused:
        findings += check_tiers(spec, nodes) + check_server(spec, nodes)
        findings += check_images(setup.images, fitting)
    findings += allowed("quota", lambda: check_quotas(cluster, spec, namespace))
    findings += allowed("TrainJobs", lambda: check_jobs(cluster, spec))
    return findings + allowed("queues", lambda: check_queues(cluster, spec, namespace))


def _check_store(setup: Setup, roles: Sequence[RoleKeys]) -> list[Finding]:
    return check_store(setup.spec, setup.store, roles, setup.store_endpoint)
