"""Ctrl-C and SIGTERM: a command says at once that it stops and how to go on, and ends with what it has started."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from perfit_pipelines.options import errors

_TOLD_S = 1.0


@contextmanager
def stopping_is_said(how_to_go_on: str) -> Iterator[None]:
    """Within the context, the first Ctrl-C or SIGTERM is answered at once and ends the command; others change nothing.

    Raises:
        typer.Exit: With code 130 after Ctrl-C, 143 after SIGTERM.
    """
    # A thread says it: what the signal interrupted may hold the locks of the terminal's bars.
    said = threading.Thread(
        target=lambda: errors.print(f"stopping; {how_to_go_on}", markup=False), name="stopping", daemon=True
    )
    first = 0

    def stop(number, frame) -> None:
        nonlocal first
        if not first:
            first = number
            said.start()
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    if before[signal.SIGINT] == signal.SIG_IGN:  # as in the background of a script
        del before[signal.SIGINT]
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    except KeyboardInterrupt:
        said.join(_TOLD_S)
        raise typer.Exit(128 + first) from None  # as a shell reports a process that a signal has ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
