"""A Python that has imported torch already, for the tasks of KFP's local runner.

Each task is a process of its own, as KFP starts it, but forked from one that has done the imports: these take most of
the time of a task on a toy model. What a task reads from its environment while it imports is that of the first one.

Run as a program, this is the process that forks: it listens on a Unix socket until its input ends.
"""

from __future__ import annotations

import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_LAUNCHER = """\
#!{python} -IS
import json, os, socket, sys

with socket.socket(socket.AF_UNIX) as host:
    host.connect({address!r})
    order = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(host, [len(order).to_bytes(4, "big")], [0, 1, 2])
    host.sendall(order)
    sys.exit(int(host.recv(3) or b"137"))
"""


@contextmanager
def warm_python(directory: Path) -> Iterator[None]:
    """Within the context, KFP's local runner starts its tasks so; the first one waits for the imports.

    Args:
        directory: An empty one, for the socket and the program that stands for Python.
    """
    from kfp.local import subprocess_task_handler

    launcher, address = directory / "python", directory / "socket"
    hosts: list[subprocess.Popen] = []
    starting = threading.Lock()  # KFP runs the iterations of a loop in threads

    @contextmanager
    def environment(**_) -> Iterator[str]:
        with starting:
            if not hosts:
                hosts.append(_start(address))
                launcher.write_text(_LAUNCHER.format(python=sys.executable, address=str(address)))
                launcher.chmod(0o700)
        yield str(launcher)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess_task_handler, "environment", environment)
        yield
    for host in hosts:
        host.communicate()


def _start(address: Path) -> subprocess.Popen:
    command = [sys.executable, "-P", __file__, address]  # not from this directory, which has a perfit too
    host = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert host.stdout.readline() == "ready\n"
    return host


def _order(address: str) -> list[str] | None:
    """Fork a process for each order; return its arguments in that process, and None here when the input has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the guards
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            ready, *_ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return None
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    listener.close()
                    return _guard(connection)


def _guard(connection: socket.socket) -> list[str]:
    """Fork the task, and return in it; here, wait until it has ended, or kill it when nobody waits for it any more."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    size, descriptors, *_ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as file:
        arguments, directory, environment = json.loads(file.read(int.from_bytes(size, "big")))
    pid = os.fork()
    if pid == 0:
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.chdir(directory)
        os.environ.clear()
        os.environ.update(environment)
        tempfile.tempdir = None  # what an import may have chosen
        return arguments
    for descriptor in [0, 1, 2, *descriptors]:
        os.close(descriptor)
    ready, *_ = select.select([task := os.pidfd_open(pid), connection], [], [])
    if task not in ready:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with suppress(OSError):
        connection.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


def _become(arguments: list[str]) -> None:
    """Run a module as ``python -m`` does."""
    option, module, *sys.argv[1:] = arguments
    assert option == "-m"
    path = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    sys.path[:0] = [entry for entry in path if entry not in sys.path]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    import gc

    import jinja2  # noqa: F401
    import kfp.dsl  # noqa: F401
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import peft  # noqa: F401
    import transformers.models.llama.modeling_llama  # noqa: F401

    import perfit.client  # noqa: F401
    import perfit_components.steps.aggregate
    import perfit_components.steps.client
    import perfit_components.steps.prepare  # noqa: F401

    gc.freeze()
    if (order := _order(sys.argv[1])) is not None:
        _become(order)
