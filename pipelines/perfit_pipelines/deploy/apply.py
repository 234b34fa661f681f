"""Adding a federation's credentials to an overlay: written to a directory, or applied to the cluster."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.federation_file import load_federation
from perfit_pipelines.deploy.directory import SECRETS, check_directory, write_private
from perfit_pipelines.deploy.kubectl import Kubectl, apply_arguments, decode, delete_job_arguments
from perfit_pipelines.deploy.overlay import Overlay, StoreServer, open_overlay
from perfit_pipelines.deploy.owners import DIRECTORY, owner_file, owner_files, owner_lines, read_owner_files
from perfit_pipelines.deploy.render import USER_SECRETS, Deployment, policy_path, render
from perfit_pipelines.deploy.roles import Key, Role, choose_keys, new_secret, roles_of
from perfit_pipelines.places import deployments

_OWN_STORE = "s3://perfit"
_ROOT_USER = "perfit-root"
_REGION = "us-east-1"

Contents = Mapping[str, Mapping[str, str]]
"""The contents of Secrets, by their names."""


@dataclass(frozen=True)
class Request:
    """The user's request; see the options of the command."""

    file: Path
    overlay: str
    namespace: str | None = None
    context: str | None = None
    store: str | None = None
    endpoint: str | None = None
    region: str | None = None
    rotate: str | None = None
    offline: bool = False
    owners: Path | None = None
    owner_endpoint: str | None = None


def write_overlay(request: Request, output: Path | None) -> list[str]:
    """Write an overlay with a federation's keys: those of the cluster, else those that an earlier call wrote there.

    Returns:
        What to tell the user.

    Raises:
        PerfitError: The directory is unsuitable for secrets, the federation or overlay has an error, or the cluster
            does not say which keys it has.
    """
    spec, kubectl = load_federation(request.file), Kubectl(request.context)
    overlay = open_overlay(request.overlay, kubectl)
    directory = output or deployments() / spec.name / overlay.directory.name
    check_directory(directory)
    deployed = {} if request.offline else _asked(request, spec, overlay, kubectl)
    owners = request.owners or directory / DIRECTORY
    roles = roles_of(spec, _store(request, spec, overlay))
    handed = _handed(roles, owners)
    written = _written(directory / SECRETS)
    # What is applied wins over the owners' files, which may be from before a rotation.
    held = {**handed, **_with_users(roles, written, written), **deployed}
    deployment = _deployment(request, spec, overlay, held)
    write_private(directory, render(deployment, directory))
    kubectl.build(directory)
    told = _write_owners(request, deployment, owners, handed)
    return [
        f"wrote {directory}: {_count(deployment)}. It holds secrets: do not share it.",
        *_endpoint_lines(request, deployment),
        *_user_lines(deployment, directory, owners),
        *told,
        "apply it with:",
        *(f"  {line}" for line in _commands(deployment, directory, request.context)),
    ]


def apply_overlay(request: Request, dry_run: bool) -> list[str]:
    """Apply an overlay with a federation's keys; those that the cluster has are kept.

    Returns:
        The output of kubectl, and what to tell the user.

    Raises:
        PerfitError: The federation or overlay has an error, or the cluster refused something.
    """
    spec, kubectl = load_federation(request.file), Kubectl(request.context)
    overlay = open_overlay(request.overlay, kubectl)
    handed = _handed(roles_of(spec, _store(request, spec, overlay)), request.owners)
    deployment = _deployment(request, spec, overlay, {**handed, **_deployed(request, spec, overlay, kubectl)})
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch, "overlay")
        write_private(directory, render(deployment, directory))
        outputs = []
        store = overlay.store
        if store and store.server.setup_job and not dry_run:  # A Job runs once: a new one reads the Secrets again.
            outputs.append(kubectl.delete_job(store.namespace, store.server.setup_job))
        outputs.append(kubectl.apply(directory, _manager(spec), deployment.hidden, dry_run))
    lines = [line for text in outputs for line in text.splitlines() if line]
    if dry_run:
        return [*lines, "the server would take all of this; nothing was changed"]
    told = [*_endpoint_lines(request, deployment), *_user_lines(deployment, None, None)]
    told += _write_owners(request, deployment, request.owners, handed)
    return [*lines, f"applied: {_count(deployment)}", *told]


def _deployment(request: Request, spec: ClusterSpec, overlay: Overlay, existing: Contents) -> Deployment:
    store = _store(request, spec, overlay)
    roles = roles_of(spec, store)
    held = existing.get(spec.server_secret, {})
    keys = {name: key for name, texts in existing.items() if (key := _key(texts))}
    if overlay.store:
        _check_owners(roles, keys)
    own = overlay.store.endpoint if overlay.store else None
    endpoint = request.endpoint or held.get("AWS_ENDPOINT_URL") or own
    if not endpoint:
        raise PerfitError(f"overlay {overlay.name!r} has no store of its own", "give the URL of yours with --endpoint")
    return Deployment(
        spec,
        overlay,
        request.namespace or overlay.run_namespace,
        endpoint,
        request.region or held.get("AWS_REGION") or _REGION,
        roles,
        choose_keys(roles, keys, request.rotate),
        _root(overlay.store.server, existing) if overlay.store else None,
    )


def _handed(roles: list[Role], directory: Path | None) -> Contents:
    """What an earlier call wrote for owners; for a store that is not the overlay's, it is what keeps their keys."""
    files = [owner_file(role) for role in roles if role.remote]
    if directory is None or not files:
        return {}
    # In an overlay that was written before, it is ours whoever its clients were.
    check_directory(directory, [*files, f"../{SECRETS}"])
    return read_owner_files(directory, roles)


def _write_owners(request: Request, deployment: Deployment, directory: Path | None, handed: Contents) -> list[str]:
    """Write the keys of remote clients for their owners; return what to tell."""
    if directory is None:
        return owner_lines(deployment, None, set())
    endpoints = {}
    for role in filter(lambda role: role.remote, deployment.roles):
        before = handed.get(role.secret, {}).get("AWS_ENDPOINT_URL")
        endpoints[role.name] = request.owner_endpoint or before or deployment.endpoint
    store = _store(request, deployment.spec, deployment.overlay)
    write_private(directory, owner_files(deployment, store, endpoints))
    return owner_lines(deployment, directory, set(endpoints.values()))


def _store(request: Request, spec: ClusterSpec, overlay: Overlay) -> str:
    store = request.store or spec.store
    if not store:
        raise PerfitError(f"{request.file} names no store", f"add `store: {_OWN_STORE}`, or give --store")
    if overlay.store and store.rstrip("/") != _OWN_STORE:
        title = overlay.store.server.title
        raise PerfitError(
            f"the store is {store!r}, but the {title} of overlay {overlay.name!r} keeps federations in {_OWN_STORE}",
            f"set `store: {_OWN_STORE}` in {request.file}, or use the overlay existing-minio for another store",
        )
    return store


def _check_owners(roles: Sequence[Role], keys: Mapping[str, Key]) -> None:
    """Two federations' default names of Secrets may be the same: a-b of client c, and a of client b-c."""
    for role in roles:
        key = keys.get(role.secret)
        if key and key.access_key != role.access_key:
            raise PerfitError(
                f"the Secret {role.secret!r} holds the key of {key.access_key!r}, not of {role.access_key!r}",
                f"give client {role.name!r} another secret in the federation file (clients.<n>.secret), "
                "or delete that Secret if it is unused",
            )


def _written(file: Path) -> Contents:
    if not file.is_file():
        return {}
    items = [item for item in yaml.safe_load_all(file.read_text(encoding="utf-8")) if item]
    return {item["metadata"]["name"]: decode(item["data"]) for item in items}


def _asked(request: Request, spec: ClusterSpec, overlay: Overlay, kubectl: Kubectl) -> Contents:
    try:
        return _deployed(request, spec, overlay, kubectl)
    except PerfitError as error:
        raise PerfitError(
            f"{error.problem}\nWithout them new keys would be made, and when applied lock out running federations.",
            "let kubectl reach the cluster, or give --offline if nothing is deployed there yet",
        ) from error


def _deployed(request: Request, spec: ClusterSpec, overlay: Overlay, kubectl: Kubectl) -> Contents:
    """The Secrets that the cluster has, with the keys that its store has."""
    roles = roles_of(spec, _store(request, spec, overlay))
    secrets = kubectl.secrets(request.namespace or overlay.run_namespace, [role.secret for role in roles])
    if not overlay.store:
        return secrets
    root_secret = overlay.store.server.root_secret
    stored = kubectl.secrets(overlay.store.namespace, [root_secret, *USER_SECRETS])
    root = {name: texts for name, texts in stored.items() if name == root_secret}
    return {**_with_users(roles, secrets, stored), **root}


def _with_users(roles: Sequence[Role], secrets: Contents, stored: Contents) -> Contents:
    """Secrets with the keys that the overlay's store has of the roles: those are the ones, in all namespaces."""
    users = {name: text for secret in USER_SECRETS for name, text in stored.get(secret, {}).items()}
    found = {}
    for role in roles:
        secret_key, held = users.get(f"{role.access_key}.secret-key"), secrets.get(role.secret, {})
        if secret_key and held.get("AWS_ACCESS_KEY_ID") in (None, role.access_key):
            key = {"AWS_ACCESS_KEY_ID": role.access_key, "AWS_SECRET_ACCESS_KEY": secret_key}
            found[role.secret] = {**held, **key}
    return {**secrets, **found}


def _key(texts: Mapping[str, str]) -> Key | None:
    access_key, secret_key = texts.get("AWS_ACCESS_KEY_ID"), texts.get("AWS_SECRET_ACCESS_KEY")
    return Key(access_key, secret_key) if access_key and secret_key else None


def _root(server: StoreServer, existing: Contents) -> Key:
    texts = existing.get(server.root_secret, {})
    user, password = texts.get(server.root_user), texts.get(server.root_password)
    return Key(user or _ROOT_USER, password or new_secret())


def _manager(spec: ClusterSpec) -> str:
    return f"perfit-{spec.name}"


def _count(deployment: Deployment) -> str:
    clients = sum(not role.remote for role in deployment.roles) - 1
    return f"keys of the server and of {clients} clients, as Secrets in namespace {deployment.namespace}"


def _endpoint_lines(request: Request, deployment: Deployment) -> list[str]:
    """For Secrets that keep another endpoint than the overlay's: the overlay was changed, or the store moved."""
    store = deployment.overlay.store
    own = store.endpoint if store else None
    if request.endpoint or deployment.endpoint == own:
        return []
    kept = f"the Secrets keep the endpoint {deployment.endpoint}"
    name = deployment.overlay.name
    if own is None:
        return [f"{kept}: overlay {name!r} has no store; give --endpoint to use another"]
    return [f"WARNING: {kept}, not that of overlay {name!r}: tasks do not use its store. Give --endpoint {own} to move"]


def _user_lines(deployment: Deployment, directory: Path | None, owners: Path | None) -> list[str]:
    """For an existing store: which users it must have; for one that follows the Secrets: when."""
    store = deployment.overlay.store
    if store and store.server.setup_job:
        return []
    if store:
        return [f"{store.server.title} takes new keys about a minute after they are applied"]
    if directory is None or owners is None:
        return ["the store must know these keys; `perfit deploy` with --output writes the policy of each"]
    lines = [f"make these users in the store, with their secret keys from {directory / SECRETS} and these policies:"]
    for role in deployment.roles:
        user = deployment.keys[role.secret].access_key
        place = f"  (its secret key: {owners / owner_file(role)})" if role.remote else ""
        lines.append(f"  {user}  {directory / policy_path(deployment, role)}{place}")
    return lines


def _commands(deployment: Deployment, directory: Path, context: str | None) -> list[str]:
    kubectl = ["kubectl", *(["--context", context] if context else [])]
    commands = [[*kubectl, *apply_arguments(directory, _manager(deployment.spec))]]
    store = deployment.overlay.store
    if store and store.server.setup_job:
        commands.insert(0, [*kubectl, *delete_job_arguments(store.namespace, store.server.setup_job)])
    return [shlex.join(command) for command in commands]
