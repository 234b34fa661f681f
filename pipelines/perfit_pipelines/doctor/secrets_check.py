"""Whether every role's Secret is there, with a key to the store of its own."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from perfit.cluster_spec import ClusterSpec
from perfit_components.secret_names import STORE_KEYS
from perfit_pipelines.doctor.finding import Finding, fail, ok, unknown, warn
from perfit_pipelines.kube import Cluster, NotAllowed

NAME = "Secrets"
_ALLOW_FIX = (
    "ask an administrator to bind you to a Role like manifests/base/run/doctor.yaml, "
    "with the names of the federation's Secrets"
)


@dataclass(frozen=True)
class RoleKeys:
    """The environment variables of a role's pods; ``client`` is None for the server."""

    client: str | None
    secret: str
    environment: Mapping[str, str]


def check_secrets(cluster: Cluster, spec: ClusterSpec, namespace: str) -> tuple[list[Finding], list[RoleKeys]]:
    """Read the Secrets of the server and of all clients in pods; no remote client's may be there.

    Returns:
        The findings, and the roles whose Secrets are complete.
    """
    in_pods = [client for client in spec.clients if not spec.is_remote(client)]
    names = {None: spec.server_secret} | {client.id: spec.secret_of(client) for client in in_pods}
    problems, roles = _of_remote(cluster, spec, namespace), []
    for client, name in names.items():
        environment, problem = _read(cluster, namespace, name)
        if problem:
            problems.append(problem)
        else:
            roles.append(RoleKeys(client, name, environment))
    problems += _shared_keys(roles)
    if problems:
        return problems, roles
    return [ok(NAME, f"the server and {len(in_pods)} clients have theirs in namespace {namespace}")], roles


def _of_remote(cluster: Cluster, spec: ClusterSpec, namespace: str) -> list[Finding]:
    """Warn of a key that a run could be given: a client that has become remote may have left it behind."""
    found = []
    for client in filter(spec.is_remote, spec.clients):
        name = spec.secret_of(client)
        with suppress(NotAllowed):
            if cluster.secret(namespace, name) is not None:
                finding = f"client {client.id} is remote, but its key is in namespace {namespace}, open to every run"
                fix = f"kubectl -n {namespace} delete secret {name}, and give its owner a new key: --rotate {client.id}"
                found.append(warn(NAME, finding, fix))
    return found


def _read(cluster: Cluster, namespace: str, name: str) -> tuple[dict[str, str], Finding | None]:
    fix = f"make it with: perfit deploy FILE --overlay NAME --apply --namespace {namespace}"
    try:
        contents = cluster.secret(namespace, name)
    except NotAllowed as error:
        return {}, unknown(NAME, f"you may not {error} in namespace {namespace}", _ALLOW_FIX)
    if contents is None:
        return {}, fail(NAME, f"there is no Secret {name} in namespace {namespace}", fix)
    missing = [key for key in STORE_KEYS if not contents.get(key, "").strip()]
    if missing:
        finding = f"the Secret {name} in namespace {namespace} lacks {', '.join(missing)}"
        return {}, fail(NAME, finding, f"add what is missing, or {fix}")
    return {key: contents[key].strip() for key in STORE_KEYS}, None


def _shared_keys(roles: list[RoleKeys]) -> list[Finding]:
    owners: dict[str, str] = {}
    problems = []
    for role in roles:
        first = owners.setdefault(role.environment["AWS_ACCESS_KEY_ID"], role.secret)
        if first != role.secret:
            finding = f"the Secrets {first} and {role.secret} hold the same access key: their roles are not separate"
            fix = "delete one of the two and run perfit deploy again: it makes a key for each"
            problems.append(fail(NAME, finding, fix))
    return problems
