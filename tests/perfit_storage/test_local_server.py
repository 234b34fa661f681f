"""The local S3 server, with a real SeaweedFS: how commands on one machine share it."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perfit_storage import AccessDenied, StoreError, open_store
from perfit_storage.local_server import LocalS3Server, User, find_weed

# Starts or joins the directory's server, prints its address, waits for the end of its input, writes, and leaves.
USE = """
import sys
from pathlib import Path
from perfit_storage import open_store
from perfit_storage.local_server import LocalS3Server
with LocalS3Server(Path(sys.argv[1])) as server:
    store = open_store(server.store_uri, server.environment)
    print(server.environment["AWS_ENDPOINT_URL"], flush=True)
    sys.stdin.read()
    store.put(f"from-{sys.argv[2]}", b"x")
"""


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")


@pytest.fixture(autouse=True)
def _needs_seaweedfs() -> None:
    try:
        find_weed()
    except StoreError as error:
        pytest.skip(str(error))


def use(directory: Path, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", USE, str(directory), name]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def server_pid(directory: Path) -> int:
    """The server's first process, which leads the group of all."""
    return json.loads((directory / "state.json").read_text())["group"]


def process_state(pid: int) -> list[str]:
    """State letter and parent's id of a process; nothing if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
    except FileNotFoundError:
        return []


def is_running(pid: int) -> bool:
    return process_state(pid)[:1] not in ([], ["Z"])


def parent(pid: int) -> int:
    return int(process_state(pid)[1])


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline, "the server still runs"
        time.sleep(0.02)


def test_commands_share_a_server_and_a_restart_keeps_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = tmp_path / "new, and with a comma"
    commands = [use(directory, name) for name in ("a", "b", "c")]
    endpoints = {command.stdout.readline().strip() for command in commands}
    assert len(endpoints) == 1, "commands that start at once share one server"
    pid = server_pid(directory)
    # The one that started the server leaves first, and must wait for the others.
    for command in sorted(commands, key=lambda command: command.pid != parent(pid)):
        assert is_running(pid)
        command.stdin.close()
        time.sleep(0.3)
    assert [command.wait() for command in commands] == [0, 0, 0]
    assert not is_running(pid)

    users = [User("anna", "anna-id", "anna-secret", ("Read:perfit/anna/*", "Write:perfit/anna/*"))]
    with LocalS3Server(directory, users) as server:
        store = open_store(server.store_uri, server.environment)
        assert list(store.list("")) == ["from-a", "from-b", "from-c"]
        check_joining(directory, server)
        check_hanging(directory, monkeypatch)
        check_users(server)
        check_privacy(directory, server)
        pid = server_pid(directory)
    assert not is_running(pid)


def check_joining(directory: Path, server: LocalS3Server) -> None:
    with LocalS3Server(directory) as joined:
        assert joined.environment == server.environment
    open_store(server.store_uri, server.environment).put("after", b"the joined command ended")


def check_hanging(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perfit_storage.local_server._JOIN_TIMEOUT_S", 0)
    pid = server_pid(directory)
    os.killpg(pid, signal.SIGSTOP)
    try:
        with pytest.raises(StoreError, match="does not answer") as caught, LocalS3Server(directory):
            pass
    finally:
        os.killpg(pid, signal.SIGCONT)
    assert f"kill -9 -- -{pid}" in caught.value.fix


def check_users(server: LocalS3Server) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "anna-id", "AWS_SECRET_ACCESS_KEY": "anna-secret"}
    anna = open_store(server.store_uri, server.environment | keys)
    assert anna.create("anna/a", b"1")
    assert anna.get("anna/a").data == b"1"
    with pytest.raises(AccessDenied, match="cannot write s3://perfit/anna-b/a"):
        anna.put("anna-b/a", b"")
    with pytest.raises(AccessDenied, match="cannot read s3://perfit/from-a") as caught:
        anna.get("from-a")
    assert "anna-secret" not in str(caught.value)


def check_privacy(directory: Path, server: LocalS3Server) -> None:
    assert server.environment["AWS_SECRET_ACCESS_KEY"] not in (directory / "server.log").read_text()
    assert stat.S_IMODE(os.stat(directory).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(directory / "users.json").st_mode) == 0o600


def test_the_server_ends_with_a_killed_command_and_loses_nothing(tmp_path: Path):
    command = use(tmp_path, "killed")
    endpoint = command.stdout.readline().strip()
    pid = server_pid(tmp_path)
    with LocalS3Server(tmp_path) as joined:
        assert joined.environment["AWS_ENDPOINT_URL"] == endpoint
        open_store(joined.store_uri, joined.environment).put("a", b"acknowledged")
        command.kill()
        command.communicate()
        wait_for_end(pid)
    with LocalS3Server(tmp_path) as server:
        assert open_store(server.store_uri, server.environment).get("a").data == b"acknowledged"


def test_a_server_that_dies_at_the_start_shows_its_log(tmp_path: Path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "filerldb2").write_text("a file where SeaweedFS wants a directory")
    with (
        pytest.raises(StoreError, match=r"(?s)ended with code \d+; its log ends .*filerldb2"),
        LocalS3Server(tmp_path),
    ):
        pass


def test_seaweedfs_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StoreError, match=r"perfit-kubeflow\[local\]"), LocalS3Server(tmp_path):
        pass
