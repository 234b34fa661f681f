"""The TrainJob of a client's part of a round: an object of Kubeflow Trainer's API, as of Trainer 2.2."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from perfit.cluster_spec import Cluster, Tier
from perfit_components.queue_limit import ROLE_LABEL, queue_labels

Object = dict[str, Any]
API = "trainer.kubeflow.org/v1alpha1"
_NODE = "node"
"""The job of a runtime that trains, and its container."""
_MANAGER = "perfit.dev/client"
NODES_LABEL = {"perfit/nodes": "several"}
"""Of pods whose processes meet others', by which a network policy lets them."""
_NO_SIDECAR = {"sidecar.istio.io/inject": "false"}
"""As KFP labels its own pods: a mesh would end the job never, and pass on HTTP alone."""
_USER = 10001
_PASSED_ON = ("resources", "env", "volumes", "volume_mounts", "node_selector", "tolerations")


@dataclass(frozen=True)
class ClientJob:
    """What the job of a client's part of a round depends on.

    Attributes:
        federation: Its URI.
        round: From 1.
        client: The client's id.
        name: Its name in the cluster.
        threads: CPU threads of the training.
        image: Where it runs.
        tier: Of the client.
        cluster: The federation's settings.
        config: What KFP passes on of the task's own pod: the fields of ``kfp.dsl.TaskConfig``.
        owner: Name and uid of the task's pod, with which the job ends; None if they are not known.
    """

    federation: str
    round: int
    client: str
    name: str
    threads: int
    image: str
    tier: Tier
    cluster: Cluster
    config: Mapping[str, Any]
    owner: tuple[str, str] | None

    @property
    def job_name(self) -> str:
        """The TrainJob's name: the same for each attempt of the same part, another for each other one."""
        what = "\n".join((self.federation, str(self.round), self.client))
        return f"perfit-{hashlib.sha256(what.encode()).hexdigest()[:16]}"

    def to_object(self) -> Object:
        """Return the TrainJob."""
        config = {key: self.config.get(key) for key in _PASSED_ON}
        trainer = {
            "image": self.image,
            "command": self._command(),
            "numNodes": self.tier.nodes,
            "numProcPerNode": self.tier.processes_per_node,
            "env": config["env"],
            "resourcesPerNode": config["resources"],
        }
        pod = {
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": _USER,
                "runAsGroup": _USER,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "nodeSelector": config["node_selector"],
            "tolerations": config["tolerations"],
            **self._volumes(config["volumes"] or [], config["volume_mounts"] or []),
        }
        labels = {ROLE_LABEL: "client", **_NO_SIDECAR, **(NODES_LABEL if self.tier.nodes > 1 else {})}
        template = {"metadata": {"labels": labels}, "spec": _given(pod)}
        return {
            "apiVersion": API,
            "kind": "TrainJob",
            "metadata": self._metadata(),
            "spec": {
                "runtimeRef": {"name": self.tier.runtime},
                "trainer": _given(trainer),
                "runtimePatches": [{"manager": _MANAGER, "trainingRuntimeSpec": _of_node(template)}],
            },
        }

    def _command(self) -> list[str]:
        """The client's process; where there are several, torchrun starts them, and Trainer tells it where they meet.

        How many there are it is told here: Trainer takes one a node where the resources have limits and no requests,
        as KFP's have.
        """
        threads = max(1, self.threads // self.tier.processes_per_node) if self.threads else 0
        options = {"federation": self.federation, "round": self.round, "name": self.name, "threads": threads}
        given = [text for key, value in options.items() for text in (f"--{key}", str(value))]
        python, process = ["python", "-m"], ["perfit_components.client_process", *given]
        if self.tier.processes == 1:
            return [*python, *process]
        shape = ["--nnodes", str(self.tier.nodes), "--nproc-per-node", str(self.tier.processes_per_node)]
        return [*python, "torch.distributed.run", *shape, "-m", *process]

    def _metadata(self) -> Object:
        labels = {"app.kubernetes.io/part-of": "perfit", "perfit/client": self.client, **queue_labels(self.tier)}
        metadata: Object = {"name": self.job_name, "labels": labels}
        if self.owner:
            name, uid = self.owner
            metadata["ownerReferences"] = [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}]
        return metadata

    def _volumes(self, volumes: Sequence[Object], mounts: Sequence[Object]) -> Object:
        """Those that KFP passes on, and the scratch volumes, which it does not."""
        memory = {"medium": "Memory", "sizeLimit": self.cluster.shared_memory}
        scratch: dict[str, tuple[str, Object]] = {"tmp": ("/tmp", {}), "dshm": ("/dev/shm", memory)}
        if not self.cluster.model_cache:
            scratch["cache"] = ("/cache", {})
        security = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
        own = [{"name": name, "mountPath": path} for name, (path, _) in scratch.items()]
        return {
            "volumes": [*volumes, *({"name": name, "emptyDir": how} for name, (_, how) in scratch.items())],
            "containers": [{"name": _NODE, "securityContext": security, "volumeMounts": [*mounts, *own]}],
        }


def _of_node(template: Object) -> Object:
    """A patch of a runtime that changes the pods of its job that trains."""
    job = {"name": _NODE, "template": {"spec": {"template": template}}}
    return {"template": {"spec": {"replicatedJobs": [job]}}}


def _given(fields: Mapping[str, Any]) -> Object:
    return {key: value for key, value in fields.items() if value}
