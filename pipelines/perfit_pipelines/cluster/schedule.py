"""Recurring tuning: a round of a federation at set times.

Kubeflow cannot change a recurring run, only delete and create it, and allows several of one name. A schedule here is
identified by its name, and replaced so that no two of the same name are ever enabled: the new one is created paused,
the old one paused, the new one enabled, the old one deleted. The next replacement removes what an interruption leaves.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from durationpy import to_str
from kfp_server_api import RecurringRunMode, V2beta1DeletePropagationPolicy, V2beta1RecurringRun

from perfit.errors import PerfitError
from perfit_pipelines.cluster.connection import Kubeflow, list_all
from perfit_pipelines.cluster.submit import get_experiment, other_account
from perfit_pipelines.cluster.upload import Version

_MARK = "perfit schedule: "
"""Prefix of the description of our recurring runs: others of the same name are left alone."""


@dataclass(frozen=True)
class When:
    """A cron expression of six fields, or seconds between two rounds."""

    cron: str | None = None
    seconds: int | None = None

    def __str__(self) -> str:
        return f"cron {self.cron}" if self.cron else f"every {to_str(timedelta(seconds=self.seconds or 0))}"


@dataclass(frozen=True)
class Schedule:
    """A schedule as Kubeflow holds it.

    Args:
        name: Unique in its namespace.
        id: Of the recurring run.
        when: When rounds start.
        enabled: Whether it does start rounds, or is paused.
        created: When it was created.
        about: The pipeline and version that it runs.
    """

    name: str
    id: str
    when: When
    enabled: bool
    created: datetime
    about: str

    @property
    def page(self) -> str:
        """Its page in the UI."""
        return f"recurringrun/details/{self.id}"


def schedules_json(schedules: Iterable[Schedule]) -> str:
    """Return schedules as JSON; times are ISO 8601."""
    return json.dumps([{**asdict(item), "created": item.created.isoformat()} for item in schedules], indent=1)


def create_schedule(
    kubeflow: Kubeflow,
    version: Version,
    name: str,
    when: When,
    experiment: str,
    service_account: str | None = None,
) -> tuple[Schedule, bool]:
    """Start rounds at set times, one at a time, without catching up on missed ones; replaces a schedule of this name.

    Returns:
        The schedule, and whether it replaced one.

    Raises:
        PerfitError: Kubeflow refuses, or gives rounds another account, and an older schedule goes on; or a recurring
            run of this name is not ours.
    """
    older = _ours(kubeflow, name)
    experiment_id = get_experiment(kubeflow, experiment)
    with kubeflow.calling(f"create the schedule {name}"):
        created = kubeflow.client.create_recurring_run(
            experiment_id,
            name,
            description=f"{_MARK}{version.pipeline}, version {version.name}",
            cron_expression=when.cron,
            interval_second=when.seconds,
            max_concurrency=1,
            no_catchup=True,
            pipeline_id=version.pipeline_id,
            version_id=version.version_id,
            params=version.parameters,
            enabled=False,
            service_account=service_account,
        )
    new = _schedule(created)
    if mismatch := other_account(created, service_account):
        _delete(kubeflow, new)
        raise mismatch
    try:
        for schedule in older:
            _switch(kubeflow, schedule, enabled=False)
        _switch(kubeflow, new, enabled=True)
    except PerfitError:
        _undo(kubeflow, new, older)
        raise
    for schedule in older:
        _delete(kubeflow, schedule)
    return new, bool(older)


def list_schedules(kubeflow: Kubeflow) -> list[Schedule]:
    """Return all schedules that perfit created in the namespace, by name, the newest of a name first.

    Raises:
        PerfitError: Kubeflow refuses.
    """
    return [_schedule(run) for run in _recurring_runs(kubeflow) if _is_ours(run)]


def pause_schedule(kubeflow: Kubeflow, name: str) -> None:
    """Start no more rounds; one that runs goes on.

    Raises:
        PerfitError: There is no such schedule, or Kubeflow refuses.
    """
    for schedule in _existing(kubeflow, name):
        _switch(kubeflow, schedule, enabled=False)


def resume_schedule(kubeflow: Kubeflow, name: str) -> None:
    """Start rounds again, from the next time on.

    Raises:
        PerfitError: There is no such schedule, or Kubeflow refuses.
    """
    newest, *leftovers = _existing(kubeflow, name)
    for schedule in leftovers:
        _delete(kubeflow, schedule)
    _switch(kubeflow, newest, enabled=True)


def delete_schedule(kubeflow: Kubeflow, name: str) -> None:
    """Remove a schedule; a round that runs goes on.

    Raises:
        PerfitError: There is no such schedule, or Kubeflow refuses.
    """
    for schedule in _existing(kubeflow, name):
        _delete(kubeflow, schedule)


def _recurring_runs(kubeflow: Kubeflow) -> list[V2beta1RecurringRun]:
    with kubeflow.calling("list recurring runs"):
        runs = list(list_all(kubeflow.client.list_recurring_runs, "recurring_runs", namespace=kubeflow.namespace))
    runs.sort(key=lambda run: run.created_at, reverse=True)
    return sorted(runs, key=lambda run: run.display_name)


def _ours(kubeflow: Kubeflow, name: str) -> list[Schedule]:
    runs = [run for run in _recurring_runs(kubeflow) if run.display_name == name]
    if any(not _is_ours(run) for run in runs):
        raise PerfitError(
            f"there is a recurring run {name!r} that perfit did not create", "give your schedule another --name"
        )
    return [_schedule(run) for run in runs]


def _existing(kubeflow: Kubeflow, name: str) -> list[Schedule]:
    schedules = list_schedules(kubeflow)
    matching = [schedule for schedule in schedules if schedule.name == name]
    if not matching:
        names = ", ".join(dict.fromkeys(schedule.name for schedule in schedules))
        raise PerfitError(
            f"there is no schedule {name!r}" + (f" in namespace {kubeflow.namespace}" if kubeflow.namespace else ""),
            f"use one of: {names}" if names else "create one: perfit schedule create FILE --every 24h",
        )
    return matching


def _undo(kubeflow: Kubeflow, new: Schedule, older: list[Schedule]) -> None:
    """Go back to the older schedules as they were, as far as Kubeflow lets us."""
    for step in _steps_back(kubeflow, new, older):
        try:
            step()
        except PerfitError:
            continue


def _steps_back(kubeflow: Kubeflow, new: Schedule, older: list[Schedule]) -> Iterator:
    yield lambda: _delete(kubeflow, new)
    for schedule in older:
        if schedule.enabled:
            yield lambda schedule=schedule: _switch(kubeflow, schedule, enabled=True)


def _switch(kubeflow: Kubeflow, schedule: Schedule, *, enabled: bool) -> None:
    with kubeflow.calling(f"{'resume' if enabled else 'pause'} the schedule {schedule.name}"):
        switch = kubeflow.client.enable_recurring_run if enabled else kubeflow.client.disable_recurring_run
        switch(schedule.id)


def _delete(kubeflow: Kubeflow, schedule: Schedule) -> None:
    with kubeflow.calling(f"delete the schedule {schedule.name}"):
        # Otherwise Kubernetes would also delete the runs that it has started, including a round that is running.
        kubeflow.client.recurring_runs.recurring_run_service_delete_recurring_run(
            schedule.id, propagation_policy=V2beta1DeletePropagationPolicy.ORPHAN
        )


def _is_ours(run: V2beta1RecurringRun) -> bool:
    return (run.description or "").startswith(_MARK)


def _schedule(run: V2beta1RecurringRun) -> Schedule:
    cron, periodic = run.trigger.cron_schedule, run.trigger.periodic_schedule
    return Schedule(
        run.display_name,
        run.recurring_run_id,
        When(cron.cron) if cron else When(seconds=int(periodic.interval_second)),
        run.mode == RecurringRunMode.ENABLE,
        run.created_at,
        (run.description or "").removeprefix(_MARK),
    )
