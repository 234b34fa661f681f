"""Opens stores by URI."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from perfit_storage.errors import StoreError
from perfit_storage.files import FileStore
from perfit_storage.objects import ObjectStore


def open_store(uri: str, environment: Mapping[str, str] | None = None) -> ObjectStore:
    """Opens a store. Nothing is read or written yet.

    Args:
        uri: ``file:///absolute/directory``, or ``s3://bucket/prefix`` (the prefix is optional).
        environment: Where the S3 settings come from (see ``perfit_storage.s3``); by default the process's.

    Raises:
        StoreError: The URI is of another kind, or a setting is missing.
    """
    parts = urlsplit(uri)
    if "@" in parts.netloc:
        raise StoreError("the store URI holds credentials", "leave them out of it, and set the AWS_* variables instead")
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and _is_plain(uri):
        return FileStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc and _is_plain(uri):
        from perfit_storage.s3 import S3Settings, S3Store

        settings = S3Settings.from_environment(os.environ if environment is None else environment)
        return S3Store(settings, parts.netloc, parts.path.strip("/"))
    raise StoreError(f"{uri!r} is not the URI of a store", "use file:///absolute/directory or s3://bucket/prefix")


def _is_plain(uri: str) -> bool:
    return not any(mark in uri for mark in "?#")
