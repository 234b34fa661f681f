"""Whether the store treats every role's key as the policies say, and keeps the conditions of writes.

Conditions are tested first, with the server's key, by writers that race for a scratch object of one line, which stays
in the federation's directory. Keys are then tested with requests that change nothing: a write with ``If-Match`` and a
version that no object has. A store that allows the write rejects the condition, one that denies it says so, and
neither writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import urlsplit

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.federation_file import parse_federation
from perfit_pipelines.addresses import is_inside
from perfit_pipelines.doctor.finding import Finding, fail, ok, unknown
from perfit_pipelines.doctor.secrets_check import RoleKeys
from perfit_storage import (
    AccessDenied,
    FederationStore,
    ObjectNotFound,
    ObjectStore,
    StoreError,
    StoreUnreachable,
    UnreadableObject,
    UnsafeStore,
    open_store,
)
from perfit_storage.conditions import CONDITIONS_FIX

NAME = "store"
_NO_VERSION = '"perfit-doctor"'
_PROBE = "perfit-doctor"
_NO_HASH = "0" * 64
_OF_THE_SERVER = (
    "rounds/1/summary.json",
    "rounds/0/global.safetensors",
    "rounds/0/state.safetensors",
    "rounds/0/served.json",
    f"files/{_NO_HASH}.yaml",
)
_AT_ONCE = 8
_POLICY_FIX = (
    "bring the store's policies up to date: perfit deploy FILE --overlay NAME --apply; see what it says about them"
)


@dataclass(frozen=True)
class _Rights:
    """What a key must be allowed, and what it must be denied, by paths in the federation's directory."""

    reads: tuple[str, ...]
    lists: tuple[str, ...]
    writes: tuple[str, ...]
    no_reads: tuple[str, ...]
    no_lists: tuple[str, ...]
    no_writes: tuple[str, ...]


def check_store(spec: ClusterSpec, uri: str | None, roles: Sequence[RoleKeys], endpoint: str | None) -> list[Finding]:
    """Test every role's key on the store.

    Args:
        spec: The federation.
        uri: Of the store.
        roles: The server and clients whose Secrets are complete.
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
        pass  # It answers; its errors are reported role by role.
    if unsafe := _check_conditions(spec, uri, roles, endpoint):
        return [unsafe]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        results = list(pool.map(lambda role: _check_role(spec, _open(uri, role, endpoint), role), roles))
    problems = [finding for finding in results if finding]
    where = endpoint or roles[0].environment["AWS_ENDPOINT_URL"]
    tried = f"{len(roles)} {'key' if len(roles) == 1 else 'keys'}"
    return problems or [ok(NAME, f"{uri} at {where} answers to {tried} as the policies say")]


def _open(uri: str, role: RoleKeys, endpoint: str | None) -> ObjectStore:
    return open_store(uri, with_endpoint(role.environment, endpoint))


def with_endpoint(keys: Mapping[str, str], endpoint: str | None) -> dict[str, str]:
    """Return the settings by which this machine opens the store: where it reaches it, and whom it trusts."""
    own = {"AWS_CA_BUNDLE": bundle} if (bundle := os.environ.get("AWS_CA_BUNDLE")) else {}
    return {**keys, **own, **({"AWS_ENDPOINT_URL": endpoint} if endpoint else {})}


def _unreachable(error: StoreUnreachable, role: RoleKeys, endpoint: str | None) -> Finding:
    host = urlsplit(role.environment["AWS_ENDPOINT_URL"]).hostname or ""
    if is_inside(host) and not endpoint:
        fix = (
            "forward a port, for the overlays' MinIO with kubectl -n perfit port-forward svc/minio 9000 (SeaweedFS: "
            "svc/seaweedfs 8333), and give --store-endpoint http://localhost:9000"
        )
        return unknown(NAME, f"{host} has a name of the cluster, which this machine does not reach", fix)
    return fail(NAME, error.problem, error.fix)


def _check_conditions(spec: ClusterSpec, uri: str, roles: Sequence[RoleKeys], endpoint: str | None) -> Finding | None:
    for role in roles:
        if role.client is None:
            try:
                FederationStore(_open(uri, role, endpoint), spec.name).check_conditions()
            except UnsafeStore as error:
                return fail(NAME, error.problem, error.fix)
            except StoreError:
                pass  # Reported with the rest of what this key may not.
    return None


def _check_role(spec: ClusterSpec, objects: ObjectStore, role: RoleKeys) -> Finding | None:
    who = f"the key of {role.client or 'the server'} (Secret {role.secret})"
    try:
        data = objects.get(f"federations/{spec.name}/spec.yaml").data
    except ObjectNotFound:
        data = None
    except StoreError as error:
        return fail(NAME, f"{who}: {error.problem}", error.fix)
    rights = _server_rights(spec) if role.client is None else _client_rights(spec, role.client)
    try:
        wrong = _first_wrong(objects, f"federations/{spec.name}/", rights)
        begun = not wrong and role.client is None and FederationStore(objects, spec.name).has_masks()
        if data and begun and (other := _difference(spec, data)):
            fix = f"choose another name for this one, or delete that one: perfit delete {spec.name}"
            return fail(NAME, f"the store has another federation {spec.name!r}: {other}", fix)
        if not wrong and _may_read(objects, f"federations/{spec.name}-{_PROBE}/head.json"):
            wrong = "may read other federations"
    except StoreError as error:
        return fail(NAME, f"{who}: {error.problem}", error.fix)
    return fail(NAME, f"{who} {wrong}", _POLICY_FIX) if wrong else None


def _difference(spec: ClusterSpec, data: bytes) -> str | None:
    try:
        return spec.difference(parse_federation(data.decode(errors="replace"), "its spec.yaml"))
    except PerfitError as error:
        return error.problem


def _client_rights(spec: ClusterSpec, client: str) -> _Rights:
    other = next((c.id for c in spec.clients if c.id != client), f"not-{client}"[:63].rstrip("-"))
    theirs = (
        f"clients/{other}/{_PROBE}",
        f"rounds/1/updates/{other}.json",
        f"rounds/1/downloads/{other}.safetensors",
        f"masks/{other}/{_NO_HASH}",
    )
    mine = (f"clients/{client}/{_PROBE}", f"rounds/0/updates/{client}.safetensors", f"masks/{client}/{_NO_HASH}")
    downloads = (f"downloads/{client}", f"ranks/{spec.rank_of(spec.client(client))}")
    shared = ("model.json", "head.json", "rounds/1/plan.json", *(f"rounds/1/{name}.safetensors" for name in downloads))
    return _Rights(
        reads=(*mine, *shared),
        lists=(f"masks/{client}/", f"clients/{client}/"),
        writes=mine,
        no_reads=(*theirs, *_OF_THE_SERVER),
        no_lists=("", "clients/", "masks/", f"clients/{other}/", f"masks/{other}/"),
        no_writes=(*theirs, *shared, "spec.yaml", *_OF_THE_SERVER),
    )


def _server_rights(spec: ClusterSpec) -> _Rights:
    private = tuple(f"clients/{client.id}/{_PROBE}" for client in spec.clients[:1])
    return _Rights(
        reads=("model.json", "head.json", "rounds/1/plan.json", f"rounds/1/updates/{spec.clients[0].id}.json"),
        lists=("rounds/", "rounds/1/updates/", "masks/"),
        writes=("rounds/0/report.html", *_OF_THE_SERVER),
        no_reads=private,
        no_lists=(),
        no_writes=private,
    )


def _first_wrong(objects: ObjectStore, root: str, rights: _Rights) -> str | None:
    """Test what must be allowed, then what must be denied; return the first that is not as it should be."""
    for path in rights.reads:
        if not _may_read(objects, root + path):
            return f"may not read {path}, or is told so of what is missing"
    for prefix in rights.lists:
        if not _may_list(objects, root + prefix):
            return f"may not list what begins with {prefix}"
    for path in rights.writes:
        if not _may_write(objects, root + path):
            return f"may not write {path}"
    for path in rights.no_reads:
        if _may_read(objects, root + path):
            return f"may read {path}, which is not its own"
    for prefix in rights.no_lists:
        if _may_list(objects, root + prefix):
            return f"may list {prefix or 'everything'}, which is not its own"
    for path in rights.no_writes:
        if _may_write(objects, root + path):
            return f"may write {path}, which is not its own"
    return None


def _may_read(objects: ObjectStore, key: str) -> bool:
    try:
        objects.get(key, limit=0)  # What clients wrote is not for here to read.
    except (ObjectNotFound, UnreadableObject):
        return True
    except AccessDenied:
        return False
    return True


def _may_list(objects: ObjectStore, prefix: str) -> bool:
    try:
        list(objects.directories(prefix))
    except AccessDenied:
        return False
    return True


def _may_write(objects: ObjectStore, key: str) -> bool:
    """Whether a write is allowed, tested with one that cannot succeed."""
    try:
        written = objects.replace(key, b"", _NO_VERSION)
    except AccessDenied as error:
        # Where the write is allowed, the store then reads what is there instead, which may be denied.
        return not error.problem.startswith("cannot replace")
    if written:
        raise StoreError(f"it ignores the condition If-Match: {key} was written", CONDITIONS_FIX)
    return True
