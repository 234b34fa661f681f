"""A small Kubernetes API server over HTTP, for Kubernetes' own clients: kubectl and the Python package.

It keeps objects that the Python package's models accept, lists and gets them, takes server-side applies, and refuses
what a test forbids. It schedules nothing and checks no tokens.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml
from kubernetes import client

Object = dict[str, Any]

KINDS = {
    "v1": {
        "Namespace": "namespaces",
        "Node": "nodes",
        "Secret": "secrets",
        "ConfigMap": "configmaps",
        "Service": "services",
        "ServiceAccount": "serviceaccounts",
        "PersistentVolumeClaim": "persistentvolumeclaims",
        "ResourceQuota": "resourcequotas",
        "LimitRange": "limitranges",
    },
    "apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets"},
    "batch/v1": {"Job": "jobs", "CronJob": "cronjobs"},
    "networking.k8s.io/v1": {"NetworkPolicy": "networkpolicies"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
    "rbac.authorization.k8s.io/v1": {
        "Role": "roles",
        "RoleBinding": "rolebindings",
        "ClusterRole": "clusterroles",
        "ClusterRoleBinding": "clusterrolebindings",
    },
    "scheduling.k8s.io/v1": {"PriorityClass": "priorityclasses"},
    "storage.k8s.io/v1": {"StorageClass": "storageclasses"},
}
CLUSTER_WIDE = {
    "Namespace",
    "Node",
    "ClusterRole",
    "ClusterRoleBinding",
    "PriorityClass",
    "StorageClass",
    "WorkloadPriorityClass",
    "ClusterTrainingRuntime",
}


@dataclass
class KubernetesApi:
    """A cluster.

    Attributes:
        objects: By API version, plural, namespace and name.
        forbidden: Plurals that nobody may touch, and paths that nobody may read.
        quote: What a refusal quotes.
        requests: What was asked.
        custom: Further kinds and their plurals by API version, whose objects are taken as they are.
        url: Where it is served.
    """

    objects: dict[tuple[str, str, str, str], Object] = field(default_factory=dict)
    forbidden: set[str] = field(default_factory=set)
    quote: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    custom: dict[str, dict[str, str]] = field(default_factory=dict)
    url: str = ""
    _data_keys: dict[tuple[Any, ...], set[str]] = field(default_factory=dict)

    def add(self, *objects: Object) -> None:
        """Keep objects, as ``kubectl apply`` would name them.

        Raises:
            ValueError: Kubernetes knows no such object.
        """
        for item in objects:
            version, kind, metadata = item["apiVersion"], item["kind"], item["metadata"]
            if version not in self.custom:
                read_object(item)
            namespace = "" if kind in CLUSTER_WIDE else metadata.get("namespace", "default")
            plural = {**KINDS, **self.custom}[version][kind]
            self.objects[version, plural, namespace, metadata["name"]] = item

    def get(self, kind: str, name: str, namespace: str = "") -> Object:
        """Return an object by its kind."""
        kinds = {**KINDS, **self.custom}
        version = next(version for version in kinds if kind in kinds[version])
        return self.objects[version, kinds[version][kind], namespace, name]

    def answer(self, method: str, target: str, body: bytes) -> tuple[int, Object]:
        """Answer a request with a status and an object."""
        path, query = urlsplit(target).path, parse_qs(urlsplit(target).query)
        version, plural, namespace, name = _parse(path)
        if refused := {plural, path.rstrip("/")} & self.forbidden:
            message = f'{refused.pop()} is forbidden: User "dev" cannot {method} {self.quote}'
            return 403, _status(403, "Forbidden", message)
        discovered = _discover(path, self.custom)
        if discovered:
            return 200, discovered
        if method == "PATCH":
            return 200, self._apply(yaml.safe_load(body), (version, plural, namespace, name), query)
        if method == "DELETE":
            gone = self.objects.pop((version, plural, namespace, name), None)
            return (200, gone) if gone else (404, _status(404, "NotFound", f'{plural} "{name}" not found'))
        if not name:
            found = [item for key, item in sorted(self.objects.items()) if _is_in(key, version, plural, namespace)]
            found = [item for item in found if _is_labelled(item, query.get("labelSelector", [""])[0])]
            return 200, {"apiVersion": version, "kind": "List", "metadata": {}, "items": found}
        found = self.objects.get((version, plural, namespace, name))
        if found is None:
            return 404, _status(404, "NotFound", f'{plural} "{name}" not found')
        return 200, found

    def _apply(self, item: Object, key: tuple[str, str, str, str], query: dict[str, list[str]]) -> Object:
        """Apply on the server's side, with as much field ownership as Secrets need: a manager owns keys of data."""
        if key[2]:
            item["metadata"]["namespace"] = key[2]
        read_object(item)
        if query.get("dryRun"):
            return item
        if item["kind"] == "Secret":
            owner = (*key, *query["fieldManager"])
            before = self.objects.get(key, {}).get("data", {})
            mine, new = self._data_keys.get(owner, set()), item.get("data", {})
            self._data_keys[owner] = set(new)
            item["data"] = {name: value for name, value in before.items() if name not in mine} | new
        self.objects[key] = item
        return item


def read_object(item: Object) -> Any:
    """Return an object as the Python package's model of its kind.

    Raises:
        ValueError: The model does not know all of it, or not so.
    """
    version, kind = item["apiVersion"], item["kind"]
    api = client.ApiClient()
    model = api.deserialize(SimpleNamespace(data=json.dumps(item)), f"V1{kind}")
    again = api.sanitize_for_serialization(model)
    if kind not in KINDS[version] or again != _without_empty(item):
        raise ValueError(f"not a {kind}: {item}\nread as {again}")
    return model


@contextmanager
def kubernetes_api(kubeconfig: Path) -> Iterator[KubernetesApi]:
    """Serve an empty cluster, and write how to reach it, as context ``test``."""
    cluster = KubernetesApi()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(cluster))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    cluster.url = f"http://127.0.0.1:{server.server_port}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": cluster.url}}],
        "users": [{"name": "dev", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "dev"}}],
    }
    kubeconfig.write_text(yaml.safe_dump(config))
    try:
        yield cluster
    finally:
        server.shutdown()
        server.server_close()


def _handler(cluster: KubernetesApi) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # An answer in one piece: in two, the second waits for the client to acknowledge the first.

        def do_GET(self) -> None:
            self._serve("GET")

        def do_DELETE(self) -> None:
            self._serve("DELETE")

        def do_PATCH(self) -> None:
            self._serve("PATCH")

        def _serve(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            cluster.requests.append(f"{method} {self.path}")
            status, answer = cluster.answer(method, self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def _is_labelled(item: Object, selector: str) -> bool:
    """Whether an object has the labels of a selector such as ``a=b,c``."""
    labels = item["metadata"].get("labels", {})
    wanted = [part.partition("=") for part in selector.split(",") if part]
    return all(name in labels and (not equals or labels[name] == value) for name, equals, value in wanted)


def _discover(path: str, custom: dict[str, dict[str, str]]) -> Object | None:
    parts = path.strip("/").split("/")
    if parts == ["version"]:
        return {"major": "1", "minor": "32", "gitVersion": "v1.32.4"}
    if parts == ["api"]:
        return {"kind": "APIVersions", "versions": ["v1"]}
    if parts == ["apis"]:
        groups = [version.partition("/") for version in {**KINDS, **custom} if version != "v1"]
        known = [{"groupVersion": f"{name}/{version}", "version": version} for name, _, version in groups]
        listed = [
            {"name": name, "versions": [version], "preferredVersion": version}
            for (name, _, _), version in zip(groups, known, strict=True)
        ]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    if parts[:2] == ["openapi", "v3"]:
        return (
            _openapi("/".join(parts[3:] if parts[2:3] == ["apis"] else parts[3:4])) if parts[2:] else _openapi_index()
        )
    version = "/".join(parts[1:])
    return _resources(version) if version in KINDS and len(parts) == (2 if version == "v1" else 3) else None


def _resources(version: str) -> Object:
    resources = [
        {
            "name": plural,
            "singularName": kind.lower(),
            "namespaced": kind not in CLUSTER_WIDE,
            "kind": kind,
            "verbs": ["delete", "get", "list", "patch"],
        }
        for kind, plural in KINDS[version].items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}


def _openapi_index() -> Object:
    places = [("api" if version == "v1" else "apis") + f"/{version}" for version in KINDS]
    return {"paths": {place: {"serverRelativeURL": f"/openapi/v3/{place}"} for place in places}}


def _openapi(version: str) -> Object:
    """Declare for every kind that the server validates what is applied, as ``add`` and applies here do."""
    group, _, number = version.rpartition("/")
    paths = {
        f"/{kind}": {
            "patch": {
                "parameters": [{"name": "fieldValidation", "in": "query", "schema": {"type": "string"}}],
                "responses": {},
                "x-kubernetes-group-version-kind": {"group": group, "version": number, "kind": kind},
            }
        }
        for kind in KINDS[version]
    }
    return {"openapi": "3.0.0", "info": {"title": "Kubernetes", "version": "v1.32.4"}, "paths": paths}


def _parse(path: str) -> tuple[str, str, str, str]:
    """Return API version, plural, namespace and name of a resource's path, empty where it has none."""
    parts = path.strip("/").split("/")
    version, rest = ("v1", parts[2:]) if parts[0] == "api" else ("/".join(parts[1:3]), parts[3:])
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2:
        namespace, rest = rest[1], rest[2:]
    return version, rest[0] if rest else "", namespace, rest[1] if len(rest) > 1 else ""


def _is_in(key: tuple[str, str, str, str], version: str, plural: str, namespace: str) -> bool:
    return key[:2] == (version, plural) and namespace in ("", key[2])


def _status(code: int, reason: str, message: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "metadata": {},
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty(item) for key, item in value.items() if item is not None}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value
