"""The files that add a federation's credentials to an overlay: a kustomization and its Secrets."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from perfit.cluster_spec import ClusterSpec
from perfit_pipelines.deploy.directory import SECRETS
from perfit_pipelines.deploy.kubectl import encode
from perfit_pipelines.deploy.overlay import Overlay
from perfit_pipelines.deploy.policies import policy_text
from perfit_pipelines.deploy.roles import Key, Role

CLIENTS_SECRET = "perfit-clients"
SHARDS = 8
"""Secrets that the overlay's store reads users from: one holds a mebibyte, and a client's policy takes 4 kB."""
USER_SECRETS = tuple(f"{CLIENTS_SECRET}-{shard}" for shard in range(SHARDS))

Object = dict[str, Any]


@dataclass(frozen=True)
class Deployment:
    """What is to be added to an overlay.

    Attributes:
        spec: The federation.
        overlay: What it is added to.
        namespace: Where its runs live.
        endpoint: URL of the store, as pods reach it.
        region: Of the store.
        roles: The server and the clients.
        keys: Of each role, by the name of its Secret.
        root: The administrator of the overlay's store; None for an existing store.
    """

    spec: ClusterSpec
    overlay: Overlay
    namespace: str
    endpoint: str
    region: str
    roles: Sequence[Role]
    keys: Mapping[str, Key]
    root: Key | None

    @property
    def hidden(self) -> list[str]:
        """The secret keys, which must not be shown."""
        keys = [*self.keys.values(), *([self.root] if self.root else [])]
        return [key.secret_key for key in keys]


def render(deployment: Deployment, directory: Path) -> dict[str, str]:
    """Return the files' contents by their paths below the directory."""
    documents = list(_secrets(deployment).values())
    files = {
        "kustomization.yaml": _yaml(_kustomization(deployment, directory)),
        SECRETS: "---\n".join(_yaml(document) for document in documents),
    }
    if deployment.overlay.store is None:
        for role in deployment.roles:
            files[policy_path(deployment, role)] = policy_text(role.policy) + "\n"
    return files


def policy_path(deployment: Deployment, role: Role) -> str:
    """Return where the policy of a role is written, for an existing store."""
    return f"policies/{deployment.keys[role.secret].access_key}.json"


def environment(deployment: Deployment, role: Role) -> dict[str, str]:
    """Return the variables by which a pod with a role's key opens the store."""
    key = deployment.keys[role.secret]
    return {
        "AWS_ENDPOINT_URL": deployment.endpoint,
        "AWS_REGION": deployment.region,
        "AWS_ACCESS_KEY_ID": key.access_key,
        "AWS_SECRET_ACCESS_KEY": key.secret_key,
    }


def _kustomization(deployment: Deployment, directory: Path) -> Object:
    base = os.path.relpath(deployment.overlay.directory, directory.resolve())
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [base, SECRETS],
        "patches": [*_admit_runs(deployment), *_move_runs(deployment)],
    }


def _admit_runs(deployment: Deployment) -> list[Object]:
    """Let runs of this namespace reach the overlay's store; the policies of other namespaces are left unchanged."""
    store = deployment.overlay.store
    if store is None:
        return []
    target = {"kind": "NetworkPolicy", "name": store.server.runs_policy, "namespace": store.namespace}
    label = "/spec/ingress/0/from/0/namespaceSelector/matchLabels/kubernetes.io~1metadata.name"
    name = f"{store.server.runs_policy}-{deployment.namespace}"
    return [_replace(target, {"/metadata/name": name, label: deployment.namespace})]


def _move_runs(deployment: Deployment) -> list[Object]:
    """Move what runs need into another namespace than the overlay's, if one was requested."""
    before, after = deployment.overlay.run_namespace, deployment.namespace
    if before == after:
        return []
    return [
        _replace({"kind": "RoleBinding", "namespace": before}, {"/subjects/0/namespace": after}),
        _replace({"namespace": before}, {"/metadata/namespace": after}),
    ]


def _replace(target: Object, values: Mapping[str, str]) -> Object:
    patch = [{"op": "replace", "path": path, "value": value} for path, value in values.items()]
    return {"target": target, "patch": _yaml(patch)}


def _secrets(deployment: Deployment) -> dict[tuple[str, str], Object]:
    """All Secrets by namespace and name: a role's own, and those that the overlay's store reads."""
    secrets = []
    for role in filter(lambda role: not role.remote, deployment.roles):
        secrets.append(_secret(deployment, deployment.namespace, role.secret, environment(deployment, role), role))
    store, root = deployment.overlay.store, deployment.root
    if store and root:
        texts = {store.server.root_user: root.access_key, store.server.root_password: root.secret_key}
        secrets.append(_secret(deployment, store.namespace, store.server.root_secret, texts))
        # Empty ones too: if one were left out, the key of a removed client would stay.
        shards = zip(USER_SECRETS, _shards(deployment), strict=True)
        secrets += [_secret(deployment, store.namespace, *item) for item in shards]
    return {(item["metadata"]["namespace"], item["metadata"]["name"]): item for item in secrets}


def _shards(deployment: Deployment) -> list[dict[str, str]]:
    """What the overlay's store reads about users. One is always in the same Secret, whichever others there are."""
    shards: list[dict[str, str]] = [{} for _ in range(SHARDS)]
    for role in deployment.roles:
        user, secret_key = deployment.keys[role.secret].access_key, deployment.keys[role.secret].secret_key
        shard = shards[int(hashlib.sha256(user.encode()).hexdigest(), 16) % SHARDS]
        shard |= {f"{user}.secret-key": secret_key, f"{user}.policy.json": policy_text(role.policy)}
    return shards


def _secret(
    deployment: Deployment, namespace: str, name: str, texts: Mapping[str, str], role: Role | None = None
) -> Object:
    labels = {"app.kubernetes.io/part-of": "perfit"}
    if role and role.client:
        labels |= {"perfit/federation": deployment.spec.name, "perfit/client": role.client}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque", "data": encode(texts)}


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False)
