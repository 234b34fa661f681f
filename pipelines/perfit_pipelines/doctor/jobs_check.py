"""Whether Kubeflow Trainer is ready for the tiers whose clients run as TrainJobs."""

from __future__ import annotations

from typing import Any

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.doctor.finding import Finding, fail, ok
from perfit_pipelines.kube import Cluster

_JOBS = "TrainJobs"
_GROUP = "trainer.kubeflow.org"
_NODE = "node"
"""The job of a runtime that trains, and its container: what TrainJobs patch."""


def check_jobs(cluster: Cluster, spec: ClusterSpec) -> list[Finding]:
    """Check the runtimes of TrainJobs; nothing where no client runs as one."""
    tiers = spec.tiers_where(lambda tier: tier.is_job)
    if not tiers:
        return []
    version = cluster.version(_GROUP)
    if version is None:
        finding = f"clients of tier {next(iter(tiers))} run as TrainJobs, and Kubeflow Trainer is not installed"
        return [fail(_JOBS, finding, "install Kubeflow Trainer 2.2 or later, or set the tier's runner to pod")]
    problems = []
    for name, tier in tiers.items():
        found = cluster.custom(_GROUP, version, "clustertrainingruntimes", tier.runtime)
        fix = f"install Trainer's runtimes, or name another with tiers.{name}.runtime"
        if found is None:
            problems.append(fail(_JOBS, f"there is no ClusterTrainingRuntime {tier.runtime} for tier {name}", fix))
        elif not _trains(found):
            finding = f"the ClusterTrainingRuntime {tier.runtime} has no job {_NODE} with a container {_NODE}"
            problems.append(fail(_JOBS, finding, fix))
        elif tier.processes > 1 and "torch" not in found["spec"].get("mlPolicy", {}):
            finding = f"the ClusterTrainingRuntime {tier.runtime} tells the {tier.processes} processes of a job of tier"
            problems.append(fail(_JOBS, f"{finding} {name} not where they meet: it has no mlPolicy.torch", fix))
    runtimes = ", ".join(dict.fromkeys(tier.runtime for tier in tiers.values()))
    return problems or [ok(_JOBS, f"Kubeflow Trainer has the runtime {runtimes}")]


def _trains(runtime: dict[str, Any]) -> bool:
    jobs = runtime["spec"]["template"].get("spec") or {}  # a JobSet's, which may leave out all
    for job in jobs.get("replicatedJobs") or []:
        containers = job["template"]["spec"]["template"]["spec"]["containers"]
        if job["name"] == _NODE and any(container["name"] == _NODE for container in containers):
            return True
    return False
