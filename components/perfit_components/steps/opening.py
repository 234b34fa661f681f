"""Opening a federation by its URI, as every step but the first does."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from perfit.adapter import SparseAdapter
from perfit.adapter_file import AdapterFileError, AdapterHeader, load_dense
from perfit.errors import PerfitError
from perfit.federation_file import parse_federation
from perfit.spec import Client, Federation
from perfit_storage import FederationStore, Head

_DIRECTORY = "/federations/"


@dataclass(frozen=True)
class OpenFederation:
    """A federation's files and its validated federation file."""

    store: FederationStore
    spec: Federation

    def client(self, client_id: str) -> Client:
        """Return a client of the federation file.

        Raises:
            PerfitError: There is none of this id.
        """
        try:
            return self.spec.client(client_id)
        except KeyError:
            raise PerfitError(
                f"client {client_id!r} is not in federation {self.spec.name!r}",
                f"use one of: {', '.join(client.id for client in self.spec.clients)}",
            ) from None

    def global_adapter(self, head: Head) -> tuple[SparseAdapter, int]:
        """Read the global adapter that a head names, and return it with the number of bytes read.

        Raises:
            StoreError: It is not there, or its bytes are not those that the head names.
            PerfitError: It is not the adapter of this federation and round.
        """
        data = self.store.read_global(head)
        try:
            header, adapter = load_dense(data)
        except AdapterFileError as error:
            raise PerfitError(
                f"{self.store.uri}/{head.key}: {error}", "restore it from a backup of the store"
            ) from error
        if (header.federation, header.round) != (self.spec.name, head.round):
            raise PerfitError(
                f"{self.store.uri}/{head.key} is of federation {header.federation!r}, round {header.round}",
                f"restore the global adapter of round {head.round} of {self.spec.name!r}",
            )
        return adapter, len(data)


def split_uri(uri: str) -> tuple[str, str]:
    """Return the store's URI and the federation's name.

    Raises:
        PerfitError: The URI is not that of a federation.
    """
    store, found, name = uri.rpartition(_DIRECTORY)
    if not found:
        raise PerfitError(f"{uri!r} names no federation", "give <store URI>/federations/<name>")
    return store, name


def open_federation(uri: str) -> OpenFederation:
    """Open a federation at ``<store URI>/federations/<name>``, with credentials from the process's environment.

    Raises:
        StoreError: The store cannot be reached, or holds no such federation.
        PerfitError: The URI or the stored file is wrong.
    """
    return read_federation(FederationStore.open(*split_uri(uri)))


def read_federation(store: FederationStore) -> OpenFederation:
    """Read the federation file of an opened store.

    Raises:
        StoreError: The store cannot be reached, or holds no such federation.
        PerfitError: The stored file is wrong.
    """
    return OpenFederation(store, parse_federation(store.read_spec().decode(), f"{store.uri}/spec.yaml"))


def model_cache() -> Path:
    """Return where converted models are kept: $PERFIT_CACHE, a volume on the cluster, or the user's cache."""
    return Path(os.environ.get("PERFIT_CACHE") or Path.home() / ".cache" / "perfit")


def global_header(spec: Federation, round: int) -> AdapterHeader:
    """Return the header of the global adapter of a round; budget and mask are filled in when it is written."""
    return AdapterHeader(
        federation=spec.name,
        round=round,
        client=None,
        base_model=spec.model,
        rank=spec.expanded_rank,
        expansion=spec.expansion,
    )
