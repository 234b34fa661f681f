"""Opens stores by URI."""

from __future__ import annotations

import os
import re
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
    if re.search("[@:]", parts.netloc):  # A secret key may hold slashes, so the @ may be in the path.
        raise StoreError("the store URI holds credentials", "leave them out of it, and set the AWS_* variables instead")
    if re.search("[?#]", uri):
        raise StoreError("the store URI holds a query or fragment (? or #), which may be a secret", "leave it out")
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return FileStore(Path(unquote(parts.path)))
    if parts.scheme == "s3" and parts.netloc:
        from perfit_storage.s3 import S3Settings, S3Store

        settings = S3Settings.from_environment(os.environ if environment is None else environment)
        return S3Store(settings, parts.netloc, parts.path.strip("/"))
    raise StoreError(f"{uri!r} is not the URI of a store", "use file:///absolute/directory or s3://bucket/prefix")
