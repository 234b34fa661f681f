"""A bench on Kubeflow: the runs that work on its cells, and how they are followed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import typer
from kfp_server_api import ApiException

from perfit.bench.spec import Pods
from perfit.errors import PerfitError, printable
from perfit.locations import PACKAGE, is_path
from perfit_pipelines.bench_pipeline import LOOP, bench_pipeline
from perfit_pipelines.cluster.causes import explain_bench_failure
from perfit_pipelines.cluster.cells import RemoteCells
from perfit_pipelines.cluster.connection import Kubeflow
from perfit_pipelines.cluster.follow import Pace, exit_code, follow
from perfit_pipelines.cluster.following import STANDALONE, pods_of, say_stopped
from perfit_pipelines.cluster.logs import PodLogs
from perfit_pipelines.cluster.nodes import FAILED, FINAL, SUCCEEDED, RunView, TaskReader, TaskState
from perfit_pipelines.cluster.progress import RunProgress
from perfit_pipelines.cluster.submit import start_run
from perfit_pipelines.cluster.tasks import POD, Task
from perfit_pipelines.cluster.upload import NO_LIMITS, knows_limits, read_ir, upload_compiled
from perfit_pipelines.compile import PARAMETER_BYTES, Compiled, check_size, compiled_yaml
from perfit_pipelines.options import INTERRUPTED, errors, out
from perfit_pipelines.workflow_size import listed_nodes
from perfit_pipelines.writing import writing
from perfit_storage import BenchStore

_AGAIN = "run the same command again"
_RUN_ID = re.compile(r"[0-9a-zA-Z-]{1,64}")
_REASON = 200
"""Characters of a reason that are shown beside a cell's state."""


def batches(names: Sequence[str]) -> Iterator[list[str]]:
    """Divide cells among runs, one after the other: a run's parameter has a limit, which is some 200 cells."""
    batch: list[str] = []
    for name in names:
        if batch and len(json.dumps([*batch, name])) > PARAMETER_BYTES:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch


def run_cells(runner: Runner, remote: RemoteCells) -> None:
    """Let Kubeflow run cells, fetch their results, and say which have none and why.

    Raises:
        PerfitError: Some have none; or the store or Kubeflow cannot be used.
        typer.Exit: Following ended before.
    """
    if is_path(runner.model) or runner.model.startswith(PACKAGE):
        errors.print(f"warning: the pods will look for the model {runner.model} in their image", markup=False)
    if not knows_limits(runner.kubeflow):
        errors.print(f"warning: {NO_LIMITS}")
        runner = replace(runner, pods=runner.pods.without_limits())
    runner.run(remote)
    reasons = list(remote.reasons())
    for cell, reason in reasons:
        errors.print(f"{cell.title}: {reason}", markup=False)
    if reasons:
        raise PerfitError(
            f"{len(reasons)} of {len(remote.cells)} runs have no result",
            f"see why above; then {_AGAIN}, which goes on with these",
        )


@dataclass(frozen=True)
class CellsRun:
    """A run of cells: see :class:`perfit_pipelines.cluster.progress.Followed`."""

    names: Sequence[str]
    ir: dict[str, Any]

    @cached_property
    def tasks(self) -> list[Task]:
        """The cells' tasks, in the order of the loop."""
        ((loop, task),) = self.ir["root"]["dag"]["tasks"].items()
        (key,) = self.ir["components"][task["componentRef"]["name"]]["dag"]["tasks"]
        places = (f".root.{loop}.iteration-iterations({i}:{i}).iteration-item" for i in range(len(self.names)))
        stage = task["taskInfo"]["name"]
        return [Task(key, stage, name, f"{place}.{key}.{POD}") for name, place in zip(self.names, places, strict=True)]

    @property
    def listed(self) -> int:
        """How many nodes KFP lists before its list may stop."""
        return listed_nodes(self.ir)

    @property
    def success(self) -> str:
        """What to say of a run that succeeded."""
        return f"what its {len(self.names)} cells gave is fetched"

    def again(self, run_id: str) -> str:
        """How to follow the run again."""
        return _AGAIN


@dataclass(frozen=True)
class Results:
    """What the store tells of cells while their run is followed: KFP's list stops after some twenty."""

    store: BenchStore
    tasks: Sequence[Task]
    _reasons: dict[str, str] = field(default_factory=dict)

    def add(self, view: RunView) -> RunView:
        """See :class:`perfit_pipelines.cluster.nodes.Source`."""
        states = {state.label: state for state in view.tasks}
        try:
            done, failed = self.store.results(), self.store.failures()
            for task in self.tasks:
                state = states.get(task.label) or TaskState(task.key, task.stage, task.label, "")
                if task.label in done:
                    states[task.label] = replace(state, state=SUCCEEDED)
                elif task.label in failed:
                    states[task.label] = replace(state, state=FAILED, reason=self._reason(task.label))
        except PerfitError:
            return view  # a help, not a need
        return replace(view, tasks=list(states.values()), told_by=(*view.told_by, "the store"))

    def _reason(self, name: str) -> str:
        if name not in self._reasons:
            reason = self.store.find_failure(name) or ""
            self._reasons[name] = printable(reason.partition("\n")[0][:_REASON])
        return self._reasons[name]


@dataclass(frozen=True)
class Runner:
    """How cells are run on Kubeflow.

    Args:
        kubeflow: Where.
        name: Of the bench.
        model: That the bench file names.
        pods: What each cell's pod needs.
        secret: Name of the Kubernetes Secret with the keys to the store.
        service_account: Of the pods.
        note: File with the id of the run that is under way.
        pace: How often it is looked at.
        context: Of the kubeconfig whose cluster tells of the pods; None for its current one, if it can.
    """

    kubeflow: Kubeflow
    name: str
    model: str
    pods: Pods
    secret: str
    service_account: str | None
    note: Path
    pace: Pace
    context: str | None = None

    def run(self, remote: RemoteCells) -> None:
        """Fetch what is done, follow a run that is under way, then run the rest; no cell is tried twice.

        Raises:
            PerfitError: The store or Kubeflow cannot be used.
            typer.Exit: Following ended, and the results are not all there.
        """
        data = compiled_yaml(bench_pipeline(remote.store.uri, self.pods, self.secret))
        remote.fetch()
        tried = set(remote.refused)
        if under_way := self._under_way():
            run_id, names = under_way
            out.print(f"following the run of {len(names)} cells that is under way, id {run_id}", markup=False)
            self._watch(run_id, names, data, remote)
            tried.update(names, remote.refused)
        for names in batches([name for name in remote.missing if name not in tried]):
            remote.send(names)
            self._watch(self._start(names, data), names, data, remote)

    def _under_way(self) -> tuple[str, list[str]] | None:
        """The run that an earlier command started, and its cells, if it is not over."""
        run_id = self.note.read_text(encoding="utf-8") if self.note.exists() else ""
        if not _RUN_ID.fullmatch(run_id):
            return None
        try:
            with self.kubeflow.calling(f"show the run {run_id}"):
                run = self.kubeflow.read_run(run_id)
        except PerfitError as error:
            if isinstance(error.__cause__, ApiException) and error.__cause__.status == 404:
                return None
            raise
        names = ((run.runtime_config and run.runtime_config.parameters) or {}).get("cells")
        is_ours = isinstance(names, list) and all(isinstance(name, str) and name.isprintable() for name in names)
        return (run_id, names) if is_ours and run.state not in FINAL else None

    def _start(self, names: list[str], data: bytes) -> str:
        """Start a run of cells, and return its id."""
        compiled = Compiled(data, {LOOP: len(names)})
        size = compiled.size()
        check_size(compiled, size)
        about = f"Cells of the bench {self.name}"
        pipeline, given = f"{self.name}-bench", {"cells": names}
        version = upload_compiled(self.kubeflow, pipeline, about, data, size, given, "pods")
        title = f"{pipeline} {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        run = start_run(self.kubeflow, version, title, self.name, self.service_account)
        with writing(self.note):
            self.note.write_text(run.run_id, encoding="utf-8")
        link = self.kubeflow.link(f"runs/details/{run.run_id}")
        out.print(f"run {title} of {len(names)} cells, id {run.run_id}{f': {link}' if link else ''}", markup=False)
        return run.run_id

    def _watch(self, run_id: str, names: Sequence[str], data: bytes, remote: RemoteCells) -> None:
        """Follow a run, and fetch what it gave."""
        run, namespace = CellsRun(names, read_ir(data)), self.kubeflow.namespace or STANDALONE
        progress = RunProgress(run_id, run, out)
        pods = pods_of(namespace, run_id, run.tasks, self.context)
        sources = [source for source in (pods, Results(remote.store, run.tasks)) if source]
        try:
            with progress:
                reader = TaskReader(run.tasks)
                view = follow(self.kubeflow, run_id, reader, progress, sources, self.pace, again=_AGAIN)
            remote.fetch()
            logs, limit = PodLogs(self.kubeflow, run_id, namespace), self.pods.deadline_seconds
            failed = view.state == FAILED
            progress.end(view.state, explain_bench_failure(view, limit, logs, pods) if failed else [])
        except KeyboardInterrupt:
            say_stopped(self.kubeflow, run_id, _AGAIN)
            raise typer.Exit(INTERRUPTED) from None
        if view.state in FINAL:
            self.note.unlink(missing_ok=True)
        if view.state not in (SUCCEEDED, FAILED):
            raise typer.Exit(exit_code(view.state))
