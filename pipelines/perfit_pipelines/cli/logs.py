"""The command ``logs``: what the tasks of a local run printed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import IO, Annotated

import typer

from perfit.errors import PerfitError
from perfit_components.log_lines import parse_phase, parse_step
from perfit_pipelines import places
from perfit_pipelines.options import INTERRUPTED

LOG_FILE = "run.log"
_POLL_S = 0.5


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(logs)


def logs(
    federation: Annotated[str | None, typer.Argument(help="Name of the federation, if several ran here.")] = None,
    lines: Annotated[int | None, typer.Option("--lines", "-n", min=0, help="Only so many from the end.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is written from now on.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print an object a line; steps and phases by their parts.")
    ] = False,
) -> None:
    """Print the log of a federation's last run on this machine: all that its tasks printed.

    Logs of a run on Kubeflow are on its tasks' pages: perfit follow names them.
    """
    path = _find(federation)
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in _read(file, lines, follow):
                print(_as_json(line) if json else line, end="", flush=follow)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _read(file: IO[str], count: int | None, follow: bool) -> Iterator[str]:
    """Yield the last lines; to ``follow``, only whole ones, and then those that are written, each when it is whole."""
    begun = ""

    def there() -> Iterator[str]:
        nonlocal begun
        for line in file:
            if follow and not line.endswith("\n"):
                begun = line
            else:
                yield line

    yield from there() if count is None else deque(there(), maxlen=count)
    while follow:
        begun += file.readline()
        if begun.endswith("\n"):
            yield begun
            begun = ""
        else:
            time.sleep(_POLL_S)


def _as_json(line: str) -> str:
    """Return a line of a log as an object on a line."""
    step, phase = parse_step(line), parse_phase(line)
    parts = (
        asdict(step) if step else {"round": phase.round, "client": phase.client, "phase": phase.name} if phase else {}
    )
    return dumps({"text": line.rstrip("\n"), **parts}, ensure_ascii=False) + "\n"


def _find(name: str | None) -> Path:
    directory = places.all_results()
    names = sorted(path.parent.name for path in directory.glob(f"*/{LOG_FILE}"))
    # What follows a name's dot is another method, or the hash of a store.
    found = [name] if name in names else [other for other in names if name is None or other.startswith(f"{name}.")]
    if len(found) == 1:
        return directory / found[0] / LOG_FILE
    what = "several runs" if found else f"no run of {name!r}" if name else "no run"
    raise PerfitError(
        f"{directory} has the log of {what}",
        f"name one: perfit logs {' | '.join(names)}" if names else "run a federation first: perfit run FILE",
    )
