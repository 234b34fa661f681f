"""Real servers that tests share, and what the environment of pytest would change of the commands under test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

# A shell lets what it starts in the background ignore Ctrl-C, and so would the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# pytest-xdist sets the width of its own terminal, and rich keeps what it finds when it is imported.
os.environ.pop("COLUMNS", None)


@dataclass(frozen=True)
class S3Endpoint:
    """An S3 store for tests: the AWS_* variables and the URI under which they may write."""

    environment: dict[str, str]
    store_uri: str


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    """A SeaweedFS of this session's own, or the S3 store that PERFIT_TEST_S3_URI and AWS_* name."""
    if uri := os.environ.get("PERFIT_TEST_S3_URI"):
        settings = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
        yield S3Endpoint(settings, uri)
        return

    from perfit_storage.errors import StoreError
    from perfit_storage.local_server import LocalS3Server, find_weed

    try:
        find_weed()
    except StoreError as error:
        pytest.skip(str(error))
    with LocalS3Server(tmp_path_factory.mktemp("s3")) as server:
        yield S3Endpoint(server.environment, server.store_uri)
