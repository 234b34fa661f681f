"""What an owner decides that runs its client itself, whatever the federation file in the store says.

The file names what is computed; who can write it could have an owner's machine read other records, or train for longer
or with another method than was agreed. So records and model are the owner's own to name, and what of the file concerns
a client, its terms, is compared with what the client took part under before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import yaml
from blake3 import blake3

from perfit.cluster_spec import ClusterClient, ClusterSpec
from perfit.errors import PerfitError
from perfit.spec import first_difference
from perfit_storage import FederationStore, ObjectNotFound

_FILE = "terms.json"
_MAX_BYTES = 2**20


class NotAgreed(PerfitError):
    """The federation file wants something else of a client than its owner agreed to."""


@dataclass(frozen=True)
class Owner:
    """What an owner gives its client.

    Args:
        data: Records, as a federation file names them.
        held_out: Held-out records, likewise; None to hold out some of ``data``.
        model: Where this machine has the base model's files; None to look for it by the federation file's name of it.
        digest: Of the terms that the owner agrees to; None for those that the client took part under before, or, the
            first time, those of the file.
    """

    data: str
    held_out: str | None = None
    model: str | None = None
    digest: str | None = None


def terms_of(spec: ClusterSpec, client: ClusterClient) -> dict[str, Any]:
    """Return what of a federation file concerns a client, as plain JSON: what, how long and how it trains, and sends.

    Who else takes part, the number of rounds and the server's rule may change; an owner bounds its own rounds.
    """
    return {**spec.of_client(client).fixed(), "rank": spec.rank_of(client)}


def terms_digest(terms: dict[str, Any]) -> str:
    """Return the BLAKE3 of terms, in hexadecimal."""
    return blake3(_text(terms)).hexdigest()


def show_terms(terms: dict[str, Any]) -> str:
    """Return terms as YAML."""
    return yaml.safe_dump(terms, sort_keys=False, allow_unicode=True)


def check_terms(spec: ClusterSpec, client: ClusterClient, owner: Owner, store: FederationStore) -> None:
    """Compare the terms with those of before, which are kept where no key but the client's may write.

    Raises:
        NotAgreed: They are not what the owner agreed to; the error names the key, where it is known.
        PerfitError: The store cannot be reached, or what the client keeps is damaged.
    """
    terms = terms_of(spec, client)
    digest, before = terms_digest(terms), _read(store, client.id)
    if owner.digest == digest:
        return
    where = f"{store.uri}/spec.yaml"
    if owner.digest is None and (before is None or before == terms):
        return
    found = before and first_difference(terms, before)
    what = f": {found}" if found else ""
    raise NotAgreed(
        f"the owner of client {client.id!r} has not agreed to what {where} says now{what}",
        f"look at it (perfit client --show-terms); if it is what the owner wants, give --digest {digest}",
    )


def keep_terms(spec: ClusterSpec, client: ClusterClient, store: FederationStore) -> None:
    """Note under which terms the client takes part."""
    store.put_client_file(client.id, _FILE, _text(terms_of(spec, client)))


def _read(store: FederationStore, client: str) -> dict[str, Any] | None:
    try:
        return json.loads(store.get_client_file(client, _FILE, _MAX_BYTES))
    except ObjectNotFound:
        return None
    except ValueError as error:
        raise PerfitError(
            f"{store.uri}/clients/{client}/{_FILE} is no JSON: {error}",
            "find out who wrote it; with the client's key, write {} there, then give --digest",
        ) from error


def _text(terms: dict[str, Any]) -> bytes:
    return (json.dumps(terms, sort_keys=True, ensure_ascii=False, indent=1) + "\n").encode()
