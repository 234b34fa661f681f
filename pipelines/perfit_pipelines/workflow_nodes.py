"""The nodes that the Argo workflow of a compiled pipeline has when it has run, written as Argo writes them.

Kubeflow Pipelines makes two tasks of each task of a pipeline, a driver and what it prepares, and four more templates of
a loop. Its stock controller retries every template, so each node is two: ``name``, of type Retry, and ``name(0)``.
What a node holds is mostly text of the compiled pipeline, several times over: the driver's inputs are a component, its
container and its settings; the driver's output, a patch of the pod, is also the input of the executor's four nodes.
As recorded with Kubeflow Pipelines 2.17.0 and Argo 4.0.5; tests compare with the recordings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]
Pairs = Sequence[tuple[str, str]]
"""Names and values of parameters."""

WORKFLOW = "federated-tuning-x7k2p"
"""A workflow's name: the pipeline's, and five letters."""
_LOGS = {"artifactType": {"schemaTitle": "system.Artifact"}}
_VALUE = "perfit-federation-client-000"
"""Stands for a value that only a run knows: a URI, a name."""


@dataclass(frozen=True)
class Workflow:
    """A compiled pipeline, and how many clients each of its loops has.

    Args:
        ir: The pipeline's specification.
        platform: Its settings for Kubernetes, by executor.
        loops: Iterations of each loop, by its display name, that of a tier.
    """

    ir: Json
    platform: Json
    loops: Mapping[str, int]

    @classmethod
    def of(cls, documents: list[Json], loops: Mapping[str, int]) -> Workflow:
        """Of the documents of a compiled file: the specification and, where there is one, the platform's."""
        settings: Json = {}
        if len(documents) > 1:
            settings = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        return cls(documents[0], settings, loops)

    def component(self, task: Json) -> Json:
        """Return the component of a task."""
        return self.ir["components"][task["componentRef"]["name"]]

    def container(self, component: Json) -> Json:
        """Return what a component runs."""
        return self.ir["deploymentSpec"]["executors"][component["executorLabel"]]["container"]

    def settings(self, component: Json) -> Json:
        """Return a component's settings for Kubernetes."""
        return self.platform.get(component["executorLabel"], {})

    @property
    def _parameters(self) -> Json:
        """The parameters of a run that is given none."""
        defined = self.ir["root"].get("inputDefinitions", {}).get("parameters", {})
        return {name: parameter.get("defaultValue", _VALUE) for name, parameter in defined.items()}

    @property
    def runtime_config(self) -> str:
        """What the first driver is given of them."""
        return dump({"parameters": {name: {"stringValue": value} for name, value in self._parameters.items()}})

    def nodes(self) -> Iterator[Json]:
        """Yield the nodes of a run in which every task succeeded."""
        yield from _pair(WORKFLOW, "DAG", "entrypoint")
        yield from self._group(f"{WORKFLOW}(0)", "root", self.ir["root"], {}, self._parameters, self.runtime_config)

    def _group(
        self, above: str, key: str, component: Json, task: Json, values: Json, runtime: str = ""
    ) -> Iterator[Json]:
        """A group of tasks, its driver before it."""
        yield from self._dag_driver(f"{above}.{key}-driver", component, task, runtime)
        yield from _pair(f"{above}.{key}", "DAG", f"comp-{key}", [("parent-dag-id", "315")])
        yield from self._tasks(f"{above}.{key}(0)", component, values)

    def _tasks(self, above: str, group: Json, values: Json) -> Iterator[Json]:
        for key, task in group["dag"]["tasks"].items():
            component = self.component(task)
            given = _inputs(task, values)
            if "dag" not in component:
                yield from self._container(above, key, component, task, given)
            elif "parameterIterator" in task:
                yield from self._loop(above, key, component, task, given)
            else:
                yield from self._group(above, key, component, task, given)

    def _loop(self, above: str, key: str, component: Json, task: Json, values: Json) -> Iterator[Json]:
        name = f"{above}.{key}"
        yield from _pair(name, "DAG", f"comp-{key}-{key}-iterator", [("parent-dag-id", "315")])
        yield from self._dag_driver(f"{name}(0).iteration-driver", component, task)
        loop, count = f"{name}(0).iteration-iterations", self.loops[task["taskInfo"]["name"]]
        children = [_id(f"{loop}({number}:{number})") for number in range(count)]
        yield _node(loop, "TaskGroup", f"comp-{key}-iteration", children=children)
        for number in range(count):
            one = f"{loop}({number}:{number})"
            inputs = [("parent-dag-id", "315"), ("iteration-index", str(number))]
            yield from _pair(one, "DAG", f"comp-{key}-iteration", inputs)
            yield from self._group(f"{one}(0)", "iteration-item", component, task, values)

    def _dag_driver(self, name: str, component: Json, task: Json, runtime: str = "") -> Iterator[Json]:
        inputs = dag_driver_inputs(component, task, runtime)
        outputs = [("execution-id", _number(name)), ("iteration-count", "0"), ("condition", "nil")]
        yield from _pair(name, "Pod", "system-dag-driver", inputs, outputs)

    def _container(self, above: str, key: str, component: Json, task: Json, values: Json) -> Iterator[Json]:
        hook, _, key = place_in_group(key, task).rpartition(".")
        if hook:
            yield from _pair(f"{above}.{hook}", "DAG", f"exit-hook-comp-{key}", [("parent-dag-id", "315")])
            above = f"{above}.{hook}(0)"
        name, container, settings = f"{above}.{key}", self.container(component), self.settings(component)
        patch = [("pod-spec-patch", _pod_spec_patch(name, component, container, settings, values))]
        labels = settings.get("podMetadata", {}).get("labels", {})
        label = [pair for item in labels.items() for pair in zip(("pod-metadata-label-key", "-val"), item, strict=True)]
        inputs = container_driver_inputs(component, task, container, settings)
        decided = [("cached-decision", "false")]
        yield from _pair(
            f"{name}-driver", "Pod", "system-container-driver", inputs, [*patch, *decided, ("condition", "nil")]
        )
        yield from _pair(name, "DAG", "metadata-0-1-system-container-executor", [*patch, *decided, *label])
        yield from _pair(f"{name}(0).executor", "Pod", "metadata-0-1-system-container-impl", [*patch, *label], [])


def place_in_group(key: str, task: Json) -> str:
    """Return where a task is in its group: one that also runs after failures is an exit hook of the task before it.

    Args:
        key: The task's name in the IR.
        task: The task in the IR.
    """
    if task.get("triggerPolicy", {}).get("strategy") == "ALL_UPSTREAM_TASKS_COMPLETED":
        return f"{task['dependentTasks'][0]}.onExit.{key}"
    return key


def dump(value: Any) -> str:
    """Return JSON as Go writes it: without spaces, HTML's characters escaped."""
    text = json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def dag_driver_inputs(component: Json, task: Json, runtime: str = "") -> list[tuple[str, str]]:
    """Return what the driver of a group or a loop is given."""
    return [
        ("component", dump(component)),
        ("runtime-config", runtime),
        ("task", dump(task) if task else ""),
        ("task-name", ""),
        ("parent-dag-id", "315"),
        ("iteration-index", "-1"),
        ("driver-type", "DAG"),
    ]


def container_driver_inputs(component: Json, task: Json, container: Json, settings: Json) -> list[tuple[str, str]]:
    """Return what the driver of a container's task is given."""
    return [
        ("component", dump(component)),
        ("task", dump(task)),
        ("container", dump(container)),
        ("task-name", ""),
        ("parent-dag-id", "320"),
        ("iteration-index", "-1"),
        ("kubernetes-config", dump(settings)),
    ]


def _inputs(task: Json, values: Json) -> Json:
    """The values of a task's inputs, as far as the compiled pipeline tells."""
    given = {}
    for name, source in task.get("inputs", {}).get("parameters", {}).items():
        if "runtimeValue" in source:
            given[name] = source["runtimeValue"].get("constant", "")
        else:
            given[name] = values.get(source.get("componentInputParameter", ""), _VALUE)
    return given


def _pod_spec_patch(name: str, component: Json, container: Json, settings: Json, values: Json) -> str:
    """What KFP's driver makes of a container: its command within KFP's launcher, its environment and its volumes."""
    folder = f"v2/artifacts/federated-tuning/545fb0a8-a8b2-48e4-ae3e-d0d24ae8cb63/{name[-12:]}/{_uuid(name)}"
    outputs = component.get("outputDefinitions", {})
    files = {key: {"outputFile": f"/tmp/kfp/outputs/{key}"} for key in outputs.get("parameters", {})}
    artifacts = {
        key: {"artifacts": [{"name": key, "type": kind["artifactType"], "uri": f"minio://mlpipeline/{folder}/{key}"}]}
        for key, kind in {**outputs.get("artifacts", {}), "executor-logs": _LOGS}.items()
    }
    made = {
        "parameters": files,
        "artifacts": artifacts,
        "outputFile": f"/minio/mlpipeline/{folder}/output_metadata.json",
    }
    launch = ["/kfp-launcher/launch", "--pipeline_name", "federated-tuning", "--run_id", _uuid("run")]
    launch += [
        "--execution_id",
        _number(name),
        "--executor_input",
        dump({"inputs": {"parameterValues": values}, "outputs": made}),
    ]
    launch += ["--component_spec", dump(component), "--pod_name", "$(KFP_POD_NAME)", "--pod_uid", "$(KFP_POD_UID)"]
    launch += ["--ml_pipeline_server_address", "ml-pipeline.kubeflow.svc.cluster.local", "--ml_pipeline_server_port"]
    launch += ["8887", "--mlmd_server_address", "metadata-grpc-service.kubeflow.svc.cluster.local"]
    launch += ["--mlmd_server_port", "8080", "--publish_logs", "true", "--publish_logs", "true", "--"]
    volumes, mounts = _volumes(settings)
    main = {
        "name": "main",
        "image": container["image"],
        "command": launch,
        "args": [*container.get("command", []), *container.get("args", [])],
        "env": _environment(settings),
        "resources": {"limits": container.get("resources", {})},
        "volumeMounts": mounts,
        "securityContext": {"capabilities": {"drop": ["ALL"]}, **settings.get("securityContext", {})},
    }
    return dump({"volumes": volumes, "containers": [main]})


def _environment(settings: Json) -> list[Json]:
    environment = []
    for secret in settings.get("secretAsEnv", []):
        name = secret.get("secretName") or _VALUE
        for key in secret["keyToEnv"]:
            source = {"name": name, "key": key["secretKey"], "optional": secret.get("optional", False)}
            environment.append({"name": key["envVar"], "valueFrom": {"secretKeyRef": source}})
    return environment


def _volumes(settings: Json) -> tuple[list[Json], list[Json]]:
    volumes, mounts = [], []
    for claim in settings.get("pvcMount", []):
        name = claim.get("constant", _VALUE)
        volumes.append({"name": name, "persistentVolumeClaim": {"claimName": name}})
        mounts.append({"name": name, "mountPath": claim["mountPath"]})
    for scratch in settings.get("emptyDirMounts", []):
        volumes.append({"name": scratch["volumeName"], "emptyDir": {"medium": scratch.get("medium", "")}})
        mounts.append({"name": scratch["volumeName"], "mountPath": scratch["mountPath"]})
    return volumes, mounts


def _pair(name: str, kind: str, template: str, inputs: Pairs = (), outputs: Pairs | None = None) -> Iterator[Json]:
    """The Retry node of a template, and its first attempt; ``outputs`` are those of a pod."""
    attempt, produced = f"{name}(0)", {}
    if outputs is not None:
        log = f"private-artifacts/kubeflow/{WORKFLOW}/2026/11/24/{WORKFLOW}-{template}-{_hash(attempt)}/main.log"
        produced = {"artifacts": [{"name": "main-logs", "s3": {"key": log}}], "exitCode": "0"}
        produced |= {"parameters": [_output(*output) for output in outputs]} if outputs else {}
    yield _node(name, "Retry", template, inputs, produced, [_id(attempt)])
    node = _node(attempt, kind, template, inputs, produced, [_id(f"{name}.next")])
    node["nodeFlag"] = {"retried": True}
    last = (
        {"hostNodeName": "node1", "taskResultSynced": True} if kind == "Pod" else {"outboundNodes": [_id(name + "x")]}
    )
    yield {**node, **last}


def _output(name: str, value: str) -> Json:
    return {"name": name, "value": value, "valueFrom": {"path": f"/tmp/outputs/{name}", "default": "true"}}


def _node(
    name: str, kind: str, template: str, inputs: Pairs = (), outputs: Json | None = None, children: Sequence[str] = ()
) -> Json:
    node = {
        "id": _id(name),
        "name": name,
        "displayName": name.rpartition(").")[2],
        "type": kind,
        "templateName": template,
        "templateScope": f"local/{WORKFLOW}",
        "phase": "Succeeded",
        "boundaryID": _id(name.rpartition(".")[0]),
        "startedAt": _time(name),
        "finishedAt": _time(f"{name} ends"),
        "progress": "1/1",
        "resourcesDuration": {"cpu": _hash(name) % 30, "memory": _hash(f"{name} memory") % 1500},
    }
    if inputs:
        node["inputs"] = {"parameters": [{"name": key, "value": value} for key, value in inputs]}
    if outputs:
        node["outputs"] = outputs
    return {**node, "children": list(children)}


def _id(name: str) -> str:
    return f"{WORKFLOW}-{_hash(name)}"


def _hash(name: str) -> int:
    """Ten digits that look random, as those of Argo's hash of a node's name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


def _time(name: str) -> str:
    seconds = _hash(name) % 3600
    return f"2026-11-24T09:{seconds // 60:02}:{seconds % 60:02}Z"


def _number(name: str) -> str:
    """Three digits, as those of an execution in the metadata store."""
    return str(100 + _hash(name) % 900)


def _uuid(name: str) -> str:
    digits = hashlib.sha256(name.encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:32]}"
