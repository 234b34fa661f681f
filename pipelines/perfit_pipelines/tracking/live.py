"""Writes metrics while a run goes on: after each round that was committed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from perfit.errors import PerfitError
from perfit_components.log_lines import parse_phase
from perfit_pipelines.tracking.trackers import Tracker

if TYPE_CHECKING:
    from perfit_pipelines.tracking.history import History


class LiveTracking:
    """A thread that writes a federation's metrics when a client begins with the next round.

    A server that does not answer holds up no training: what is missing is written after a later round, or by
    :meth:`finish`.
    """

    def __init__(self, trackers: Sequence[Tracker], read: Callable[[], History | None]):
        self._trackers, self._read = trackers, read
        self._round, self._is_over, self._wake = 0, False, threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> LiveTracking:
        if any(tracker.is_live for tracker in self._trackers):
            self._thread.start()
        return self

    def __exit__(self, *exception) -> None:
        self._is_over = True
        self._wake.set()
        if self._thread.is_alive() and exception[0] is None:
            self._thread.join()

    def on_line(self, line: str) -> None:
        """Take a line of the run's output."""
        phase = parse_phase(line)
        if phase and phase.round > self._round:
            self._round = phase.round
            self._wake.set()

    def finish(self) -> list[str]:
        """Write what is not written yet; return where it is.

        Raises:
            PerfitError: It cannot be written, or the store cannot be reached.
        """
        history = self._read()
        return [tracker.write(history) for tracker in self._trackers] if history and self._trackers else []

    def _work(self) -> None:
        while self._wake.wait() and not self._is_over:
            self._wake.clear()
            try:
                history = self._read()
                for tracker in self._trackers:
                    if history and tracker.is_live:
                        tracker.write(history)
            except PerfitError:  # finish() says it
                continue
