"""What runs need in their namespace: a service account, volume claims, and quotas with room for the tiers' pods."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from kubernetes.client import V1LimitRange, V1PersistentVolumeClaim, V1ResourceQuota
from kubernetes.utils.quantity import parse_quantity

from perfit.cluster_spec import ClusterSpec, Tier
from perfit_pipelines.doctor.finding import Finding, fail, ok, unknown, warn
from perfit_pipelines.doctor.nodes_check import at_once, server_tier, tier_amounts
from perfit_pipelines.kube import Cluster, NotAllowed

_QUOTA = "quota"
_VOLUMES = "volumes"
_FIRST_USE = "WaitForFirstConsumer"
_COUNTED_SCOPES = {"Terminating", "NotBestEffort"}
_REQUESTED = ("cpu", "memory")


def check_namespace(cluster: Cluster, name: str) -> list[Finding]:
    """Check that the namespace exists and is not being deleted."""
    namespace = cluster.namespace(name)
    if namespace is None:
        return [fail("namespace", f"there is no namespace {name}", "give the one where Kubeflow runs pipelines")]
    if namespace.status and namespace.status.phase == "Terminating":
        return [fail("namespace", f"the namespace {name} is being deleted", "give another with --namespace")]
    return [ok("namespace", f"{name} is there")]


def check_account(cluster: Cluster, namespace: str, name: str) -> list[Finding]:
    """Check that the service account of the runs exists."""
    if cluster.service_account(namespace, name):
        return [ok("service account", f"{name} is there")]
    finding = f"there is no service account {name} in namespace {namespace}: no pod of a run would start"
    fix = "perfit deploy FILE --overlay NAME --apply makes perfit-runner; for another one give --service-account"
    return [fail("service account", finding, fix)]


def check_volumes(cluster: Cluster, spec: ClusterSpec, namespace: str, nodes: int) -> list[Finding]:
    """Check every volume claim that the federation's pods mount.

    Args:
        cluster: To read from.
        spec: The federation.
        namespace: Where runs live.
        nodes: How many nodes its pods can be scheduled on; several need a cache that all can mount.
    """
    cache = spec.cluster.model_cache
    names = [*([cache] if cache else []), *(client.volume for client in spec.clients if client.volume)]
    names = list(dict.fromkeys(names))
    problems, fine = [], 0
    for name in names:
        claim = cluster.claim(namespace, name)
        problem = _check_claim(cluster, namespace, name, claim)
        if problem is None and name == cache and nodes > 1 and not _shared(claim):
            problem = warn(
                _VOLUMES,
                f"the claim {name} can be mounted by one node, and {nodes} nodes fit the tiers: the others' pods wait",
                "give it the access mode ReadWriteMany (manifests/components/gpu), or set cluster.model_cache to null",
            )
        fine += problem is None
        problems += [problem] if problem else []
    if not names:
        return [ok(_VOLUMES, "the federation mounts no claim")]
    return problems or [
        ok(_VOLUMES, f"{fine} {'claim is' if fine == 1 else 'claims are'} bound, or will be at first use")
    ]


def check_quotas(cluster: Cluster, spec: ClusterSpec, namespace: str) -> list[Finding]:
    """Compare the tiers' pods with the quotas of their namespace."""
    quotas = [quota for quota in cluster.quotas(namespace) if _counts(quota)]
    problems = [check for quota in quotas for check in _check_quota(spec, quota)]
    problems += _check_without_requests(cluster, namespace, quotas)
    if problems:
        return problems
    if not quotas:
        return [ok(_QUOTA, f"none limits pods of runs in namespace {namespace}")]
    return [ok(_QUOTA, f"room for all clients at once in {', '.join(quota.metadata.name for quota in quotas)}")]


def _check_claim(cluster: Cluster, namespace: str, name: str, claim: V1PersistentVolumeClaim | None) -> Finding | None:
    if claim is None:
        fix = "create it, or correct cluster.model_cache and clients.<n>.volume in the federation file"
        return fail(_VOLUMES, f"there is no claim {name} in namespace {namespace}", fix)
    phase = claim.status.phase if claim.status else None
    if phase == "Bound":
        return None
    fix = f"see why: kubectl -n {namespace} describe pvc {name}"
    if phase != "Pending":
        return fail(_VOLUMES, f"the claim {name} is {phase or 'in no state'}", fix)
    try:
        kind = cluster.storage_class(claim.spec.storage_class_name) if claim.spec.storage_class_name else None
    except NotAllowed as error:
        return unknown(_VOLUMES, f"the claim {name} is pending, and you may not {error}", fix)
    if kind and kind.volume_binding_mode == _FIRST_USE:
        return None
    return fail(_VOLUMES, f"the claim {name} is pending: no volume is bound to it", fix)


def _shared(claim: V1PersistentVolumeClaim) -> bool:
    return "ReadWriteMany" in (claim.spec.access_modes or [])


def _counts(quota: V1ResourceQuota) -> bool:
    """Whether it applies to pods of runs, which have no priority class and do have requests."""
    return quota.spec.scope_selector is None and set(quota.spec.scopes or []) <= _COUNTED_SCOPES


def _check_quota(spec: ClusterSpec, quota: V1ResourceQuota) -> list[Finding]:
    name = quota.metadata.name
    fix = f"raise the quota {name}, or lower tiers.<name>.parallelism or what the tiers ask for"
    checks, tiers = [], [spec.tiers[tier] for tier in spec.pod_tiers()]
    for resource, hard, used in _limits(quota):
        one = max(_asked(tier, resource) for tier in (*tiers, server_tier(spec)))
        together = sum(_asked(spec.tiers[tier], resource) * at_once(spec, tier) for tier in spec.pod_tiers())
        allowed = f"{name} allows {_format_amount(hard)} of {resource}"
        if one > hard:
            checks.append(fail(_QUOTA, f"{allowed}, and one pod asks for {_format_amount(one)}", fix))
        elif one > hard - used:
            checks.append(
                warn(_QUOTA, f"{allowed}, of which {_format_amount(used)} are in use: clients wait for these", fix)
            )
        elif together > hard:
            finding = f"{allowed}, and clients that train at once ask for {_format_amount(together)}: some wait"
            checks.append(warn(_QUOTA, finding, fix))
    return checks


def _limits(quota: V1ResourceQuota) -> list[tuple[str, Decimal, Decimal]]:
    """Resource, limit and usage of each limit."""
    status = quota.status
    used = (status.used if status else None) or {}
    return [
        (resource, parse_quantity(hard), parse_quantity(used.get(resource, 0)))
        for resource, hard in (quota.spec.hard or {}).items()
    ]


def _asked(tier: Tier, resource: str) -> Decimal:
    """What a pod of the tier uses of a quota's resource. KFP sets limits, which Kubernetes takes as requests too."""
    if resource in ("pods", "count/pods"):
        return Decimal(1)
    return tier_amounts(tier).get(_unprefixed(resource), Decimal(0))


def _check_without_requests(cluster: Cluster, namespace: str, quotas: Sequence[V1ResourceQuota]) -> list[Finding]:
    """Prepare and Aggregate request no cpu, Argo's own containers nothing: quotas refuse them without defaults."""
    names = {_unprefixed(resource) for quota in quotas for resource in quota.spec.hard or {}} & set(_REQUESTED)
    if not names:
        return []
    finding = f"a quota on {' and '.join(sorted(names))} refuses pods that request none, as Argo's part of each does"
    fix = f"give namespace {namespace} a LimitRange with defaults for containers"
    try:
        ranges = cluster.limit_ranges(namespace)
    except NotAllowed as error:
        return [unknown(_QUOTA, f"{finding}, unless a LimitRange gives defaults: you may not {error}", fix)]
    return [] if names <= _defaults(ranges) else [fail(_QUOTA, finding, fix)]


def _defaults(ranges: Sequence[V1LimitRange]) -> set[str]:
    items = [item for limits in ranges for item in limits.spec.limits if item.type == "Container"]
    return {resource for item in items for resource in item.default or {}}


def _unprefixed(resource: str) -> str:
    return resource.removeprefix("requests.").removeprefix("limits.")


def _format_amount(amount: Decimal) -> str:
    return f"{float(amount) / 2**30:.3g}Gi" if amount >= 2**30 else f"{float(amount):.4g}"
