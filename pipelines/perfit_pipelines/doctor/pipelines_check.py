"""Whether Kubeflow Pipelines answers and is new enough."""

from __future__ import annotations

import json

from perfit.errors import PerfitError
from perfit_pipelines.cluster.connection import Endpoint, connect, parse_version, server_tag
from perfit_pipelines.cluster.upload import LIMITED
from perfit_pipelines.doctor.finding import Finding, fail, ok, unknown, warn

NAME = "Kubeflow Pipelines"
OLDEST = (2, 16, 1)
"""In older versions, a Secret that a loop's item names does not reach its task (kubeflow/pipelines#13128)."""
ASKING = (2, 18, 0)
"""From this version on, an administrator must allow accounts other than KFP's own (kubeflow/pipelines#14181)."""
_TIMEOUT_S = 30


def check_pipelines(endpoint: Endpoint, namespace: str) -> list[Finding]:
    """Check that Kubeflow Pipelines answers, and its version.

    Args:
        endpoint: How to reach it.
        namespace: Where runs live.
    """
    try:
        kubeflow = connect(endpoint)
        with kubeflow.calling("give its version"):
            answer = kubeflow.client.healthzs.healthz_service_get_healthz(
                _preload_content=False, _request_timeout=_TIMEOUT_S
            )
    except PerfitError as error:
        return [fail(NAME, error.problem, error.fix)]
    health = json.loads(answer.data)
    checks = [_version(kubeflow.where, health)]
    if health.get("multi_user") and namespace == "kubeflow":
        fix = "give the namespace of your profile with --namespace"
        checks.append(warn(NAME, "it serves several users, whose runs live in the namespaces of their profiles", fix))
    return checks


def _version(where: str, health: dict) -> Finding:
    tag, oldest = server_tag(health), ".".join(map(str, OLDEST))
    numbers = parse_version(tag)
    if numbers is None:
        fix = f"look at the image of deployment ml-pipeline: it must be {oldest} or newer"
        return unknown(NAME, f"it answers at {where}, and gives {tag or 'nothing'!r} as its version", fix)
    if numbers < OLDEST:
        fix = f"upgrade Kubeflow Pipelines to {oldest} or newer; 2.17 is recommended"
        return fail(NAME, f"version {tag} at {where} is older than {oldest}", fix)
    if numbers < LIMITED:
        fix = "upgrade to 2.17; or go without recurring runs, and set cluster.deadline_seconds and keep_seconds to null"
        return warn(NAME, f"version {tag} at {where} ends no run by itself, and may not run schedules as asked", fix)
    if numbers >= ASKING:
        fix = "add perfit-runner to ALLOWEDSERVICEACCOUNTS of deployment ml-pipeline, if it refuses a run's account"
        return warn(NAME, f"version {tag} at {where} is newer than this release knows", fix)
    return ok(NAME, f"version {tag} at {where}")
