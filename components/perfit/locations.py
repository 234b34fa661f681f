"""Where records and stores are: what a URI may hold, and when two are of one place."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator

from perfit.errors import PerfitError

RECORD_FILES = (".jsonl", ".json", ".parquet")
"""The kinds of files that records are read from, by suffix."""
HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(:(?P<split>\w+))?")
"""A data set of the hub, and its split."""
_OTHER_FILES = re.compile(r"\.(csv|tsv|txt|xlsx?|arrow|feather|xml|ya?ml|md|pdf|docx?|zip|gz|bz2|xz|zst|tar|pkl)")
"""Suffixes by which a path that looks like a hub id is known for a file that cannot be read."""
_STORE = re.compile(r"s3://(?P<bucket>[^/]+)(/.*)?|file:///.*")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
PACKAGE = "package:"
"""How the name of a model begins that is in an installed Python package."""
PINNED = re.compile(r"(?P<name>[\w-][\w.-]*(/[\w-][\w.-]*)?)@(?P<revision>\w[\w./-]*)")
"""A model of the hub with its revision."""
FEDERATIONS = "federations"
"""The directory of a store below which all federations are."""


def is_local(uri: str) -> bool:
    """Whether a client's data URI is a path on this file system, not s3:// and not a hub id."""
    return "://" not in uri and uri.endswith(RECORD_FILES)


def is_path(model: str) -> bool:
    """Whether a model is named by a path, whatever is there, and not as the hub or a Python package names it."""
    if model.startswith(PACKAGE) or PINNED.fullmatch(model):
        return False
    return model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1


def hide_credentials(text: str) -> str:
    """Return a text, such as an error of a parser, without what its URIs hold before an ``@``."""
    return re.sub(r"://[^\s'\"]*@", "://(hidden)@", text)


def check_store_uri(uri: str) -> str:
    """Return the URI of a store that holds no secret.

    Raises:
        PerfitError: It holds one, or may; the message does not repeat it. Or it is of another kind.
    """
    if found := _secret_in(uri):
        raise PerfitError(f"the store URI {found[0]}", found[1])
    if found := _no_store(uri):
        raise PerfitError(*found)
    return uri


def _no_store(uri: str) -> tuple[str, str] | None:
    """Why a URI is not a store's, and what to do about it."""
    match = _STORE.fullmatch(uri)
    if match is None:
        return f"{uri!r} is not the URI of a store", "use file:///absolute/directory or s3://bucket/prefix"
    if match["bucket"] and not _BUCKET.fullmatch(match["bucket"]):
        problem = f"{match['bucket']!r} cannot be the name of a bucket"
        return problem, "use 3 to 63 lower-case letters, digits, dots and hyphens"
    return None


def _secret_in(uri: str) -> tuple[str, str] | None:
    """What of a URI may be a secret, and what to do about it. A secret key may hold slashes, so a colon is enough."""
    _, _, rest = uri.partition("://")
    if re.match(r"[^/?#]*[@:]", rest):
        return "holds credentials", "leave them out: keys come from AWS_* variables, in a cluster from Secrets"
    if re.search(r"[?#]", rest):
        return "holds a query or fragment (? or #), which may be a secret", "leave it out"
    return None


def _plain(uri: str) -> str:
    if found := _secret_in(uri):
        raise ValueError("; ".join(found))
    return uri


def _of_store(uri: str) -> str:
    if found := _secret_in(uri) or _no_store(uri):
        raise ValueError("; ".join(found))
    return uri


def _of_records(uri: str) -> str:
    scheme, mark, rest = _plain(uri).partition("://")
    bucket, *key = rest.split("/")
    if mark and (scheme != "s3" or not key or {bucket, *key} & {"", ".", ".."}):
        raise ValueError(f"{uri!r} names no object; write s3://bucket/key, without empty, . and .. directories")
    hub = not mark and HUB_ID.fullmatch(uri) and not _OTHER_FILES.fullmatch(os.path.splitext(uri)[1].lower())
    if not hub and not uri.endswith(RECORD_FILES):
        raise ValueError(
            f"{uri!r} is neither a file of records nor a data set of the hub; name a {', '.join(RECORD_FILES[:-1])} or "
            f"{RECORD_FILES[-1]} file (convert others), or owner/name or owner/name:split"
        )
    return uri


def check_records_uri(uri: str) -> str:
    """Return the URI of records, the path of a local file as an absolute one.

    Raises:
        PerfitError: It names no records, holds credentials, or there is no such file.
    """
    try:
        _of_records(uri)
    except ValueError as error:
        raise PerfitError(f"records: {hide_credentials(str(error))}", "name other records") from None
    if not is_local(uri):
        return uri
    if not os.path.isfile(uri):
        raise PerfitError(f"records: there is no file {uri}", "give the path of a file on this machine")
    return os.path.abspath(uri)


PlainUri = Annotated[str, AfterValidator(_plain)]
"""A URI, or a path or hub id, that holds no credentials."""

StoreUri = Annotated[str, AfterValidator(_of_store)]
"""A store: ``s3://bucket/prefix`` or ``file:///directory``."""

RecordsUri = Annotated[str, AfterValidator(_of_records)]
"""Records by path, ``s3://bucket/key`` or hub id."""


def place_of(uri: str, directory: Path | None = None) -> str:
    """Return the same text for all URIs of the same records.

    Args:
        uri: A `RecordsUri`.
        directory: Where relative paths start, if it is known; then links are followed as well.
    """
    if is_local(uri):
        return os.path.realpath(directory / uri) if directory else os.path.normpath(uri)
    return uri if "://" in uri or ":" in uri else f"{uri}:train"


def federation_file_problem(place: str, store: str) -> str | None:
    """Return what is wrong with records that are, or may be, a file of a federation; None if they are not.

    In a store's bucket that is whatever is below a directory ``federations``: the bucket may have several stores.
    """
    scheme, _, rest = store.partition("://")
    if scheme == "s3":
        bucket, *directories = place.removeprefix("s3://").split("/")[:-1] or [""]
        found = place.startswith("s3://") and bucket == rest.split("/")[0] and FEDERATIONS in directories
    else:
        found = place.startswith(f"{unquote(rest).rstrip('/')}/{FEDERATIONS}/")
    return f"{place!r} is where the store {store} keeps federations; keep records elsewhere" if found else None
