"""Metrics in MLflow: a parent run for the federation, a nested run for each client, rounds as steps."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # owners of private data did not ask for it
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # a quarter of a minute, not four

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

from perfit.errors import PerfitError, printable
from perfit_pipelines.tracking.history import History, TrackedRound

logging.getLogger("mlflow").setLevel(logging.WARNING)  # it announces each table of a new database

_NAMES = ("federation", "branch", "round", "digest", "client")
IDENTITY, BRANCH, ROUND, DIGEST, CLIENT = (f"perfit.{name}" for name in _NAMES)
"""Tags: what a run is found by, and how far it is written."""
_PARENT = "mlflow.parentRunId"
_KFP = "kfp.pipeline_run_id"
"""KFP's own plugin tags the run of a pipeline's run with it, and nests one for each task below."""
_METRICS, _PARAMS, _LONGEST, _PAGE = 1000, 100, 6000, 1000
"""What a server takes at once, the characters of a parameter's value, and the runs that it returns at once."""


class MlflowTracker:
    """A tracking server, or a database of its kind, and an experiment in it.

    Runs are made and written by id: a run that happens to be active in this process or that MLFLOW_RUN_ID names, as in
    a pod of KFP, is left alone.
    """

    is_live: ClassVar[bool] = True

    def __init__(self, uri: str, experiment: str, artifacts: str | None = None):
        """Open or make the experiment.

        Args:
            uri: Of the server or database.
            experiment: Its name.
            artifacts: Where a new experiment's artifacts would be; None for the server's own choice.

        Raises:
            PerfitError: The server does not answer, or KFP's plugin writes to this experiment.
        """
        self._uri, self._name = uri, experiment
        with self._errors():
            self._client = MlflowClient(uri)
            self._experiment = self._open(experiment, artifacts).experiment_id
            if self._search(f"tags.`{_KFP}` LIKE '%'", most=1):
                raise PerfitError(
                    f"KFP's own plugin writes to the MLflow experiment {experiment!r}: clients would be in it twice",
                    "set MLFLOW_EXPERIMENT_NAME to another, or unset it",
                )

    def write(self, history: History) -> str:
        """See ``Tracker.write``."""
        with self._errors():
            parent = self._parent(history)
            if _written(parent) <= history.rounds[-1].number:  # else this is an older copy of the store
                self._log_settings(parent, history.settings)
                self._log_rounds(parent, history)
                self._end(parent, history)
        return f"MLflow: experiment {self._name!r} of {self._uri}, run {parent.info.run_name!r}"

    def _open(self, name: str, artifacts: str | None) -> Experiment:
        found = self._client.get_experiment_by_name(name)
        if found and found.lifecycle_stage != "active":
            raise PerfitError(
                f"the MLflow experiment {name!r} is deleted", "restore it, or set MLFLOW_EXPERIMENT_NAME to another"
            )
        return found or self._client.get_experiment(self._client.create_experiment(name, artifacts))

    def _parent(self, history: History) -> Run:
        """Find the run whose last round is one of this history's; else make one, as after a rollback."""
        for run in self._search(f"tags.`{IDENTITY}` = '{history.identity}' AND tags.`{BRANCH}` LIKE '%'"):
            if _is_of(run, history):
                return run
        name = f"{history.name}, branch {history.branch}" if history.branch else history.name
        tags = {IDENTITY: history.identity, BRANCH: str(history.branch), "perfit.store": history.store}
        return self._create(name, history.rounds[0], tags)

    def _log_settings(self, parent: Run, settings: Mapping[str, str]) -> None:
        """Parameters of MLflow never change; of a setting that did, such as ``rounds``, the new value is a tag."""
        known = parent.data.params
        values = {key: value[:_LONGEST] for key, value in settings.items()}
        new = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(new), _PARAMS):
            self._client.log_batch(parent.info.run_id, params=new[start : start + _PARAMS])
        for key, value in values.items():
            tag = f"perfit.changed.{key}"
            if parent.data.tags.get(tag, known.get(key, value)) != value:
                self._client.set_tag(parent.info.run_id, tag, value)

    def _log_rounds(self, parent: Run, history: History) -> None:
        written = _written(parent)
        rounds = history.rounds[written:]
        runs = {run.data.tags.get(CLIENT): run for run in self._children(parent)} if rounds else {}
        for client in history.clients:
            if own := [of for of in history.of_client(client) if of[0].number > written]:
                tags = {IDENTITY: history.identity, CLIENT: client, _PARENT: parent.info.run_id}
                run = runs.get(client) or self._create(client, own[0][0], tags)
                self._log(run.info.run_id, own)
        if rounds:
            self._log(parent.info.run_id, [(round, round.metrics) for round in rounds])
            # At the end: of a writer that was killed, all is written again.
            tags = [RunTag(ROUND, str(rounds[-1].number)), RunTag(DIGEST, rounds[-1].digest)]
            self._client.log_batch(parent.info.run_id, tags=tags)

    def _log(self, run: str, rounds: Sequence[tuple[TrackedRound, Mapping[str, float]]]) -> None:
        """The time is the store's, so that a value that is written again is the same, and the database keeps one."""
        metrics = [
            Metric(name, value, round.milliseconds, round.number)
            for round, values in rounds
            for name, value in values.items()
        ]
        for start in range(0, len(metrics), _METRICS):
            self._client.log_batch(run, metrics=metrics[start : start + _METRICS])

    def _end(self, parent: Run, history: History) -> None:
        """Say of all runs whether the federation has rounds before it."""
        status = "FINISHED" if history.is_complete else "RUNNING"
        for run in [*self._children(parent), self._client.get_run(parent.info.run_id)]:
            if run.info.status == status:
                continue
            if history.is_complete:
                self._client.set_terminated(run.info.run_id, status, history.rounds[-1].milliseconds)
            else:
                self._client.update_run(run.info.run_id, status)

    def _children(self, parent: Run) -> list[Run]:
        return self._search(f"tags.`{_PARENT}` = '{parent.info.run_id}' AND tags.`{CLIENT}` LIKE '%'")

    def _create(self, name: str, first: TrackedRound, tags: Mapping[str, str]) -> Run:
        start = round(1000 * first.times.planned)
        return self._client.create_run(self._experiment, start, dict(tags), name)

    def _search(self, query: str, most: int | None = None) -> list[Run]:
        found: list[Run] = []
        token = None
        while True:
            page = self._client.search_runs([self._experiment], query, max_results=most or _PAGE, page_token=token)
            found += page
            token = page.token
            if most or not token:
                return found

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (MlflowException, OSError) as error:
            raise PerfitError(
                f"MLflow at {self._uri}: {printable(str(error).strip().splitlines()[0])}",
                "check MLFLOW_TRACKING_URI and that its server runs; then: perfit track mlflow",
            ) from error


def _is_of(run: Run, history: History) -> bool:
    """Whether a run holds the beginning of a history, or all of it and more."""
    tags, last = run.data.tags, history.rounds[-1].number
    written = _written(run)
    if written > last:
        return _number(tags.get(BRANCH)) == history.branch
    return written == 0 or tags.get(DIGEST) == history.rounds[written - 1].digest


def _written(run: Run) -> int:
    """The last round that a federation's run holds."""
    return _number(run.data.tags.get(ROUND))


def _number(text: str | None) -> int:
    """Anybody who may write to the server may have changed a tag."""
    return int(text) if text and text.isascii() and text.isdecimal() else 0
