"""Whose the store is: not Kubeflow's own, which every task's pod can read, and its authority known to the pods."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from perfit.cluster_spec import CA_FILE, ClusterSpec
from perfit_pipelines.doctor.cluster import Cluster, NotAllowed
from perfit_pipelines.doctor.finding import Finding, fail, warn
from perfit_pipelines.doctor.secrets_check import RoleKeys
from perfit_pipelines.doctor.store_check import NAME, with_endpoint
from perfit_storage import StoreError, open_store

_ARTIFACT_SECRET = "mlpipeline-minio-artifact"
_KUBEFLOW_HOSTS = ("minio-service", "seaweedfs", "minio")
_OWNER_FIX = "keep federations in a store of their own: the overlays kind (MinIO) and seaweedfs bring one"


def check_authority(cluster: Cluster, spec: ClusterSpec, namespace: str) -> list[Finding]:
    """Look for the ConfigMap with the authority that signed the store's certificate, if the file names one."""
    name = spec.cluster.store_ca
    if name is None:
        return []
    texts = cluster.config_map(namespace, name)
    if texts is not None and "BEGIN CERTIFICATE" in texts.get(CA_FILE, ""):
        return []
    finding = f"there is no ConfigMap {name} in namespace {namespace} whose key {CA_FILE} holds certificates"
    fix = f"make it: kubectl -n {namespace} create configmap {name} --from-file={CA_FILE}=AUTHORITY.pem"
    return [fail(NAME, finding, fix)]


def check_store_owner(
    cluster: Cluster, namespace: str, uri: str | None, roles: Sequence[RoleKeys], endpoint: str | None
) -> list[Finding]:
    """Warn where the store is Kubeflow's own, for the administrator's key that Argo mounts into every task's pod.

    By that key, if this user may read it, else by the name of the store.
    """
    if not roles or not uri or not uri.startswith("s3://"):
        return []
    try:
        texts = cluster.secret(namespace, _ARTIFACT_SECRET)
    except NotAllowed:
        opened = _is_kubeflows(roles[0])
    else:
        opened = texts is not None and _opens(texts, uri, roles[0], endpoint)
    if not opened:
        return []
    finding = f"it is Kubeflow's own: the key in the Secret {_ARTIFACT_SECRET}, which every task's pod mounts, opens it"
    return [warn(NAME, finding, _OWNER_FIX)]


def _opens(texts: dict[str, str], uri: str, role: RoleKeys, endpoint: str | None) -> bool:
    """Whether the artifacts' key may read in the federations' directory."""
    key = {"AWS_ACCESS_KEY_ID": texts.get("accesskey", ""), "AWS_SECRET_ACCESS_KEY": texts.get("secretkey", "")}
    try:
        open_store(uri, with_endpoint({**role.environment, **key}, endpoint)).exists("federations/perfit-doctor")
    except StoreError:
        return False
    return True


def _is_kubeflows(role: RoleKeys) -> bool:
    name, *rest = (urlsplit(role.environment["AWS_ENDPOINT_URL"]).hostname or "").split(".")
    return name in _KUBEFLOW_HOSTS and (not rest or rest[0] == "kubeflow")
