"""Whether the claims of the model cache and of the clients' data can be mounted."""

from __future__ import annotations

from kubernetes.client import V1PersistentVolumeClaim

from perfit.spec import Federation
from perfit_pipelines.doctor.check import Check, fail, ok, unknown, warn
from perfit_pipelines.doctor.cluster import Cluster, NotAllowed

NAME = "volumes"
_FIRST_USE = "WaitForFirstConsumer"


def check_volumes(cluster: Cluster, spec: Federation, namespace: str, nodes: int) -> list[Check]:
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
                NAME,
                f"the claim {name} can be mounted by one node, and {nodes} nodes fit the tiers: the others' pods wait",
                "give it the access mode ReadWriteMany (manifests/components/gpu), or set cluster.model_cache to null",
            )
        fine += found is None
        problems += [found] if found else []
    if not names:
        return [ok(NAME, "the federation mounts no claim")]
    return problems or [ok(NAME, f"{fine} {'claim is' if fine == 1 else 'claims are'} bound, or will be at first use")]


def _check_claim(cluster: Cluster, namespace: str, name: str, claim: V1PersistentVolumeClaim | None) -> Check | None:
    if claim is None:
        fix = "create it, or correct cluster.model_cache and clients.<n>.volume in the federation file"
        return fail(NAME, f"there is no claim {name} in namespace {namespace}", fix)
    phase = claim.status.phase if claim.status else None
    if phase == "Bound":
        return None
    fix = f"see why: kubectl -n {namespace} describe pvc {name}"
    if phase != "Pending":
        return fail(NAME, f"the claim {name} is {phase or 'in no state'}", fix)
    try:
        kind = cluster.storage_class(claim.spec.storage_class_name) if claim.spec.storage_class_name else None
    except NotAllowed as error:
        return unknown(NAME, f"the claim {name} is pending, and you may not {error}", fix)
    if kind and kind.volume_binding_mode == _FIRST_USE:
        return None
    return fail(NAME, f"the claim {name} is pending: no volume is bound to it", fix)


def _shared(claim: V1PersistentVolumeClaim) -> bool:
    return "ReadWriteMany" in (claim.spec.access_modes or [])
