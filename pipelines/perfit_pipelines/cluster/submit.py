"""Running a federation on the cluster."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

from kfp_server_api import V2beta1RecurringRun, V2beta1Run

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.protocol import Plan
from perfit_components.steps.context import FederationContext
from perfit_components.steps.file_by_uri import read_federation_file
from perfit_components.steps.prepare import directory_of
from perfit_pipelines.cluster.connection import Kubeflow
from perfit_pipelines.cluster.tasks import Task, list_tasks, served_at_most
from perfit_pipelines.cluster.upload import Version
from perfit_pipelines.workflow_size import listed_nodes
from perfit_storage import FederationStore, ObjectNotFound


@dataclass(frozen=True)
class Submitted:
    """What a run was started with.

    Args:
        spec: The federation file.
        tasks: Of the pipeline.
        store: URI of the store.
        name: Name of the federation's directory there.
        at_most: How many participants it serves of a round that takes several runs; 0 for all.
        listed: How many nodes KFP lists before its list may stop.
    """

    spec: ClusterSpec
    tasks: list[Task]
    store: str
    name: str
    at_most: int
    listed: int

    @property
    def success(self) -> str:
        """What to say of a run that succeeded."""
        if self.at_most:
            return "the last of a round's runs commits the round and has its report"
        return "the report is on the task Aggregate of its last round"

    def again(self, run_id: str) -> str:
        """How to follow the run again."""
        return f"perfit follow {run_id}"


def first_round(spec: ClusterSpec, store: str) -> int | None:
    """Return the first round that a run has to do; None if all are committed, by the same file.

    Raises:
        PerfitError: The store cannot be read from here.
    """
    try:
        context = FederationContext.of(FederationStore.open(store, spec.name))
    except ObjectNotFound:
        return 1
    committed = context.store.read_head().round
    done = committed >= spec.rounds and context.spec == spec
    return None if done else min(committed + 1, spec.rounds)


def start_run(
    kubeflow: Kubeflow, version: Version, name: str, experiment: str, service_account: str | None = None
) -> V2beta1Run:
    """Create a run of a pipeline's version, and its experiment if need be.

    Raises:
        PerfitError: Kubeflow refuses.
    """
    experiment_id = get_experiment(kubeflow, experiment)
    with kubeflow.calling("create the run"):
        run = kubeflow.client.run_pipeline(
            experiment_id,
            name,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            params=version.parameters,
            service_account=service_account,
        )
    if mismatch := other_account(run, service_account):
        with kubeflow.calling("end the run"):
            kubeflow.client.terminate_run(run.run_id)
        raise mismatch
    return run


def other_account(created: V2beta1Run | V2beta1RecurringRun, requested: str | None) -> PerfitError | None:
    """Return an error if Kubeflow gave a run another service account than was requested."""
    actual = created.service_account
    if not requested or not actual or actual == requested:
        return None
    return PerfitError(
        f"Kubeflow gave it the service account {actual!r}, which may read every client's key, instead of {requested!r}",
        "upgrade Kubeflow Pipelines to 2.17 (kubeflow/pipelines#13311); nothing was left running",
    )


def get_experiment(kubeflow: Kubeflow, name: str) -> str:
    """Return the id of an experiment, which is created if need be.

    Raises:
        PerfitError: Kubeflow refuses.
    """
    with kubeflow.calling(f"create the experiment {name}"):
        try:
            return kubeflow.client.create_experiment(name, namespace=kubeflow.namespace).experiment_id
        except ValueError as error:
            raise PerfitError(str(error), "remove one of them in the UI, or give another --experiment") from error


def find_run(kubeflow: Kubeflow, run_id: str) -> tuple[V2beta1Run, Submitted]:
    """Read a run that someone started, and what it was started with.

    Raises:
        PerfitError: There is no such run, or it is not of a federation.
    """
    with kubeflow.calling(f"show the run {run_id}"):
        run = kubeflow.read_run(run_id)
        ir, version = run.pipeline_spec, run.pipeline_version_reference
        if version:
            ir = kubeflow.client.get_pipeline_version(version.pipeline_id, version.pipeline_version_id).pipeline_spec
    given = (run.runtime_config and run.runtime_config.parameters) or {}
    return run, submitted((ir or {}).get("pipeline_spec", ir or {}), given)


def submitted(ir: dict[str, Any], given: dict[str, Any] | None = None) -> Submitted:
    """Return what a run of a federation's compiled pipeline is started with.

    Args:
        ir: The pipeline's specification.
        given: Parameters of the run.

    Raises:
        PerfitError: It is not a federation's.
    """
    try:
        parameters = ir["root"]["inputDefinitions"]["parameters"]
        values = {name: parameters[name].get("defaultValue", "") for name in ("federation_file", "store", "method")}
    except KeyError as error:
        raise PerfitError("the run is not of a federation", "give the id of a run that perfit started") from error
    values |= {name: value for name, value in (given or {}).items() if name in values and value}
    spec = read_federation_file(values["federation_file"], values["store"])
    name = directory_of(spec, values["method"])
    tasks = list_tasks(ir, spec, _plans(values["store"], name))
    return Submitted(spec, tasks, values["store"], name, served_at_most(ir), listed_nodes(ir))


def _plans(store: str, name: str) -> Callable[[int], Plan | None]:
    """Return what reads the plan of a round, if it has one, and this machine may read it."""
    try:
        context = FederationContext.of(FederationStore.open(store, name))
        head = context.store.read_head()
    except PerfitError:
        return lambda round: None

    @cache
    def plan_of(round: int) -> Plan | None:
        with suppress(PerfitError):
            return context.find_plan(head.place(round))

    return plan_of
