"""Pods of clients that wait too long for Kueue are ended, and no others."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from kubernetes import client

from perfit_components.cluster_api import ClusterApi
from perfit_components.queue_limit import end_waiting, main

from ..pod_api import NAMESPACE, pod_api

NOW = datetime(2026, 11, 29, 12, tzinfo=UTC)
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
GATE = {"name": "kueue.x-k8s.io/admission"}


def pod(name: str, waited: int = 0, **changes) -> dict:
    """A client's pod, as Kueue's webhook leaves it."""
    created = (NOW - timedelta(seconds=waited)).isoformat().replace("+00:00", "Z")
    metadata = {
        "name": name,
        "resourceVersion": "7",
        "creationTimestamp": created,
        "labels": {"perfit/role": "client", "kueue.x-k8s.io/queue-name": "gpus", "kueue.x-k8s.io/managed": "true"},
        "annotations": {"perfit/queue-seconds": "600"},
    }
    whole = {"metadata": metadata, "spec": {"schedulingGates": [GATE]}, "status": {"phase": "Pending"}}
    for path, value in changes.items():
        *parents, key = path.split("__")
        section = whole
        for parent in parents:
            section = section[parent]
        section[key] = value
    return whole


@pytest.fixture
def cluster(tmp_path):
    """A function that serves some pods, ends those that have waited, and returns their names and all pods then."""

    def end(*pods: dict, conflict: bool = False) -> tuple[list[str], dict[str, dict]]:
        held = {item["metadata"]["name"]: copy.deepcopy(item) for item in pods}

        def answer(method: str, target: str, body: dict | None) -> tuple[int, dict]:
            url = urlsplit(target)
            if method == "GET":
                assert url.path == PODS
                assert parse_qs(url.query) == {
                    "labelSelector": ["perfit/role=client,kueue.x-k8s.io/queue-name"],
                    "fieldSelector": ["status.phase=Pending"],
                }
                return 200, {"items": list(held.values())}
            name = url.path.removeprefix(f"{PODS}/").removesuffix("/status")
            assert (method, body["metadata"]) == ("PATCH", {"resourceVersion": "7"})
            if conflict:
                return 409, {"message": "the object has been modified"}
            # The fields are those of a pod's status.
            status = client.ApiClient()._ApiClient__deserialize(body["status"], "V1PodStatus")
            assert client.ApiClient().sanitize_for_serialization(status) == body["status"]
            held[name]["status"] = body["status"]
            return 200, held[name]

        with pod_api(tmp_path, answer) as (environment, mount):
            return list(end_waiting(ClusterApi(environment, mount), NOW)), held

    return end


def test_a_pod_that_waited_too_long_fails_with_the_reason(cluster):
    ended, held = cluster(pod("late", 601), pod("waits", 600))
    assert ended == ["late"]
    assert held["waits"]["status"] == {"phase": "Pending"}
    status = held["late"]["status"]
    assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")
    assert status["message"] == "Kueue's queue gpus has not admitted it in 601 s, and its tier's queue_seconds are 600"


def test_pods_that_wait_for_something_else_or_without_a_limit_are_left_alone(cluster):
    others = (
        pod("admitted", 9_999, spec__schedulingGates=[]),
        pod("another-gate", 9_999, spec__schedulingGates=[{"name": "example.com/gate"}]),
        pod("no-limit", 9_999, metadata__annotations={}),
        pod("no-number", 9_999, metadata__annotations={"perfit/queue-seconds": "soon"}),
    )
    assert cluster(*others)[0] == []


def test_a_pod_that_was_admitted_meanwhile_is_left_alone(cluster):
    assert cluster(pod("late", 601), conflict=True)[0] == []


def test_the_command_says_why_it_cannot(tmp_path):
    with pytest.raises(SystemExit, match="no pod with a service account"):
        main({}, tmp_path)
    refusal = {"message": "pods is forbidden"}
    with (
        pod_api(tmp_path, lambda *_: (403, refusal)) as (environment, mount),
        pytest.raises(SystemExit, match="403: pods is forbidden"),
    ):
        main(environment, mount)
