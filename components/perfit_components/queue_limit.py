"""How long clients' pods wait for Kueue: ``python -m perfit_components.queue_limit`` ends those that waited too long.

A pod that Kueue has not admitted has not started, so that no deadline of Kubernetes, Argo or Kueue counts yet, and
KFP would wait for as long as the run may last. A CronJob with an account of its own (manifests/components/kueue) does
what the kubelet does at a pod's deadline: the pod is Failed, with a reason. Argo then shows the reason and does not
try again, as it would after the pod was deleted, and the round goes on without that client.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from urllib3.exceptions import HTTPError

from perfit.cluster_spec import Tier
from perfit_components.cluster_api import MOUNT, ClusterApi

ROLE_LABEL = "perfit/role"
QUEUE_SECONDS = "perfit/queue-seconds"
"""The annotation of a client's pod with the time that it may wait."""
QUEUE_LABEL, _PRIORITY_LABEL = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"
_GATE = "kueue.x-k8s.io/admission"
_MERGE = "application/merge-patch+json"
_CONFLICT, _GONE = 409, 404


def queue_labels(tier: Tier) -> dict[str, str]:
    """Return the labels by which Kueue queues what a tier's client runs as."""
    labels = {QUEUE_LABEL: tier.queue, _PRIORITY_LABEL: tier.queue_priority}
    return {label: value for label, value in labels.items() if value}


def end_waiting(api: ClusterApi, now: datetime) -> Iterator[str]:
    """End the pods of clients in this namespace that have waited for longer than they may.

    Args:
        api: Of the cluster.
        now: The time.

    Yields:
        The name of each pod that was ended.

    Raises:
        HTTPError: The API server cannot be reached.
        ValueError: It refuses.
    """
    pods = f"/api/v1/namespaces/{api.namespace}/pods"
    # A pod without the queue's label, or that runs, is not asked for.
    selected = f"labelSelector={ROLE_LABEL}%3Dclient%2C{QUEUE_LABEL}&fieldSelector=status.phase%3DPending"
    for pod in _asked(api, "GET", f"{pods}?{selected}")["items"]:
        waited = _waited_too_long(pod, now)
        if waited is None:
            continue
        name, version = pod["metadata"]["name"], pod["metadata"]["resourceVersion"]
        status = {"phase": "Failed", "reason": "DeadlineExceeded", "message": _message(pod, waited)}
        # With the version that was read: a pod that was admitted meanwhile is left alone.
        patch = {"metadata": {"resourceVersion": version}, "status": status}
        if _asked(api, "PATCH", f"{pods}/{name}/status", patch, _MERGE):
            yield name


def main(environment: Mapping[str, str] = os.environ, mount: Path = MOUNT) -> None:
    """End what waits too long, and print it."""
    api = ClusterApi.of_pod(environment, mount)
    if api is None:
        sys.exit("error: this is no pod with a service account's token")
    try:
        for name in end_waiting(api, datetime.now(UTC)):
            print(f"ended {name}: Kueue has not admitted it in time", flush=True)
    except (HTTPError, OSError, ValueError) as error:
        sys.exit(f"error: Kubernetes: {error}")


def _asked(
    api: ClusterApi, method: str, path: str, body: Any = None, content: str = "application/json"
) -> dict[str, Any]:
    """What was answered; nothing where the object has changed or is gone."""
    status, answer = api.ask(method, path, body, content)
    if status in (_CONFLICT, _GONE):
        return {}
    if status != 200:
        raise ValueError(f"{method} {path} was answered {status}: {answer.get('message', '')}")
    return answer


def _waited_too_long(pod: Mapping[str, Any], now: datetime) -> int | None:
    """The seconds that a pod has waited for Kueue, if it may not wait any longer."""
    allowed = pod["metadata"].get("annotations", {}).get(QUEUE_SECONDS, "")
    gates = [gate["name"] for gate in pod["spec"].get("schedulingGates", [])]
    if not allowed.isdecimal() or _GATE not in gates:
        return None
    waited = int((now - datetime.fromisoformat(pod["metadata"]["creationTimestamp"])).total_seconds())
    return waited if waited > int(allowed) else None


def _message(pod: Mapping[str, Any], waited: int) -> str:
    metadata = pod["metadata"]
    queue, allowed = metadata["labels"][QUEUE_LABEL], metadata["annotations"][QUEUE_SECONDS]
    return f"Kueue's queue {queue} has not admitted it in {waited} s, and its tier's queue_seconds are {allowed}"


if __name__ == "__main__":
    main()
