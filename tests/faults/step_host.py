"""Runs steps, one at a time and each in a process of its own, which the reader of this program's output may kill.

Each line of its input is an order; it answers with two lines: the step's process id when it starts, its wait status
when it has ended. The processes are forked from this one, so that none imports torch again.

An order may have a number: the step dies right before so many changes in its store, if that is a directory.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

import jinja2  # noqa: F401
import matplotlib.backends.backend_svg
import matplotlib.figure  # noqa: F401
import peft  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import perfit.client  # noqa: F401
from perfit_components.steps.aggregate import close_round
from perfit_components.steps.client import train
from perfit_components.steps.prepare import prepare

STEPS = {"prepare": prepare, "client": train, "aggregate": close_round}
CHANGES = {"os.link", "os.mkdir", "os.remove", "os.rename"}


class Changes:
    """Counts the changes in a directory, and ends the process before one of them."""

    def __init__(self, uri: str, last: int | None):
        self.directory, self.last, self.number = uri.removeprefix("file://"), last, 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in CHANGES and not (event == "open" and arguments[2] & os.O_CREAT):
            return
        if isinstance(arguments[0], str | os.PathLike) and os.fspath(arguments[0]).startswith(self.directory):
            self.number += 1
            if self.number == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def run(order: dict[str, Any]) -> None:
    """Run a step, with its output in a file, then end; the last line is the number of changes."""
    code = 1
    os.environ.update(order["environment"])
    output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    try:
        changes = Changes(order["uri"], order["last"])
        sys.addaudithook(changes)
        STEPS[order["step"]](*order["arguments"])
        print(changes.number)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        run(json.loads(line))
    print(pid, flush=True)
    print(os.waitpid(pid, 0)[1], flush=True)
