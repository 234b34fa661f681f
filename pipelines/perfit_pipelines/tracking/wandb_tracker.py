"""Metrics in Weights & Biases: a run for the federation and one for each client, in one group, rounds as steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

import wandb

from perfit.errors import PerfitError, printable
from perfit_pipelines.tracking.history import History, TrackedRound

_ID = 32
"""Characters of an identity in a run's id."""


class WandbTracker:
    """A project, with the account and the mode that W&B's own variables say.

    A run's id follows from the federation's identity, and a run that is resumed says how far it is written. Offline
    (WANDB_MODE) nothing knows that: each call leaves the whole history, which the server merges by id when synced.
    """

    is_live: ClassVar[bool] = False  # it starts and ends a process for each run

    def __init__(self, project: str, directory: Path):
        self._project, self._directory = project, directory

    def write(self, history: History) -> str:
        """See ``Tracker.write``."""
        branch = f"-{history.branch}" if history.branch else ""
        identity = history.identity[:_ID] + branch
        try:
            with self._run(history, "federation", history.name + branch, identity) as run:
                _log(run, ((round, round.metrics) for round in history.rounds))
            for client in history.clients:
                with self._run(history, "client", client, f"{identity}-{client}") as run:
                    _log(run, history.of_client(client))
        except wandb.Error as error:
            raise PerfitError(
                f"Weights & Biases: {printable(str(error))}",
                "log in (wandb login), or set WANDB_MODE=offline; then: perfit track wandb",
            ) from error
        return f"Weights & Biases: project {self._project!r}, group {identity}"

    def _run(self, history: History, kind: str, name: str, run_id: str) -> wandb.Run:
        return wandb.init(
            project=self._project,
            dir=self._directory,
            id=run_id,
            name=name,
            group=history.identity[:_ID],
            job_type=kind,
            config=dict(history.settings),
            resume="allow",
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True
            ),
        )


def _log(run: wandb.Run, rounds: Iterable[tuple[TrackedRound, Mapping[str, float]]]) -> None:
    for round, metrics in rounds:
        if round.number >= run.step:
            run.log({**metrics, "committed": round.times.committed}, step=round.number)
