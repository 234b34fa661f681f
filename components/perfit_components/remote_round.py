"""A round of a client that its owner runs, in a process of its own: `python -m perfit_components.remote_round JSON`.

The memory of a training ends with its process, and so does what kills it. The process that waits for rounds
(:mod:`perfit_components.remote_client`) holds this one's standard input: when it ends, this one ends too. It is killed
to be stopped, and leaves no record then, since it goes on from its checkpoint later: SIGTERM and Ctrl-C, which a
terminal or a service manager sends to all processes, mean nothing here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass

from perfit_components.steps.owner import Owner

_KILLED_S = 10.0


@dataclass(frozen=True)
class Task:
    """What the process is told.

    Args:
        uri: URI of the federation.
        round: From 1.
        name: The client's name in the cluster.
        threads: CPU threads of the training; 0 for torch's own choice.
        owner: What the owner gives the client.
    """

    uri: str
    round: int
    name: str
    threads: int
    owner: Owner

    def run(self) -> int:
        """Run the task in a process; return its exit code, negative for the signal that ended it."""
        command = [sys.executable, "-m", __spec__.name, json.dumps(asdict(self))]
        # A group of its own: what Ctrl-C reaches is the process that waits, which then ends this one.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(_KILLED_S)
            process.stdin.close()


def main() -> None:
    """Do what the argument says."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from perfit_components.steps.client import train

    fields = json.loads(sys.argv[1])
    train(**{**fields, "owner": Owner(**fields["owner"])})


def _end_with_parent() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os._exit(1)


if __name__ == "__main__":
    main()
