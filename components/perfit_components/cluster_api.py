"""The Kubernetes API, as the service account of this pod may use it: plain JSON over HTTPS, and no package for it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import urllib3

MOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT = urllib3.Timeout(connect=5.0, read=10.0)


class ClusterApi:
    """An API server that a pod may ask.

    Args:
        environment: Where Kubernetes names its API server.
        mount: Of the account's token, certificate authority and namespace.

    Raises:
        OSError: An account's files cannot be read.
    """

    def __init__(self, environment: Mapping[str, str], mount: Path):
        host = environment["KUBERNETES_SERVICE_HOST"]
        where = f"[{host}]" if ":" in host else host
        self._url = f"https://{where}:{environment.get('KUBERNETES_SERVICE_PORT', '443')}"
        self._mount = mount
        self.namespace = (mount / "namespace").read_text().strip()
        self._pool = urllib3.PoolManager(ca_certs=str(mount / "ca.crt"), timeout=_TIMEOUT, retries=2)

    @classmethod
    def of_pod(cls, environment: Mapping[str, str] = os.environ, mount: Path = MOUNT) -> ClusterApi | None:
        """Return the API of the cluster that this process is in; None if it is in none, or has no account's token."""
        if not environment.get("KUBERNETES_SERVICE_HOST") or not (mount / "token").is_file():
            return None
        return cls(environment, mount)

    def ask(
        self, method: str, path: str, body: Any = None, content: str = "application/json"
    ) -> tuple[int, dict[str, Any]]:
        """Send a request.

        Args:
            method: Of HTTP.
            path: Of the resource, with its query.
            body: To send as JSON.
            content: Its type.

        Returns:
            The status and the object that the server answered.

        Raises:
            HTTPError: It cannot be reached.
            OSError: The account's token cannot be read.
            ValueError: It did not answer with an object.
        """
        # Kubernetes renews the token in the file.
        token = (self._mount / "token").read_text().strip()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": content, "Accept": "application/json"}
        answer = self._pool.request(
            method, self._url + path, body=None if body is None else json.dumps(body), headers=headers
        )
        found = answer.json()
        if not isinstance(found, dict):
            raise ValueError(f"it answered {answer.status} without an object")
        return answer.status, found
