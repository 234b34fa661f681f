"""Running a federation on the cluster."""

from __future__ import annotations

from typing import Any

from kfp_server_api import V2beta1RecurringRun, V2beta1Run

from perfit.errors import PerfitError
from perfit.federation_file import parse_federation
from perfit_pipelines.cluster.connection import Kubeflow
from perfit_pipelines.cluster.follow import Outcome
from perfit_pipelines.cluster.tasks import DRIVER, Task, list_tasks
from perfit_pipelines.cluster.upload import Version

_POD_DIED = (
    "a client's pod died, which its program cannot report: for instance too little memory (OOMKilled), or a lost node"
)
_HINTS = {
    "prepare": "the store cannot be written, the model cannot be loaded, or another file has this name",
    "client": _POD_DIED,
    "aggregate": "too few clients delivered; the log of that task names them and why. The head has not moved",
}
"""The usual cause of a task's failure, by the step; a client's task is named after its tier too."""


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


def find_run(kubeflow: Kubeflow, run_id: str) -> tuple[V2beta1Run, list[Task]]:
    """Read a run that someone started, and the tasks of its pipeline.

    Raises:
        PerfitError: There is no such run, or it is not of a federation.
    """
    with kubeflow.calling(f"show the run {run_id}"):
        run = kubeflow.read_run(run_id)
        ir, version = run.pipeline_spec, run.pipeline_version_reference
        if version:
            ir = kubeflow.client.get_pipeline_version(version.pipeline_id, version.pipeline_version_id).pipeline_spec
    given = (run.runtime_config and run.runtime_config.parameters) or {}
    return run, pipeline_tasks((ir or {}).get("pipeline_spec", ir or {}), given)


def pipeline_tasks(ir: dict[str, Any], given: dict[str, Any] | None = None) -> list[Task]:
    """Return the tasks of a federation's compiled pipeline.

    Args:
        ir: The pipeline's specification.
        given: Parameters of the run.

    Raises:
        PerfitError: It is not a federation's.
    """
    try:
        defaults = ir["root"]["inputDefinitions"]["parameters"]["federation_file"]
    except KeyError as error:
        raise PerfitError("the run is not of a federation", "give the id of a run that perfit started") from error
    text = (given or {}).get("federation_file") or defaults.get("defaultValue", "")
    return list_tasks(ir, parse_federation(text, "the run's federation file"))


def advice(kubeflow: Kubeflow, run_id: str, outcome: Outcome) -> list[str]:
    """Return what to look at after a failed run: the tasks first, then where their logs are."""
    lines = [f"failed: {task.name}" for task in outcome.failed]
    if not lines:
        lines.append("no task is listed as failed: the deadline (cluster.deadline_seconds) may have passed")
    keys = {task.key for task in outcome.failed}
    steps = {key.partition("-")[0] for key in keys if not key.endswith(DRIVER)}
    hints = [hint for step, hint in _HINTS.items() if step in steps]
    if any(key.endswith(DRIVER) for key in keys):
        hints.append(
            "Kubeflow could not prepare a task: a Secret or volume claim may be missing; run perfit doctor FILE"
        )
    if outcome.message:
        lines.append(f"Kubeflow says: {outcome.message}")
    lines += dict.fromkeys(hints)
    namespace = kubeflow.namespace or "kubeflow"
    lines.append(f"logs: kubectl -n {namespace} logs -l pipeline/runid={run_id} -c main --tail=40 --prefix")
    return lines
