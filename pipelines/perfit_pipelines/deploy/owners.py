"""The keys of remote clients, as files to hand over to their owners.

They are in no Secret where runs live: whoever may start a run there could name it (docs/security.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from perfit_components.secret_names import STORE_KEYS
from perfit_pipelines.addresses import is_inside
from perfit_pipelines.deploy.render import Deployment, environment
from perfit_pipelines.deploy.roles import Role

DIRECTORY = "owners"
"""Where a written overlay has them."""
_TEXT = """\
# Of client {client} of federation {federation}, for its owner alone. systemd (EnvironmentFile), docker (--env-file) and
# kubectl (create secret generic --from-env-file) read it; perfit client takes all from there but --data.
"""
_ONLY_COPY = "; keep a copy where only you read it: no Secret has the key"


def owner_file(role: Role) -> str:
    """Return the name of a remote client's file."""
    return f"{role.name}.env"


def owner_files(deployment: Deployment, store: str, endpoints: Mapping[str, str]) -> dict[str, str]:
    """Return the text of each remote client's file, by name.

    Args:
        deployment: The federation's.
        store: URI of its store.
        endpoints: URL of the store as the owner reaches it, by client.
    """
    files = {}
    for role in filter(lambda role: role.remote, deployment.roles):
        variables = {
            **environment(deployment, role),
            "AWS_ENDPOINT_URL": endpoints[role.name],
            "PERFIT_FEDERATION": f"{store.rstrip('/')}/federations/{deployment.spec.name}",
            "PERFIT_CLIENT": role.name,
        }
        text = _TEXT.format(client=role.name, federation=deployment.spec.name)
        files[owner_file(role)] = text + "".join(f"{name}={value}\n" for name, value in variables.items())
    return files


def read_owner_files(directory: Path, roles: list[Role]) -> dict[str, dict[str, str]]:
    """Return what an earlier call wrote of the roles' keys, by the name of each role's Secret."""
    found = {}
    for role in filter(lambda role: role.remote, roles):
        file = directory / owner_file(role)
        if file.is_file():
            pairs = (line.partition("=") for line in file.read_text(encoding="utf-8").splitlines())
            found[role.secret] = {name: value for name, _, value in pairs if name in STORE_KEYS}
    return found


def owner_lines(deployment: Deployment, directory: Path | None, endpoints: set[str]) -> list[str]:
    """Return what to tell about them.

    Args:
        deployment: The federation's.
        directory: Where they were written, if they were.
        endpoints: URLs of the store in them.
    """
    clients = [role.name for role in deployment.roles if role.remote]
    if not clients:
        return []
    if directory is None:
        who = ", ".join(clients)
        return [f"remote clients: {who}. Give --owners DIR to write each one's keys to a file for its owner"]
    kept = ", and delete it" if deployment.overlay.store else _ONLY_COPY
    lines = [f"wrote {directory}/<client>.env: hand each file to its owner, over a safe way{kept}"]
    local = ", ".join(sorted(url for url in endpoints if is_inside(urlsplit(url).hostname or "")))
    if local:
        lines.append(f"WARNING: only pods of this cluster reach {local}: give --owner-endpoint for owners elsewhere")
    return lines
