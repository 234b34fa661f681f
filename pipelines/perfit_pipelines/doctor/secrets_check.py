"""Whether every role's Secret is there, with a key to the store of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from perfit.cluster_spec import ClusterSpec
from perfit_components.secret_names import STORE_KEYS
from perfit_pipelines.doctor.finding import Finding, fail, ok, unknown
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
    """Read the Secrets of the server and of all clients.

    Returns:
        The findings, and the roles whose Secrets are complete.
    """
    names = {None: spec.server_secret} | {client.id: spec.secret_of(client) for client in spec.clients}
    problems, roles = [], []
    for client, name in names.items():
        environment, problem = _read(cluster, namespace, name)
        if problem:
            problems.append(problem)
        else:
            roles.append(RoleKeys(client, name, environment))
    problems += _shared_keys(roles)
    if problems:
        return problems, roles
    return [ok(NAME, f"the server and {len(spec.clients)} clients have theirs in namespace {namespace}")], roles


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
