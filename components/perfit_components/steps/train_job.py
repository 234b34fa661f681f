"""A client's part of a round in a TrainJob: create it, follow it until it has ended, record how, delete it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from urllib3.exceptions import HTTPError

from perfit.errors import PerfitError
from perfit.protocol import parse_outcome
from perfit_components.cluster_api import ClusterApi
from perfit_components.log_lines import format_phase
from perfit_components.steps.client import TaskResult, is_final, record_failure, shown
from perfit_components.steps.client_context import ClientContext
from perfit_components.steps.failure import Failure, failure_as_record, stoppable
from perfit_components.train_job_object import API, ClientJob

Object = dict[str, Any]
POLL_S = 10.0
_PATIENCE_S = 600.0
"""How long the API server may give no answer, while it is upgraded, say."""
_CREATED, _OK, _REFUSED, _UNKNOWN, _EXISTS = 201, 200, 403, 404, 409
_INSTALL = "install Kubeflow Trainer 2.2 or later, or set the tier's runner to pod"


def train_in_job(
    uri: str,
    round: int,
    name: str,
    threads: int,
    image: str,
    config: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
) -> TaskResult:
    """Do a client's part of a round in a TrainJob, unless it is done. The outcome is a record, never an exception.

    The job's process writes the record. If it did not, or if the job could not be run, it is written here.

    Args:
        uri: URI of the federation.
        round: From 1.
        name: The client's name in the cluster, that of its Secret.
        threads: CPU threads of the training.
        image: Where the job runs.
        config: The fields of ``kfp.dsl.TaskConfig``.
        environment: Of this process: names this pod, as KFP sets it.
    """
    with stoppable():
        result = failure_as_record(
            lambda: _train(ClientContext.open(uri, round, name), name, threads, image, config, environment)
        )
    return record_failure(uri, round, name, result) if isinstance(result, Failure) else result


def _train(
    context: ClientContext,
    name: str,
    threads: int,
    image: str,
    config: Mapping[str, Any],
    environment: Mapping[str, str],
) -> TaskResult:
    before = context.store.read_record(context.place, context.client.id)
    if before is not None and is_final(before):
        return shown(parse_outcome(before))
    api = ClusterApi.of_pod(environment)
    if api is None:
        raise PerfitError("a TrainJob can only be created from a pod", "set the tier's runner to pod")
    pod = (environment.get("KFP_POD_NAME", ""), environment.get("KFP_POD_UID", ""))
    job = ClientJob(
        federation=context.federation.store.uri,
        round=context.round,
        client=context.client.id,
        name=name,
        threads=threads,
        image=image,
        tier=context.spec.tiers[context.client.tier],
        cluster=context.spec.cluster,
        config=config,
        owner=pod if all(pod) else None,
    )
    running = RunningJob(api, job)
    try:
        running.start()
        print(format_phase(context.round, context.client.id, "loading"), flush=True)
        running.follow()
    finally:
        running.delete()
    after = context.store.read_record(context.place, context.client.id)
    if after is None or after == before:
        raise PerfitError(
            f"TrainJob {job.job_name} left no record: {running.ended}",
            "see the log of its pods, and whether its runtime takes another image and command",
        )
    return shown(parse_outcome(after))


class RunningJob:
    """A client's TrainJob in the cluster.

    Attributes:
        ended: How it ended, in the words of its condition.
    """

    def __init__(self, api: ClusterApi, job: ClientJob):
        self._api, self._job = api, job
        self._jobs = f"/apis/{API}/namespaces/{api.namespace}/trainjobs"
        self._path = f"{self._jobs}/{job.job_name}"
        self.ended = ""

    def start(self) -> None:
        """Create the job; one that another attempt left is followed if it runs, and replaced if it has ended.

        Raises:
            PerfitError: The cluster does not take it.
        """
        while True:
            status, answer = self._ask("POST", self._jobs, self._job.to_object())
            if status == _CREATED:
                return
            if status != _EXISTS:
                raise _refusal(status, answer)
            found = self._read()
            if found is not None and not _condition(found) and "deletionTimestamp" not in found["metadata"]:
                return
            self.delete()
            time.sleep(POLL_S)

    def follow(self) -> None:
        """Wait until the job has ended, one way or the other.

        Raises:
            PerfitError: It waits for longer than its tier allows, it is gone, or the cluster does not answer.
        """
        limit, waiting_since = self._job.tier.queue_seconds, time.monotonic()
        while True:
            found = self._read()
            if found is None:
                raise PerfitError(f"TrainJob {self._job.job_name} is gone", "run the round again")
            if ended := _condition(found):
                self.ended = ended
                return
            if not found["spec"].get("suspend"):
                waiting_since = time.monotonic()
            elif limit and time.monotonic() - waiting_since > limit:
                raise PerfitError(
                    f"Kueue's queue {self._job.tier.queue} has not admitted the client in {limit} s",
                    "raise its tier's queue_seconds, or the queue's quota",
                )
            time.sleep(POLL_S)

    def delete(self) -> None:
        """Delete the job and its pods. What cannot be deleted goes with this task's pod."""
        with suppress(PerfitError):
            self._ask("DELETE", f"{self._path}?propagationPolicy=Foreground")

    def _read(self) -> Object | None:
        status, answer = self._ask("GET", self._path)
        if status == _OK:
            return answer
        if status == _UNKNOWN:
            return None
        raise _refusal(status, answer)

    def _ask(self, method: str, path: str, body: Object | None = None) -> tuple[int, Object]:
        """Ask until there is an answer, for as long as an API server may be away."""
        until = time.monotonic() + _PATIENCE_S
        while True:
            try:
                status, answer = self._api.ask(method, path, body)
                problem = f"{status} {answer.get('message', '')}"
                if status < 500:
                    return status, answer
            except (HTTPError, OSError, ValueError) as error:
                problem = str(error)
            if time.monotonic() > until:
                raise PerfitError(f"Kubernetes does not answer: {problem}", "look at the cluster, and run again")
            time.sleep(POLL_S)


def _condition(job: Object) -> str:
    """How a job has ended; empty if it has not."""
    for condition in job.get("status", {}).get("conditions", []):
        if condition["type"] in ("Complete", "Failed") and condition["status"] == "True":
            return ": ".join(filter(None, (condition["type"], condition.get("reason"), condition.get("message"))))
    return ""


def _refusal(status: int, answer: Object) -> PerfitError:
    said = answer.get("message", f"status {status}")
    if status == _REFUSED:
        return PerfitError(
            f"the run's service account may not create TrainJobs: {said}", "apply manifests/components/trainjob"
        )
    if status == _UNKNOWN:
        return PerfitError(f"the cluster knows no TrainJobs: {said}", _INSTALL)
    return PerfitError(f"the cluster does not take the TrainJob: {said}", _INSTALL)
