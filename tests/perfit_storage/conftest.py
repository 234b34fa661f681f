from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfit_storage import ObjectStore, open_store


@pytest.fixture(params=["file", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    """An empty store of each kind."""
    if request.param == "file":
        yield open_store((tmp_path / "store").as_uri())
        return
    server = request.getfixturevalue("s3_server")
    store = open_store(f"{server.store_uri}/{uuid.uuid4()}", server.environment)
    yield store
    for key in store.list(""):
        store.delete(key)
