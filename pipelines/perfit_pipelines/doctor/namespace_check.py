"""What runs need in their namespace: a service account, volume claims, and quotas with room for the tiers' pods."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from kubernetes.client import V1LimitRange, V1PersistentVolumeClaim, V1ResourceQuota
from kubernetes.utils.quantity import parse_quantity

from perfit.spec import Federation
from perfit_pipelines.doctor.cluster import Cluster, NotAllowed
from perfit_pipelines.doctor.finding import Finding, fail, ok, unknown, warn
from perfit_pipelines.doctor.nodes_check import at_once, tier_amounts

_QUOTA = "quota"
_VOLUMES = "volumes"
_FIRST_USE = "WaitForFirstConsumer"
_COUNTED_SCOPES = {"Terminating", "NotBestEffort"}
_STATED = ("cpu", "memory")


def check_namespace(cluster: Cluster, name: str) -> list[Finding]:
    """Look whether the namespace exists and stays."""
    namespace = cluster.namespace(name)
    if namespace is None:
        return [fail("namespace", f"there is no namespace {name}", "give the one where Kubeflow runs pipelines")]
    if namespace.status and namespace.status.phase == "Terminating":
        return [fail("namespace", f"the namespace {name} is being deleted", "give another with --namespace")]
    return [ok("namespace", f"{name} is there")]


def check_account(cluster: Cluster, namespace: str, name: str) -> list[Finding]:
    """Look whether the service account that runs act as exists."""
    if cluster.service_account(namespace, name):
        return [ok("service account", f"{name} is there")]
    finding = f"there is no service account {name} in namespace {namespace}: no pod of a run would start"
    fix = "perfit deploy FILE --overlay NAME --apply makes perfit-runner; for another one give --service-account"
    return [fail("service account", finding, fix)]


def check_volumes(cluster: Cluster, spec: Federation, namespace: str, nodes: int) -> list[Finding]:
    """Look at every claim that pods of the federation mount.

    Args:
        cluster: To read from.
        spec: The federation.
        namespace: Where runs live.
        nodes: How many nodes its pods may go to; several need a cache that all can mount.
    """
    cache = spec.cluster.model_cache
    names = [*([cache] if cache else []), *(client.volume for client in spec.clients if client.volume)]
    names = list(dict.fromkeys(names))
    problems, fine = [], 0
    for name in names:
        claim = cluster.claim(namespace, name)
        found = _check_claim(cluster, namespace, name, claim)
        if found is None and name == cache and nodes > 1 and not _shared(claim):
            found = warn(
                _VOLUMES,
                f"the claim {name} can be mounted by one node, and {nodes} nodes fit the tiers: the others' pods wait",
                "give it the access mode ReadWriteMany (manifests/components/gpu), or set cluster.model_cache to null",
            )
        fine += found is None
        problems += [found] if found else []
    if not names:
        return [ok(_VOLUMES, "the federation mounts no claim")]
    return problems or [
        ok(_VOLUMES, f"{fine} {'claim is' if fine == 1 else 'claims are'} bound, or will be at first use")
    ]


def check_quotas(cluster: Cluster, spec: Federation, namespace: str) -> list[Finding]:
    """Hold the tiers' pods against the quotas of their namespace."""
    quotas = [quota for quota in cluster.quotas(namespace) if _counts(quota)]
    problems = [check for quota in quotas for check in _check_quota(spec, quota)]
    problems += _check_unstated(cluster, namespace, quotas)
    if problems:
        return problems
    if not quotas:
        return [ok(_QUOTA, f"none bounds pods of runs in namespace {namespace}")]
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
    """Whether it counts pods of runs: of a priority or without requests, they are not."""
    return quota.spec.scope_selector is None and set(quota.spec.scopes or []) <= _COUNTED_SCOPES


def _check_quota(spec: Federation, quota: V1ResourceQuota) -> list[Finding]:
    name = quota.metadata.name
    fix = f"raise the quota {name}, or lower tiers.<name>.parallelism or what the tiers ask for"
    checks = []
    for resource, hard, used in _bounds(quota):
        one = max(_asked(spec, tier, resource) for tier in spec.tiers_in_use())
        together = sum(_asked(spec, tier, resource) * at_once(spec, tier) for tier in spec.tiers_in_use())
        bound = f"{name} allows {_plain(hard)} of {resource}"
        if one > hard:
            checks.append(fail(_QUOTA, f"{bound}, and one client's pod asks for {_plain(one)}", fix))
        elif one > hard - used:
            checks.append(warn(_QUOTA, f"{bound}, of which {_plain(used)} are in use: clients wait for these", fix))
        elif together > hard:
            finding = f"{bound}, and clients that train at once ask for {_plain(together)}: some wait"
            checks.append(warn(_QUOTA, finding, fix))
    return checks


def _bounds(quota: V1ResourceQuota) -> list[tuple[str, Decimal, Decimal]]:
    """Resource, bound and use of every bound."""
    status = quota.status
    used = (status.used if status else None) or {}
    return [
        (resource, parse_quantity(hard), parse_quantity(used.get(resource, 0)))
        for resource, hard in (quota.spec.hard or {}).items()
    ]


def _asked(spec: Federation, tier: str, resource: str) -> Decimal:
    """What a pod of the tier takes of what a quota counts. KFP sets limits, which Kubernetes takes for requests too."""
    if resource in ("pods", "count/pods"):
        return Decimal(1)
    return tier_amounts(spec.tiers[tier]).get(_unprefixed(resource), Decimal(0))


def _check_unstated(cluster: Cluster, namespace: str, quotas: Sequence[V1ResourceQuota]) -> list[Finding]:
    """Pods of planning and aggregation state no cpu and memory: quotas on these refuse them, without defaults."""
    names = {_unprefixed(resource) for quota in quotas for resource in quota.spec.hard or {}} & set(_STATED)
    if not names:
        return []
    finding = f"a quota on {' and '.join(sorted(names))} refuses pods that state none, as the server's tasks"
    fix = f"give namespace {namespace} a LimitRange with defaults for containers"
    try:
        ranges = cluster.limit_ranges(namespace)
    except NotAllowed as error:
        return [unknown(_QUOTA, f"{finding}, unless a LimitRange gives defaults: you may not {error}", fix)]
    return [] if names <= _defaults(ranges) else [fail(_QUOTA, finding, fix)]


def _defaults(ranges: Sequence[V1LimitRange]) -> set[str]:
    items = [item for found in ranges for item in found.spec.limits if item.type == "Container"]
    return {resource for item in items for resource in item.default or {}}


def _unprefixed(resource: str) -> str:
    return resource.removeprefix("requests.").removeprefix("limits.")


def _plain(amount: Decimal) -> str:
    return f"{float(amount) / 2**30:.3g}Gi" if amount >= 2**30 else f"{float(amount):.4g}"
