"""Whether the service account of a run may read the clients' keys, by asking Kubernetes.

A run that is started in Kubeflow's UI without a service account gets KFP's own, which may read every Secret of its
namespace: each client's pod could then act as all others. Manifests cannot prevent it, so Prepare asks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from urllib3.exceptions import HTTPError

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit_components.cluster_api import MOUNT, ClusterApi

_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


def check_account(spec: ClusterSpec, environment: Mapping[str, str] = os.environ, mount: Path = MOUNT) -> None:
    """Refuse a service account that may read every client's key, unless the federation file allows it.

    Outside of a cluster nothing is asked. A cluster that does not answer is no reason to refuse; the log says so.

    Args:
        spec: The federation.
        environment: Where Kubernetes names its API server.
        mount: Of the account's token, certificate authority and namespace.

    Raises:
        PerfitError: It may.
    """
    if spec.cluster.allow_secret_readers:
        return
    try:
        api = ClusterApi.of_pod(environment, mount)
        allowed = api and _first_allowed(spec, api)
    except (HTTPError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"Kubernetes did not say whether this service account may read the clients' keys: {error}", flush=True)
        return
    if allowed:
        raise PerfitError(
            f"the service account of this run may {allowed} in its namespace, and so may every client's pod: "
            "each could act as all others",
            "start the run as perfit-runner: in the UI fill the field Service Account of the form, "
            "elsewhere give --service-account; or allow it in the federation file (cluster.allow_secret_readers: true)",
        )


def _first_allowed(spec: ClusterSpec, api: ClusterApi) -> str | None:
    """What the account may do that it should not; the questions are those that a wrong Role would answer with yes."""
    questions = {
        "read every Secret": {"verb": "get"},
        "list all Secrets": {"verb": "list"},
        "read clients' Secrets": {"verb": "get", "name": spec.secret_of(spec.clients[0])},
        "create TrainJobs, to whose pods it may give every Secret": {
            "verb": "create",
            "group": "trainer.kubeflow.org",
            "resource": "trainjobs",
        },
    }
    for what, question in questions.items():
        if _may(api, {"namespace": api.namespace, "resource": "secrets", **question}):
            return what
    return None


def _may(api: ClusterApi, attributes: Mapping[str, str]) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    status, answer = api.ask("POST", _PATH, review)
    if status != 201:
        raise ValueError(f"it answered {status}")
    return answer["status"]["allowed"] is True
