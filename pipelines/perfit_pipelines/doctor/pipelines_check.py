"""Whether Kubeflow Pipelines answers and is new enough."""

from __future__ import annotations

import json
import re

from perfit.errors import PerfitError
from perfit_pipelines.cluster.client import connect
from perfit_pipelines.cluster.endpoint import Endpoint
from perfit_pipelines.doctor.check import Check, fail, ok, unknown, warn

NAME = "Kubeflow Pipelines"
OLDEST = (2, 16, 1)
"""Below it, a Secret that a loop's item names does not reach its task (kubeflow/pipelines#13128)."""
_TIMEOUT_S = 30


def check_pipelines(endpoint: Endpoint, namespace: str) -> list[Check]:
    """Ask Kubeflow Pipelines how it is.

    Args:
        endpoint: How to reach it.
        namespace: Where runs live.
    """
    try:
        kubeflow = connect(endpoint)
        with kubeflow.calling("say its version"):
            answer = kubeflow.client.healthzs.healthz_service_get_healthz(
                _preload_content=False, _request_timeout=_TIMEOUT_S
            )
    except PerfitError as error:
        return [fail(NAME, error.problem, error.fix)]
    said = json.loads(answer.data)
    checks = [_version(kubeflow.where, said)]
    if said.get("multi_user") and namespace == "kubeflow":
        fix = "give the namespace of your profile with --namespace"
        checks.append(warn(NAME, "it serves several users, whose runs live in the namespaces of their profiles", fix))
    return checks


def _version(where: str, said: dict) -> Check:
    # The API server says tag_name; the UI, which passes requests on to it, says apiServerTagName.
    tag = str(said.get("tag_name") or said.get("apiServerTagName") or "")
    oldest = ".".join(map(str, OLDEST))
    numbers = re.match(r"v?(\d+)\.(\d+)\.(\d+)", tag)
    if numbers is None:
        fix = f"look at the image of deployment ml-pipeline: it must be {oldest} or newer"
        return unknown(NAME, f"it answers at {where}, and says {tag or 'nothing'!r} of its version", fix)
    if tuple(map(int, numbers.groups())) < OLDEST:
        fix = f"upgrade Kubeflow Pipelines to {oldest} or newer; 2.17 is recommended"
        return fail(NAME, f"version {tag} at {where} is older than {oldest}", fix)
    return ok(NAME, f"version {tag} at {where}")
