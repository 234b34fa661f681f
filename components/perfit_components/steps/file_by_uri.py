"""A federation file that a run is given by its URI in the store: Kubeflow passes no argument above 128 KiB to a pod."""

from __future__ import annotations

import re

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.federation_file import MAX_CHARACTERS, parse_federation
from perfit_components.steps.context import store_patience
from perfit_storage import FederationStore

_URI = re.compile(r"[a-z0-9]+://\S+")
_OF_A_FILE = re.compile(r"(?P<store>.+)/federations/(?P<name>[^/]+)/files/(?P<digest>[0-9a-f]{64})\.yaml")
_MAX_BYTES = 4 * MAX_CHARACTERS


def put_federation_file(spec: ClusterSpec, store_uri: str) -> str:
    """Store a federation file under its hash; return its URI.

    Raises:
        PerfitError: The store cannot be reached or written.
    """
    return FederationStore.open(store_uri, spec.name).put_file(spec.to_yaml().encode())


def is_uri(text: str) -> bool:
    """Whether a run's parameter is the URI of a federation file, and not its text."""
    return _URI.fullmatch(text.strip()) is not None


def read_federation_file(text: str, store_uri: str) -> ClusterSpec:
    """Parse the text of a federation file, or of the one that it is the URI of.

    Whoever starts a run chooses the URI. It must be in the run's own store, where the federation of that name keeps
    such files, and the bytes must have the hash in it; then they are read as any federation file.

    Args:
        text: The parameter ``federation_file`` of a run.
        store_uri: Its parameter ``store``.

    Raises:
        PerfitError: The file is wrong, is not there, or has another hash; or the URI is of something else.
    """
    if not is_uri(text):
        return parse_federation(text)
    uri = text.strip()
    match = _OF_A_FILE.fullmatch(uri)
    store = match and FederationStore.open(store_uri, match["name"], patience_s=store_patience())
    if not store or uri != f"{store.uri}/files/{match['digest']}.yaml":
        raise PerfitError(
            f"{uri} is not the URI of a federation file in the store {store_uri}",
            "start the run with perfit submit, which puts the file there, or give the text of the file",
        )
    data = store.read_file(match["digest"], _MAX_BYTES)
    try:
        spec = parse_federation(data.decode(), uri)
    except UnicodeDecodeError as error:
        raise PerfitError(f"{uri} is no text: {error}", "start the run with perfit submit") from error
    if spec.name != store.name:
        raise PerfitError(f"{uri} is the file of a federation {spec.name!r}", "start the run with perfit submit")
    return spec
