"""Whether the quotas of the run namespace leave room for the tiers' pods."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from kubernetes.client import V1LimitRange, V1ResourceQuota
from kubernetes.utils.quantity import parse_quantity

from perfit.spec import Federation
from perfit_pipelines.doctor.check import Check, fail, ok, unknown, warn
from perfit_pipelines.doctor.cluster import Cluster, NotAllowed
from perfit_pipelines.doctor.nodes_check import at_once, tier_amounts

NAME = "quota"
_COUNTED_SCOPES = {"Terminating", "NotBestEffort"}
_STATED = ("cpu", "memory")


def check_quotas(cluster: Cluster, spec: Federation, namespace: str) -> list[Check]:
    """Hold the tiers' pods against the quotas of their namespace."""
    quotas = [quota for quota in cluster.quotas(namespace) if _counts(quota)]
    problems = [check for quota in quotas for check in _check_quota(spec, quota)]
    problems += _check_unstated(cluster, namespace, quotas)
    if problems:
        return problems
    if not quotas:
        return [ok(NAME, f"none bounds pods of runs in namespace {namespace}")]
    return [ok(NAME, f"room for all clients at once in {', '.join(quota.metadata.name for quota in quotas)}")]


def _counts(quota: V1ResourceQuota) -> bool:
    """Whether it counts pods of runs: of a priority or without requests, they are not."""
    return quota.spec.scope_selector is None and set(quota.spec.scopes or []) <= _COUNTED_SCOPES


def _check_quota(spec: Federation, quota: V1ResourceQuota) -> list[Check]:
    name = quota.metadata.name
    fix = f"raise the quota {name}, or lower tiers.<name>.parallelism or what the tiers ask for"
    checks = []
    for resource, hard, used in _bounds(quota):
        one = max(_asked(spec, tier, resource) for tier in spec.tiers_in_use())
        together = sum(_asked(spec, tier, resource) * at_once(spec, tier) for tier in spec.tiers_in_use())
        bound = f"{name} allows {_plain(hard)} of {resource}"
        if one > hard:
            checks.append(fail(NAME, f"{bound}, and one client's pod asks for {_plain(one)}", fix))
        elif one > hard - used:
            checks.append(warn(NAME, f"{bound}, of which {_plain(used)} are in use: clients wait for these", fix))
        elif together > hard:
            finding = f"{bound}, and clients that train at once ask for {_plain(together)}: some wait"
            checks.append(warn(NAME, finding, fix))
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


def _check_unstated(cluster: Cluster, namespace: str, quotas: Sequence[V1ResourceQuota]) -> list[Check]:
    """Pods of planning and aggregation state no cpu and memory: quotas on these refuse them, without defaults."""
    names = {_unprefixed(resource) for quota in quotas for resource in quota.spec.hard or {}} & set(_STATED)
    if not names:
        return []
    finding = f"a quota on {' and '.join(sorted(names))} refuses pods that state none, as the server's tasks"
    fix = f"give namespace {namespace} a LimitRange with defaults for containers"
    try:
        ranges = cluster.limit_ranges(namespace)
    except NotAllowed as error:
        return [unknown(NAME, f"{finding}, unless a LimitRange gives defaults: you may not {error}", fix)]
    return [] if names <= _defaults(ranges) else [fail(NAME, finding, fix)]


def _defaults(ranges: Sequence[V1LimitRange]) -> set[str]:
    items = [item for found in ranges for item in found.spec.limits if item.type == "Container"]
    return {resource for item in items for resource in item.default or {}}


def _unprefixed(resource: str) -> str:
    return resource.removeprefix("requests.").removeprefix("limits.")


def _plain(amount: Decimal) -> str:
    return f"{float(amount) / 2**30:.3g}Gi" if amount >= 2**30 else f"{float(amount):.4g}"
