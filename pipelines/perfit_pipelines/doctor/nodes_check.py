"""Whether some node fits each tier, how many of its clients can train at once, and which nodes have the images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from decimal import Decimal

from kubernetes.client import V1Node, V1Taint
from kubernetes.utils.quantity import parse_quantity

from perfit.cluster_spec import ClusterSpec, Tier, Toleration
from perfit_pipelines.doctor.finding import Finding, fail, ok, unknown, warn

Amounts = dict[str, Decimal]
"""Amounts of resources by their name in Kubernetes; cpu in cores, memory in bytes."""

_IMAGES = "images"
_DEFAULT_REGISTRY = "docker.io"
_HARD_TAINTS = ("NoSchedule", "NoExecute")


def check_tiers(spec: ClusterSpec, nodes: Sequence[V1Node]) -> list[Finding]:
    """Compare every tier that has clients with the nodes. What other pods use of them now is ignored."""
    return [_check_tier(spec, name, nodes) for name in spec.pod_tiers()]


def check_server(spec: ClusterSpec, nodes: Sequence[V1Node]) -> list[Finding]:
    """Check that the server's tasks fit some node; they tolerate no taint."""
    fitting = len(fitting_nodes(server_tier(spec), nodes))
    finding = f"{fitting} of {len(nodes)} nodes take Prepare and Aggregate (memory {spec.cluster.server_memory})"
    fix = "lower cluster.server_memory, or add a node that is large enough and has no taint"
    return [ok("server", finding) if fitting else fail("server", finding, fix)]


def check_images(images: Sequence[str], nodes: Sequence[V1Node]) -> list[Finding]:
    """Look for images among those that the nodes list.

    A kubelet lists 50 of its images, the largest first, so a small one may be there without being listed.

    Args:
        images: References.
        nodes: Those that pods can be scheduled on.
    """
    return [_check_image(image, nodes) for image in dict.fromkeys(images)]


def fitting_nodes(tier: Tier, nodes: Sequence[V1Node]) -> list[V1Node]:
    """Return the nodes that a pod of the tier fits: ready, selected, without a taint against it, and large enough."""
    requests = tier_amounts(tier)
    return [node for node in nodes if _obstacle(tier, node) is None and _pods(requests, node)]


def tier_amounts(tier: Tier) -> Amounts:
    """Return the resources that a pod of the tier requests."""
    amounts = {"cpu": parse_quantity(tier.cpu), "memory": parse_quantity(tier.memory)}
    if tier.accelerator:
        amounts[tier.accelerator.type] = Decimal(tier.accelerator.count)
    return amounts


def server_tier(spec: ClusterSpec) -> Tier:
    """Return what Prepare and Aggregate ask for, as if they were a tier's."""
    return Tier(cpu="0", memory=spec.cluster.server_memory)


def at_once(spec: ClusterSpec, name: str) -> int:
    """Return how many clients of a tier train at the same time, if there is room."""
    clients = sum(client.tier == name for client in spec.clients)
    return min(spec.tiers[name].parallelism or clients, clients)


def _check_tier(spec: ClusterSpec, name: str, nodes: Sequence[V1Node]) -> Finding:
    tier, title = spec.tiers[name], f"tier {name}"
    obstacles = [_obstacle(tier, node) for node in nodes]
    open_nodes = [node for node, obstacle in zip(nodes, obstacles, strict=True) if obstacle is None]
    if not open_nodes:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(filter(None, obstacles)).most_common())
        finding = f"none of {len(nodes)} nodes takes its pods: {reasons or 'there are none'}"
        return fail(
            title, finding, f"change tiers.{name}.node_selector or tolerations, or the nodes' labels and taints"
        )
    requests = tier_amounts(tier)
    pods = sum(_pods(requests, node) for node in open_nodes)
    if not pods:
        finding = f"a pod asks for {_format_amounts(requests)}; {_largest(requests, open_nodes)}"
        return fail(title, finding, f"lower what tiers.{name} asks for, or add larger nodes")
    clients = at_once(spec, name)
    fitting = len(fitting_nodes(tier, nodes))
    finding = f"room for {pods} of its pods ({_format_amounts(requests)}) on {fitting} of {len(nodes)} nodes"
    if pods < clients:
        fix = f"add nodes, or set tiers.{name}.parallelism to {pods}"
        return warn(title, f"{finding}, for {clients} clients at once: the others wait", fix)
    return ok(title, finding)


def _obstacle(tier: Tier, node: V1Node) -> str | None:
    """Why no pod of the tier can be scheduled on a node, however large it is."""
    labels = node.metadata.labels or {}
    if any(labels.get(key) != value for key, value in tier.node_selector.items()):
        return "not matched by the node selector"
    ready = next((c.status for c in node.status.conditions or [] if c.type == "Ready"), "Unknown")
    if ready != "True":
        return "not ready"
    if node.spec.unschedulable:
        return "cordoned"
    for taint in node.spec.taints or []:
        if taint.effect in _HARD_TAINTS and not any(_tolerates(toleration, taint) for toleration in tier.tolerations):
            value = f"={taint.value}" if taint.value else ""
            return f"with the taint {taint.key}{value}:{taint.effect}"
    return None


def _tolerates(toleration: Toleration, taint: V1Taint) -> bool:
    if toleration.effect not in (None, taint.effect):
        return False
    if toleration.key is None:
        return toleration.operator == "Exists"
    return toleration.key == taint.key and (
        toleration.operator == "Exists" or (toleration.value or "") == (taint.value or "")
    )


def _pods(requests: Amounts, node: V1Node) -> int:
    """How many pods an empty node has room for."""
    return min(int(_allocatable(node, resource) // amount) for resource, amount in requests.items() if amount)


def _allocatable(node: V1Node, resource: str) -> Decimal:
    return parse_quantity((node.status.allocatable or {}).get(resource, 0))


def _largest(requests: Amounts, nodes: Sequence[V1Node]) -> str:
    """Which resources are too small even on the best node, or that no single node has all of them."""
    best = {resource: max(_allocatable(node, resource) for node in nodes) for resource in requests}
    short = {resource: amount for resource, amount in best.items() if amount < requests[resource]}
    if not short:
        return "no node that it may use has all of these"
    return f"the most that a node it may use has is {_format_amounts(short)}"


def _format_amounts(amounts: Amounts) -> str:
    parts = []
    for resource, amount in amounts.items():
        text = f"{float(amount) / 2**30:.3g}Gi" if resource == "memory" else f"{float(amount):.4g}"
        parts.append(f"{resource} {text}")
    return ", ".join(parts)


def _check_image(image: str, nodes: Sequence[V1Node]) -> Finding:
    name = _full_name(image)
    with_image = [node for node in nodes if name in _names(node)]
    if nodes and len(with_image) == len(nodes):
        return ok(_IMAGES, f"{image} is on all {len(nodes)} nodes that pods may go to")
    located = f"{image} is known to be on {len(with_image)} of {len(nodes)} nodes that pods may go to"
    if name.startswith(f"{_DEFAULT_REGISTRY}/library/perfit-"):
        fix = (
            "load it onto every node (kind load docker-image), or push it to a registry and name it with "
            "--client-image and --server-image"
        )
        return warn(_IMAGES, f"{located}, and its name has no registry to pull it from", fix)
    registry = name.partition("/")[0]
    fix = f"try it: kubectl run pull-test --image={image} --restart=Never --command -- true; then delete that pod"
    return unknown(_IMAGES, f"{located}; whether {registry} gives it to them shows when a pod starts", fix)


def _names(node: V1Node) -> set[str]:
    return {_full_name(name) for image in node.status.images or [] for name in image.names or []}


def _full_name(image: str) -> str:
    """Return a reference with its registry, and with its tag unless it has a digest."""
    first, slash, _ = image.partition("/")
    if not slash:
        image = f"{_DEFAULT_REGISTRY}/library/{image}"
    elif not any(mark in first for mark in ".:") and first != "localhost":
        image = f"{_DEFAULT_REGISTRY}/{image}"
    last = image.rpartition("/")[2]
    return image if "@" in last or ":" in last else f"{image}:latest"
