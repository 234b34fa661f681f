"""Whether the store answers to every role's key as the policies say, tried with requests that change nothing.

Writes are tried with ``If-Match`` and a version that no object has: a store that permits the write refuses the
condition, one that forbids it says so, and neither writes. That it minds conditions at all is tried first, where a write
would do no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

from perfit.spec import Federation
from perfit_pipelines.doctor.check import Check, fail, ok, unknown
from perfit_pipelines.doctor.secrets_check import RoleKeys
from perfit_storage import AccessDenied, ObjectStore, StoreError, StoreUnreachable, open_store

NAME = "store"
_NO_VERSION = '"perfit-doctor"'
_PROBE = "perfit-doctor"
_NO_HASH = "0" * 64
_AT_ONCE = 8
_POLICY_FIX = "bring the store's policies up to date: perfit deploy FILE --overlay NAME --apply; see what it says of them"


class _Wrong(Exception):
    """What is not as it should be; the text says it of the role."""


def check_store(spec: Federation, uri: str | None, roles: Sequence[RoleKeys], endpoint: str | None) -> list[Check]:
    """Try every role's key on the store.

    Args:
        spec: The federation.
        uri: Of the store.
        roles: The server and clients whose Secrets are whole.
        endpoint: URL of the store as this machine reaches it; None for that of the Secrets.
    """
    if not uri or not uri.startswith("s3://"):
        fix = "set `store: s3://bucket/prefix` in the federation file, or give --store"
        return [fail(NAME, f"pods cannot share {uri or 'a store that is not named'}", fix)]
    if not roles:
        return [unknown(NAME, "not tried: there are no keys to try", "see to the Secrets first")]
    try:
        _open(uri, roles[0], endpoint).exists(f"federations/{spec.name}/spec.yaml")
    except StoreUnreachable as error:
        return [_unreachable(error, roles[0], endpoint)]
    except StoreError:
        pass  # It answers; what it says is found out role by role.
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda role: _check_role(spec, _open(uri, role, endpoint), role), roles))
    problems = [check for check in found if check]
    where = endpoint or roles[0].environment["AWS_ENDPOINT_URL"]
    tried = f"{len(roles)} {'key' if len(roles) == 1 else 'keys'}"
    return problems or [ok(NAME, f"{uri} at {where} answers to {tried} as the policies say")]


def _open(uri: str, role: RoleKeys, endpoint: str | None) -> ObjectStore:
    return open_store(uri, {**role.environment, **({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})})


def _unreachable(error: StoreUnreachable, role: RoleKeys, endpoint: str | None) -> Check:
    host = urlsplit(role.environment["AWS_ENDPOINT_URL"]).hostname or ""
    inside = host.endswith((".svc", ".svc.cluster.local")) or "." not in host
    if inside and not endpoint:
        fix = (
            "run perfit doctor in a pod, or forward a port (kubectl -n perfit port-forward svc/minio 9000) and give "
            "--store-endpoint http://localhost:9000"
        )
        return unknown(NAME, f"{host} has a name of the cluster, which this machine does not reach", fix)
    return fail(NAME, error.problem, error.fix)


def _check_role(spec: Federation, objects: ObjectStore, role: RoleKeys) -> Check | None:
    who = f"the key of {role.client or 'the server'} (Secret {role.secret})"
    directory = _Directory(objects, spec.name)
    try:
        directory.must_read("spec.yaml")
    except (StoreError, _Wrong) as error:
        if isinstance(error.__cause__, AccessDenied):
            error = error.__cause__
        problem, fix = (error.problem, error.fix) if isinstance(error, StoreError) else (str(error), _POLICY_FIX)
        return fail(NAME, f"{who}: {problem}", fix)
    try:
        if role.client is None:
            _try_server(spec, directory)
        else:
            _try_client(spec, directory, role.client)
    except _Wrong as wrong:
        return fail(NAME, f"{who} {wrong}", _POLICY_FIX)
    except StoreError as error:
        return fail(NAME, f"{who}: {error.problem}", error.fix)
    return None
