"""Ctrl-C: a command says at once that it stops and how to go on. SIGTERM: it ends with what it has started."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from perfit_pipelines.options import INTERRUPTED, errors

_TERMINATED = 128 + signal.SIGTERM
_TOLD_S = 1.0


def exit_on_sigterm() -> None:
    """Let SIGTERM end this process as ``sys.exit`` does, with code 143: what it waits for is stopped too."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(_TERMINATED))


@contextmanager
def stopping_is_said(how_to_go_on: str) -> Iterator[None]:
    """Within the context, the first Ctrl-C is answered at once and ends the command; further ones change nothing.

    Raises:
        typer.Exit: With code 130, after Ctrl-C.
    """
    # A thread says it: what the signal interrupted may hold the locks of the terminal's bars.
    said = threading.Thread(
        target=lambda: errors.print(f"stopping; {how_to_go_on}", markup=False), name="stopping", daemon=True
    )

    def stop(number, frame) -> None:
        if not said.ident:
            said.start()
            raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    if not callable(before):  # ignored, as in the background of a script
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    except KeyboardInterrupt:
        said.join(_TOLD_S)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGINT, before)
