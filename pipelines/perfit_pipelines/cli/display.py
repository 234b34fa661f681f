"""What a person sees while a local run works."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from perfit.cluster_spec import ClusterSpec
from perfit_components.log_lines import Step, format_failure, parse_failure, parse_step, parse_task

_DESCRIPTIONS = {
    "prepare": "preparing the federation (the first time, the model is converted)",
    "aggregate": "averaging the updates and drawing the report",
}


class RunDisplay:
    """A bar for each round and client in a terminal; otherwise a line for each step.

    Args:
        spec: The federation.
        console: Where to draw. Its current stream is kept, because the run redirects standard output.
    """

    def __init__(self, spec: ClusterSpec, console: Console):
        self._rounds = spec.rounds
        self._console = Console(file=console.file, highlight=False, emoji=False, soft_wrap=True)
        self._bars: dict[tuple[int, str], TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("step {task.completed}/{task.total}  loss {task.fields[loss]:.3f}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> RunDisplay:
        self._progress.start()
        return self

    def __exit__(self, *exception) -> None:
        self._progress.stop()

    def on_line(self, line: str) -> None:
        """Show what a line of the run's output reports, if anything."""
        step, task, failure = parse_step(line), parse_task(line), parse_failure(line)
        if step:
            self._show(step)
        elif task:
            # A task that occurs several times in the pipeline has a number at the end of its name.
            description = _DESCRIPTIONS.get(task.rstrip("-0123456789"))
            if description:
                self._print(description)
        elif failure:
            self._print(format_failure(failure.client, failure.reason))

    def _show(self, step: Step) -> None:
        stage = f"round {step.round}/{self._rounds}" if step.round else "search"
        if not self._console.is_terminal:
            self._print(f"{stage}  {step.client}  step {step.step}/{step.steps}  loss {step.loss:.3f}")
            return
        key = (step.round, step.client)
        if key not in self._bars:
            name = f"{stage:<10} {step.client}"
            self._bars[key] = self._progress.add_task(name, total=step.steps, loss=step.loss)
        self._progress.update(self._bars[key], completed=step.step, loss=step.loss)

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False)
