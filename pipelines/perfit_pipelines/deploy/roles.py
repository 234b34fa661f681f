"""The roles of a federation in its store, and their keys."""

from __future__ import annotations

import secrets
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit_pipelines.deploy.policies import Policy, client_policy, server_policy

SERVER, ALL = "server", "all"
_SECRET_LENGTH = 40
_ALPHABET = string.ascii_letters + string.digits
"""Characters that need no escaping in a URL, an environment variable or a shell."""


@dataclass(frozen=True)
class Key:
    """A role's credentials for the store."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True)
class Role:
    """The server, or a client.

    Attributes:
        name: ``server``, or the client's id.
        client: The client's id; None for the server.
        secret: Name of its Secret in the namespace of the runs.
        access_key: Of a key generated for it: a client's has one dot, as names contain none, the server's none.
        policy: What it may do in the store.
        remote: Whether its owner runs it, so that its key is in no Secret where runs live.
    """

    name: str
    client: str | None
    secret: str
    access_key: str
    policy: Policy
    remote: bool = False


def roles_of(spec: ClusterSpec, store: str) -> list[Role]:
    """Return the server and all clients.

    Raises:
        PerfitError: As :func:`client_policy`.
    """
    roles = [Role(SERVER, None, spec.server_secret, spec.server_secret, server_policy(spec, store))]
    for client in spec.clients:
        access_key = f"{spec.name}.{client.id}"
        policy = client_policy(spec, client, store)
        remote = spec.is_remote(client)
        roles.append(Role(client.id, client.id, spec.secret_of(client), access_key, policy, remote))
    return roles


def choose_keys(roles: Sequence[Role], existing: Mapping[str, Key], rotate: str | None = None) -> dict[str, Key]:
    """Keep existing keys, and generate those that are missing or to be replaced.

    A replaced key keeps its access key, so the store then accepts only the new secret.

    Args:
        roles: Of the federation.
        existing: Keys by the name of their Secret.
        rotate: A client's id, ``server`` or ``all``.

    Returns:
        A key for each role, by the name of its Secret.

    Raises:
        PerfitError: ``rotate`` names no role.
    """
    if rotate and rotate != ALL and all(role.name != rotate for role in roles):
        raise PerfitError(
            f"there is no client {rotate!r} to make a new key for",
            f"use {ALL}, or one of: {', '.join(role.name for role in roles)}",
        )
    return {role.secret: _key(role, existing.get(role.secret), rotate in (ALL, role.name)) for role in roles}


def new_secret() -> str:
    """Return 40 random letters and digits, about 238 bits."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))


def _key(role: Role, existing: Key | None, renew: bool) -> Key:
    if existing is None:
        return Key(role.access_key, new_secret())
    return Key(existing.access_key, new_secret()) if renew else existing
