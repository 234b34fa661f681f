"""What the doctor and ``perfit follow`` read of a Kubernetes cluster."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from typing import Any

from kubernetes import client, config
from kubernetes.client import (
    V1LimitRange,
    V1Namespace,
    V1Node,
    V1PersistentVolumeClaim,
    V1ResourceQuota,
    V1ServiceAccount,
    V1StorageClass,
)
from kubernetes.config import ConfigException
from urllib3.exceptions import HTTPError, MaxRetryError

from perfit.errors import PerfitError

_TIMEOUT_S = (5, 30)


class NotAllowed(Exception):
    """This user may not read something; the text says what."""


class Cluster:
    """A Kubernetes cluster, reached by the kubeconfig, or from a pod by its service account.

    Reading an object that does not exist gives None. Each method raises ``NotAllowed``, or ``PerfitError`` if the
    cluster cannot be reached.

    Args:
        context: Of the kubeconfig; None for its current one.

    Raises:
        PerfitError: There is no kubeconfig and this is not a pod, or the kubeconfig has no such context.
    """

    def __init__(self, context: str | None = None):
        settings = _settings(context)
        self.url = settings.host
        api = client.ApiClient(settings)
        self._core, self._storage = client.CoreV1Api(api), client.StorageV1Api(api)
        self._custom, self._apis = client.CustomObjectsApi(api), client.ApisApi(api)
        self._batch = client.BatchV1Api(api)

    def namespace(self, name: str) -> V1Namespace | None:
        """Read a namespace."""
        return self._read("namespaces", self._core.read_namespace, name)

    def service_account(self, namespace: str, name: str) -> V1ServiceAccount | None:
        """Read a service account."""
        return self._read("service accounts", self._core.read_namespaced_service_account, name, namespace)

    def secret(self, namespace: str, name: str) -> dict[str, str] | None:
        """Read the contents of a Secret."""
        secret = self._read(f"the Secret {name}", self._core.read_namespaced_secret, name, namespace)
        if secret is None:
            return None
        return {key: base64.b64decode(value).decode(errors="replace") for key, value in (secret.data or {}).items()}

    def config_map(self, namespace: str, name: str) -> dict[str, str] | None:
        """Read the contents of a ConfigMap."""
        found = self._read(f"the ConfigMap {name}", self._core.read_namespaced_config_map, name, namespace)
        return None if found is None else found.data or {}

    def claim(self, namespace: str, name: str) -> V1PersistentVolumeClaim | None:
        """Read a volume claim."""
        read = self._core.read_namespaced_persistent_volume_claim
        return self._read("persistent volume claims", read, name, namespace)

    def storage_class(self, name: str) -> V1StorageClass | None:
        """Read a storage class."""
        return self._read("storage classes", self._storage.read_storage_class, name)

    def nodes(self) -> list[V1Node]:
        """List the nodes."""
        return self._list("nodes", self._core.list_node)

    def quotas(self, namespace: str) -> list[V1ResourceQuota]:
        """List the quotas of a namespace."""
        return self._list("resource quotas", self._core.list_namespaced_resource_quota, namespace)

    def limit_ranges(self, namespace: str) -> list[V1LimitRange]:
        """List the limit ranges of a namespace."""
        return self._list("limit ranges", self._core.list_namespaced_limit_range, namespace)

    def has_cron_job(self, namespace: str, name: str) -> bool:
        """Whether there is a CronJob."""
        return self._read("cron jobs", self._batch.read_namespaced_cron_job, name, namespace) is not None

    def version(self, group: str) -> str | None:
        """Return the version of an API group that the server prefers; None where it does not have the group."""
        found = self._read("API groups", self._apis.get_api_versions)
        groups = found.groups if found else []
        return next((known.preferred_version.version for known in groups if known.name == group), None)

    def custom(self, group: str, version: str, plural: str, name: str, namespace: str = "") -> dict[str, Any] | None:
        """Read an object of a kind that is not Kubernetes' own; without a namespace one of the cluster."""
        if namespace:
            read = self._custom.get_namespaced_custom_object
            return self._read(plural, read, group, version, namespace, plural, name)
        return self._read(plural, self._custom.get_cluster_custom_object, group, version, plural, name)

    def pods(self, namespace: str, labels: str) -> list[dict[str, Any]]:
        """List the pods with these labels, as Kubernetes writes them: their models take many times as long to read."""
        list_pods = self._core.list_namespaced_pod
        answer = self._read("pods", list_pods, namespace, label_selector=labels, _preload_content=False)
        return json.loads(answer.data)["items"] if answer else []

    def workflows(self, namespace: str, labels: str) -> list[dict[str, Any]]:
        """List Argo's workflows with these labels."""
        names = ("argoproj.io", "v1alpha1", namespace, "workflows")
        answer = self._read("workflows", self._custom.list_namespaced_custom_object, *names, label_selector=labels)
        return answer["items"] if answer else []

    def _list(self, what: str, call: Callable[..., Any], *names: str) -> list[Any]:
        answer = self._read(what, call, *names)
        return answer.items if answer else []

    def _read(self, what: str, call: Callable[..., Any], *names: str, **options: Any) -> Any:
        try:
            return call(*names, _request_timeout=_TIMEOUT_S, **options)
        except client.ApiException as error:
            if error.status == 404:
                return None
            if error.status == 403:
                raise NotAllowed(f"read {what}") from error
            raise PerfitError(
                f"Kubernetes at {self.url} answered {error.status} {error.reason}",
                "log in to the cluster again (its token may have expired), and try kubectl get namespaces",
            ) from error
        except HTTPError as error:
            reason = error.reason if isinstance(error, MaxRetryError) else error
            raise PerfitError(
                f"Kubernetes at {self.url} cannot be reached: {reason}",
                "check the kubeconfig and its context (--context), and try kubectl get namespaces",
            ) from error


def _settings(context: str | None) -> client.Configuration:
    settings = client.Configuration()
    settings.retries = 1
    try:
        # The package itself reads KUBECONFIG only once, when it is imported.
        config.load_kube_config(os.environ.get("KUBECONFIG"), context=context, client_configuration=settings)
        return settings
    except ConfigException as error:
        problem = str(error)
    try:
        if context is None:
            config.load_incluster_config(client_configuration=settings)
            return settings
    except ConfigException:
        pass
    raise PerfitError(
        f"no Kubernetes cluster is known: {problem}",
        "set KUBECONFIG to your kubeconfig, or give one of its contexts with --context",
    )
