"""The ``perfit`` command in a terminal of its own."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

_SILENCE_S = 300
COMMAND = [sys.executable, "-c", "from perfit_pipelines.cli import main; main()"]


@dataclass
class Terminal:
    """A process in a pseudo-terminal, and what it has shown so far: without colours and movements, and with them."""

    process: int
    file: int
    shown: str = field(default="", init=False)
    raw: str = field(default="", init=False)

    def wait_for(self, text: str, after: int = 0) -> int:
        """Read until a text is shown beyond a position of what was; return where it ends."""
        while text not in self.shown[after:]:
            self._read()
        return self.shown.index(text, after) + len(text)

    def send(self, keys: str) -> None:
        """Press keys; the end of a line is the return key."""
        os.write(self.file, keys.replace("\n", "\r").encode())

    def end(self) -> int:
        """Read to the end; return the exit code."""
        with suppress(EOFError):
            while True:
                self._read()
        _, status = os.waitpid(self.process, 0)
        self.process = 0
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> None:
        ready, _, _ = select.select([self.file], [], [], _SILENCE_S)
        assert ready, f"nothing for {_SILENCE_S} s after: {self.shown[-500:]}"
        try:
            text = os.read(self.file, 4096)
        except OSError:  # Linux: nobody has the other end
            text = b""
        if not text:
            raise EOFError(self.shown)
        self.raw += text.decode(errors="replace")
        self.shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode(errors="replace"))


@contextmanager
def perfit_in_terminal(*arguments: str | Path, cwd: Path) -> Iterator[Terminal]:
    """Run the command; it is killed at the end, if it still runs."""
    process, file = pty.fork()
    if process == 0:
        os.chdir(cwd)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40", "PERFIT_HOME": str(cwd / ".perfit")}
        os.execv(COMMAND[0], [*COMMAND, *map(str, arguments)])
    terminal = Terminal(process, file)
    try:
        yield terminal
    finally:
        if terminal.process:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        os.close(file)
