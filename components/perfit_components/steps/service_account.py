"""Whether the service account of a run may read the clients' keys, by asking Kubernetes.

A run that is started in Kubeflow's UI without a service account gets KFP's own, which may read every Secret of its
namespace: each client's pod could then act as all others. Manifests cannot prevent it, so Prepare asks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import urllib3
from urllib3.exceptions import HTTPError

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError

_MOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PATH = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_TIMEOUT = urllib3.Timeout(connect=5.0, read=10.0)


def check_account(spec: ClusterSpec, environment: Mapping[str, str] = os.environ, mount: Path = _MOUNT) -> None:
    """Refuse a service account that may read every client's key, unless the federation file allows it.

    Outside of a cluster nothing is asked. A cluster that does not answer is no reason to refuse; the log says so.

    Args:
        spec: The federation.
        environment: Where Kubernetes names its API server.
        mount: Of the account's token, certificate authority and namespace.

    Raises:
        PerfitError: It may.
    """
    host, token = environment.get("KUBERNETES_SERVICE_HOST"), mount / "token"
    if spec.cluster.allow_secret_readers or not host or not token.is_file():
        return
    where = f"[{host}]" if ":" in host else host
    url = f"https://{where}:{environment.get('KUBERNETES_SERVICE_PORT', '443')}{_PATH}"
    try:
        allowed = _first_allowed(spec, url, mount)
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


def _first_allowed(spec: ClusterSpec, url: str, mount: Path) -> str | None:
    """What the account may do that it should not; the questions are those that a wrong Role would answer with yes."""
    questions = {
        "read every Secret": {"verb": "get"},
        "list all Secrets": {"verb": "list"},
        "read clients' Secrets": {"verb": "get", "name": spec.secret_of(spec.clients[0])},
    }
    namespace = (mount / "namespace").read_text().strip()
    with urllib3.PoolManager(ca_certs=str(mount / "ca.crt"), timeout=_TIMEOUT, retries=2) as pool:
        for what, question in questions.items():
            attributes = {"namespace": namespace, "resource": "secrets", **question}
            if _ask(pool, url, (mount / "token").read_text().strip(), attributes):
                return what
    return None


def _ask(pool: urllib3.PoolManager, url: str, token: str, attributes: Mapping[str, str]) -> bool:
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": attributes},
    }
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    answer = pool.request("POST", url, body=json.dumps(review), headers=headers)
    if answer.status != 201:
        raise ValueError(f"it answered {answer.status}")
    return answer.json()["status"]["allowed"] is True
