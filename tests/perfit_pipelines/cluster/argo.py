"""What KFP's server tells of the Argo workflow of a run: written from Argo's and KFP's own naming, apart from perfit's.

A container task ``t`` in the DAG ``d`` has the nodes ``d.t-driver``, ``d.t`` and ``d.t.executor``; a loop ``l`` has
``l.iteration-iterations(0:0).iteration-item`` and so on, which hold the tasks of one iteration. A task that also runs
after the failure of another, ``b``, is a hook of that one: ``d.b.onExit.t``.
"""

from __future__ import annotations

import uuid

from kfp_server_api import PipelineTaskDetailChildTask, V2beta1PipelineTaskDetail

WORKFLOW = "federated-tuning-x7k2p"


def node_id(name: str, workflow: str = WORKFLOW) -> str:
    """Return the id of the node ``<workflow>.<name>``: FNV-1a of its whole name, after the workflow's name."""
    state = 2166136261
    for byte in f"{workflow}.{name}".encode():
        state = (state ^ byte) * 16777619 % 2**32
    return f"{workflow}-{state}"


def details(states: dict[str, str], *, linked: bool = True, pending: int = 0) -> list[V2beta1PipelineTaskDetail]:
    """Return the task details of a run.

    Args:
        states: State by node, for container tasks and for drivers (``...-driver``).
        linked: Whether nodes name their children.
        pending: How many of the pods wait for a node.
    """
    nodes = [_detail(WORKFLOW, "RUNNING", ["root-driver"], linked), _detail("root", "RUNNING", [], linked)]
    for node, state in states.items():
        name = node.rpartition(".")[2]
        if name.endswith("-driver"):
            nodes.append(_detail(name, state, [], linked))
            continue
        nodes.append(_detail(f"{name}-driver", "SUCCEEDED", [node], linked))
        nodes.append(_detail(name, state, [f"{node}.executor"], linked))
        nodes.append(_detail("executor", "PENDING" if pending > 0 else state, ["next"], linked))
        pending -= 1
    return nodes


def _detail(name: str, state: str, children: list[str], linked: bool) -> V2beta1PipelineTaskDetail:
    return V2beta1PipelineTaskDetail(
        task_id=str(uuid.uuid4()),
        display_name=name,
        state=state,
        child_tasks=[PipelineTaskDetailChildTask(pod_name=node_id(child)) for child in children] if linked else None,
    )
