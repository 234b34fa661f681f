"""A real SeaweedFS, started by the overlay's start.sh with directories in place of its mounts."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from minio import Minio
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from perfit_storage import StoreError
from perfit_storage.local_server import find_weed
from perfit_storage.s3 import S3Settings

from .rendering import MANIFESTS

START = MANIFESTS / "base/seaweedfs/start.sh"
ROOT = ("perfit-root", "secret-of-root")
SHELLS = [shell for shell in ("dash", "bash --posix", "busybox ash") if shutil.which(shell.split()[0])]
_PORTS = (9333, 8080, 8888, 8333)
_SECONDS = 60


@dataclass(frozen=True)
class Seaweedfs:
    """The mounts of a pod, and the ports of its server.

    Attributes:
        root: With ``clients``, ``data`` and ``tmp``.
        offset: Of all ports.
    """

    root: Path
    offset: int

    def mount(self, files: Mapping[str, str]) -> None:
        """Give the mount of the clients' Secrets other contents, all at once, as a kubelet does."""
        clients = self.root / "clients"
        version = f"..{time.monotonic_ns()}"
        (clients / version).mkdir(parents=True)
        for name, text in files.items():
            (clients / version / name).write_text(text)
            if not (clients / name).is_symlink():
                (clients / name).symlink_to(f"..data/{name}")
        (clients / "..new").symlink_to(version)
        (clients / "..new").rename(clients / "..data")
        for link in clients.iterdir():
            if link.name not in files and not link.name.startswith(".."):
                link.unlink()

    def client(self, access_key: str, secret_key: str) -> Minio:
        return S3Settings(f"http://127.0.0.1:{8333 + self.offset}", access_key, secret_key).connect(retries=False)

    def answer(self, access_key: str, secret_key: str) -> str:
        """What the server says of a key: it asks for an object that is not there."""
        try:
            read(self.client(access_key, secret_key), "nothing")
        except S3Error as error:
            return error.code
        except (HTTPError, MinioException) as error:
            return type(error).__name__
        raise AssertionError("there is such an object")

    def wait_for(self, access_key: str, secret_key: str, answer: str, seconds: float = _SECONDS) -> float:
        """Wait for an answer; return the seconds that it took."""
        started = time.monotonic()
        while (last := self.answer(access_key, secret_key)) != answer:
            assert time.monotonic() < started + seconds, f"{last} in place of {answer}"
            time.sleep(0.1)
        return time.monotonic() - started


def read(client: Minio, key: str) -> bytes:
    """By GET: a HEAD's error says nothing but a status."""
    response = client.get_object(bucket_name="perfit", object_name=key)
    try:
        return response.read()
    finally:
        response.close()
        response.release_conn()


@contextmanager
def seaweedfs(root: Path, files: Mapping[str, str], shell: str = "sh") -> Iterator[Seaweedfs]:
    """Start it with clients' Secrets; skip the tests where there is no `weed`."""
    try:
        weed = find_weed()
    except StoreError as error:
        pytest.skip(str(error))
    server = Seaweedfs(root, _offset())
    for name in ("data", "tmp"):
        (root / name).mkdir(parents=True, exist_ok=True)
    server.mount(files)
    environment = {
        "PATH": f"{weed.parent}:{os.defpath}",
        "HOME": str(root / "tmp"),
        "START_ROOT": str(root),
        "START_PORT_OFFSET": str(server.offset),
        "ROOT_ACCESS_KEY": ROOT[0],
        "ROOT_SECRET_KEY": ROOT[1],
    }
    with (root / "log").open("wb") as log:
        program, *options = shell.split()
        command = [shutil.which(program), *options, str(START)]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        started = time.monotonic()
        while not (root / "tmp/ready").exists():
            late = process.poll() is not None or time.monotonic() > started + _SECONDS
            assert not late, (root / "log").read_text()[-3000:]
            time.sleep(0.1)
        server.wait_for("nobody", "secret", "InvalidAccessKeyId")
        yield server
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _offset() -> int:
    for offset in random.sample(range(1_000, 12_000), 50):
        if all(_is_free(port + offset + more) for port, more in itertools.product(_PORTS, (0, 10_000))):
            return offset
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
