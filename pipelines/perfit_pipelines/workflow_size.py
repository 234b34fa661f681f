"""How large the Argo workflow of a compiled pipeline becomes, as Argo and Kubeflow Pipelines count it."""

from __future__ import annotations

import json
import zlib
from dataclasses import astuple, dataclass, replace

from perfit_pipelines.workflow_nodes import (
    Json,
    Workflow,
    container_driver_inputs,
    dag_driver_inputs,
    dump,
)

WORKFLOW_BYTES = 1_048_576
"""Of a workflow's JSON. Above it Argo compresses the nodes, and KFP's list of tasks stops; above it compressed, the run
ends: "workflow is longer than maximum allowed size"."""
ARGUMENT_BYTES = 131_072
"""Of a pod's arguments. Longer ones would go into a ConfigMap, which Argo's stock controller may not create."""
KEPT_BYTES = int(0.9 * WORKFLOW_BYTES)
"""What a run's workflow may have, compressed: an estimate is 5 % below to 3 % above what was recorded, and a pod that
is tried again has further nodes."""
_MEASURED = 72
"""Clients of the largest run whose nodes are written out."""
_LEVEL = 5
"""Of zlib: its length comes nearest to that of Argo's gzip (2 % below it, in the recordings)."""
_GZIP = 1.02
_NODE_BYTES = 4_000
"""Of a node: 3,500 to 3,900 were recorded, and the estimate is up to 3,940."""
_OWN_TEMPLATES, _TEMPLATE_TASK, _HEAD = 9_500, 700, 1_300
"""Bytes of KFP's own templates, of a task in a template, and of a workflow's metadata and status but the nodes."""


@dataclass(frozen=True)
class WorkflowSize:
    """What a run's workflow takes at its end.

    Args:
        nodes: Number of nodes.
        pods: Number of pods, of drivers and of executors.
        sequence: Pods in sequence.
        spec: Bytes of the workflow without its nodes.
        status: Bytes of its nodes.
        compressed: Bytes of its nodes, compressed: gzip in base64.
        argument: Bytes of the longest arguments of a pod.
    """

    nodes: int
    pods: int
    sequence: int
    spec: int
    status: int
    compressed: int
    argument: int

    @property
    def kept(self) -> int:
        """Bytes of the workflow with its nodes compressed, which is what Argo limits."""
        return self.spec + self.compressed

    @property
    def is_listed(self) -> bool:
        """Whether KFP lists the run's tasks to its end."""
        return self.spec + self.status <= WORKFLOW_BYTES

    @property
    def fits(self) -> bool:
        """Whether Argo keeps the run, with the margin that this estimate needs."""
        return self.kept <= KEPT_BYTES and self.argument <= ARGUMENT_BYTES

    @property
    def listing_stops(self) -> str:
        """Say that KFP's list of tasks will stop, in a sentence."""
        return (
            f"the run has {self.nodes:,} nodes of {self.status / 1e6:.1f} MB at its end: Kubeflow's list of its tasks "
            f"stops changing above {WORKFLOW_BYTES / 1e6:.1f} MB, while the run goes on"
        )

    def plus(self, step: WorkflowSize, times: float) -> WorkflowSize:
        """Return this size with a difference added so many times."""
        return WorkflowSize(*(round(a + b * times) for a, b in zip(astuple(self), astuple(step), strict=True)))


def listed_nodes(ir: Json) -> int:
    """Return from how many nodes on a run's workflow is close to the size at which KFP's list of its tasks stops.

    Args:
        ir: The specification of the run's pipeline.
    """
    return (WORKFLOW_BYTES - _spec(Workflow.of([ir], {}))) // _NODE_BYTES


def estimate(workflow: Workflow) -> WorkflowSize:
    """Measure a run; for one of many clients, two smaller ones: what a further client takes is always the same."""
    clients = sum(workflow.loops.values())
    if clients <= _MEASURED:
        return measure(workflow)
    small, large = (_scaled(workflow, clients, part) for part in (_MEASURED // 3, _MEASURED))
    less, more = measure(small), measure(large)
    between = sum(large.loops.values()) - sum(small.loops.values())
    return more.plus(more.plus(less, -1), (clients - sum(large.loops.values())) / between)


def _scaled(workflow: Workflow, clients: int, target: int) -> Workflow:
    """The same workflow of fewer clients, in the same proportions."""
    loops = {tier: -(-count * target // clients) for tier, count in workflow.loops.items()}
    return replace(workflow, loops=loops)


def measure(workflow: Workflow) -> WorkflowSize:
    """Write a run's nodes, and take their length."""
    nodes = {node["id"]: node for node in workflow.nodes()}
    text = json.dumps(nodes, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return WorkflowSize(
        nodes=len(nodes),
        pods=sum(node["type"] == "Pod" for node in nodes.values()),
        sequence=1 + _sequence(workflow, workflow.ir["root"]),
        spec=_spec(workflow),
        status=len(text.encode()),
        compressed=int(_GZIP * 4 / 3 * len(zlib.compress(text.encode(), _LEVEL))),
        argument=_longest_argument(workflow),
    )


def _sequence(workflow: Workflow, group: Json) -> int:
    """Pods that run one after the other in a group: the longest way through its tasks."""
    tasks, ends = group["dag"]["tasks"], {}

    def end(key: str) -> int:
        if key not in ends:
            before = max(map(end, tasks[key].get("dependentTasks", [])), default=0)
            component = workflow.component(tasks[key])
            drivers = 2 if "parameterIterator" in tasks[key] or "dag" not in component else 1
            ends[key] = before + drivers + (_sequence(workflow, component) if "dag" in component else 0)
        return ends[key]

    return max(map(end, tasks))


def _spec(workflow: Workflow) -> int:
    """The workflow holds each component, container and settings once, and a template for each group."""
    components = [workflow.ir["root"], *workflow.ir["components"].values()]
    texts, tasks = set(), 0
    for component in components:
        texts.add(dump(component))
        if "dag" in component:
            tasks += sum(6 if "parameterIterator" in task else 2 for task in component["dag"]["tasks"].values())
        else:
            texts |= {dump(workflow.container(component)), dump(workflow.settings(component))}
    arguments = sum(len(dump(text).encode()) for text in texts)
    return arguments + len(dump(workflow.runtime_config).encode()) + _HEAD + _OWN_TEMPLATES + _TEMPLATE_TASK * tasks


def _longest_argument(workflow: Workflow) -> int:
    inputs = [dag_driver_inputs(workflow.ir["root"], {}, workflow.runtime_config)]
    for group in filter(lambda component: "dag" in component, workflow.ir["components"].values()):
        for task in group["dag"]["tasks"].values():
            component = workflow.component(task)
            if "dag" in component:
                inputs.append(dag_driver_inputs(component, task))
            else:
                container, settings = workflow.container(component), workflow.settings(component)
                inputs.append(container_driver_inputs(component, task, container, settings))
    return max(len(dump([value for _, value in given]).encode()) for given in inputs)
