"""What a person sees while a local run works."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from perfit.cluster_spec import ClusterSpec
from perfit_components.log_lines import (
    Failure,
    Phase,
    Step,
    format_failure,
    parse_failure,
    parse_phase,
    parse_step,
    parse_task,
)

_SEARCH = 0


@dataclass(frozen=True)
class Work:
    """What a run has before it, in optimiser steps.

    Args:
        first: Its first round.
        rounds: The federation's last.
        clients: Clients that take part in a round.
        steps: Steps of a client's tuning.
        searching: Searches: of clients that have no architecture yet, and of those that search again.
        search_steps: Steps of a search; 0 for none.
    """

    first: int
    rounds: int
    clients: int
    steps: int
    searching: int
    search_steps: int

    @classmethod
    def of(cls, spec: ClusterSpec, first: int, known: int) -> Work:
        """Return the work of a run that begins with round ``first``, of whose clients ``known`` have searched."""
        tiers = [sum(client.tier == tier for client in spec.clients) for tier in spec.tiers_in_use()]
        clients = sum(map(spec.participation.of_tier, tiers))
        searching = min(len(spec.clients) - known, clients * (spec.rounds - first + 1))
        searching += clients * sum(map(spec.searches_after, range(first, spec.rounds + 1)))
        search_steps = spec.search.steps if spec.search and not spec.search.is_drawn else 0
        return cls(first, spec.rounds, clients, spec.training.steps, searching, search_steps)

    def __str__(self) -> str:
        searches = self.searching and self.search_steps
        search = f", and {self.searching} searches of {self.search_steps} steps" if searches else ""
        rounds = f"round {self.first}" if self.first == self.rounds else f"rounds {self.first} to {self.rounds}"
        return f"would run {rounds}: {self.clients} clients a round, {self.steps} steps each{search}"

    @property
    def total(self) -> int:
        """All steps."""
        return (self.rounds - self.first + 1) * self.clients * self.steps + self.searching * self.search_steps


def time_left(elapsed_s: float, done: int, total: int) -> str:
    """Estimate the time that is left, all rounds and their loading included, from what the steps so far took.

    >>> time_left(60, 10, 40)
    'about 3 min left'
    """
    if not done:
        return ""
    minutes = round(elapsed_s * max(0, total - done) / done / 60)
    if minutes < 1:
        return "less than a minute left"
    return f"about {minutes} min left" if minutes < 120 else f"about {minutes // 60} h {minutes % 60} min left"


class RunDisplay:
    """In a terminal a bar for the run and one for each client that works; otherwise a line for each stage.

    Args:
        work: What the run has before it.
        console: Where to draw. Its current stream is kept, because the run redirects standard output.
        clock: Seconds.
    """

    def __init__(self, work: Work, console: Console, clock: Callable[[], float] = time.monotonic):
        self._work, self._clock, self._round = work, clock, work.first
        self._console = Console(file=console.file, highlight=False, emoji=False, soft_wrap=True, quiet=console.quiet)
        self._bars: dict[str, TaskID] = {}
        self._steps: dict[tuple[int, str], int] = {}
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=console.quiet or not self._console.is_terminal,
        )

    def __enter__(self) -> RunDisplay:
        self._started = self._clock()
        self._overall = self.progress.add_task("preparing the federation", total=self._work.total, detail="")
        self.progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self.progress.stop()

    def on_line(self, line: str) -> None:
        """Show what a line of the run's output reports, if anything."""
        if step := parse_step(line):
            self._on_step(step)
        elif phase := parse_phase(line):
            self._on_phase(phase)
        elif task := parse_task(line):
            # A task that occurs several times in the pipeline has a number at the end of its name.
            self._on_task(task.rstrip("-0123456789"))
        elif failure := parse_failure(line):
            self._on_failure(failure)

    def _on_task(self, task: str) -> None:
        if task == "prepare":
            self._say("preparing the federation (the first time, the model is converted)")
        elif task == "wait":
            self._say(f"round {self._round}/{self._work.rounds}  waiting for remote clients")
        elif task == "aggregate":
            for client in list(self._bars):
                self._remove(client)
            self._say(f"round {self._round}/{self._work.rounds}  averaging the updates and drawing the report")

    def _on_phase(self, phase: Phase) -> None:
        self._round = max(self._round, phase.round)
        if phase.name == "done":
            self._remove(phase.client)
            self._count(phase.round, phase.client, self._work.steps)  # of a remote client no step was seen
            return
        self._describe(phase.client, phase.name)
        self.progress.update(self._overall, description=f"round {self._round}/{self._work.rounds}")

    def _on_step(self, step: Step) -> None:
        searching = step.round == _SEARCH
        bar = self._describe(step.client, "searching" if searching else "training")
        detail = f"step {step.step}/{step.steps}  loss {step.loss:.3f}"
        self.progress.update(bar, total=step.steps, completed=step.step, detail=detail)
        self._count(step.round, step.client, step.step)
        if step.step == step.steps and not searching:
            self._describe(step.client, "evaluating")
        if step.step == step.steps and not self._console.is_terminal:
            did = "searched" if searching else "trained"
            stage = f"round {self._round}/{self._work.rounds}  {step.client}  {did}"
            self._console.print(f"{stage}, {step.steps} steps, loss {step.loss:.3f}{self._left(', ')}", markup=False)

    def _on_failure(self, failure: Failure) -> None:
        self._remove(failure.client)
        self._count(self._round, failure.client, self._work.steps)  # for the estimate: nothing more comes of it
        self._console.print(format_failure(failure.client, failure.reason), markup=False)

    def _count(self, round: int, client: str, step: int) -> None:
        self._steps[round, client] = step
        done = sum(self._steps.values())
        self.progress.update(self._overall, completed=done, detail=self._left())

    def _left(self, before: str = "") -> str:
        text = time_left(self._clock() - self._started, sum(self._steps.values()), self._work.total)
        return f"{before}{text}" if text else ""

    def _describe(self, client: str, phase: str) -> TaskID:
        if client not in self._bars:
            self._bars[client] = self.progress.add_task(client, total=None, detail="")
        self.progress.update(self._bars[client], description=f"  {client}  {phase}")
        return self._bars[client]

    def _remove(self, client: str) -> None:
        if client in self._bars:
            self.progress.remove_task(self._bars.pop(client))

    def _say(self, text: str) -> None:
        """A line, or in a terminal what the bar of the run says."""
        self.progress.update(self._overall, description=text)
        if not self._console.is_terminal:
            self._console.print(text, markup=False)
