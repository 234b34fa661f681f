"""Metrics in TensorBoard: one event file for the federation and one for each client, rounds as steps."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.summary.writer.record_writer import RecordWriter

from perfit_pipelines.tracking.history import History, TrackedRound
from perfit_pipelines.writing import write_file, writing

_SETTINGS, _FILE = "events.out.tfevents.0-settings", "events.out.tfevents.perfit"
"""Settings and versions are in a file of their own, which is replaced where they change."""
_IDENTITY = 8
"""Characters in a directory's name."""


class TensorBoardTracker:
    """A directory for ``tensorboard --logdir``, with one for each federation.

    An event file follows from the records alone: what is there is its beginning, and the rest is appended, which
    TensorBoard sees while it runs.
    """

    is_live: ClassVar[bool] = True

    def __init__(self, directory: Path):
        self._directory = directory

    def write(self, history: History) -> str:
        """See ``Tracker.write``."""
        branch = f".branch-{history.branch}" if history.branch else ""
        directory = self._directory / f"{history.name}-{history.identity[:_IDENTITY]}{branch}"
        first = history.rounds[0].times.planned
        start = Event(wall_time=first, file_version="brain.Event:2")
        _extend(directory / _SETTINGS, [start, _settings(history, first)])
        _extend(directory / _FILE, [start, *_events((round, round.metrics) for round in history.rounds)])
        for client in history.clients:
            _extend(directory / "clients" / client / _FILE, [start, *_events(history.of_client(client))])
        return f"TensorBoard: tensorboard --logdir {self._directory}"


def _settings(history: History, time: float) -> Event:
    summary = hparams_pb(dict(history.settings), trial_id=history.identity, start_time_secs=time)
    data = summary.value[0].metadata.plugin_data
    data.content = HParamsPluginData.FromString(data.content).SerializeToString(deterministic=True)
    return Event(wall_time=time, summary=summary)


def _events(rounds: Iterable[tuple[TrackedRound, Mapping[str, float]]]) -> list[Event]:
    return [
        Event(
            wall_time=round.times.committed,
            step=round.number,
            summary=Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in metrics.items()]),
        )
        for round, metrics in rounds
    ]


def _extend(path: Path, events: Iterable[Event]) -> None:
    """Append what a file lacks; what begins differently, as one that was cut by a full disk, is replaced.

    One that has more is left alone: of a store that was copied before, say.
    """
    content = io.BytesIO()
    writer = RecordWriter(content)
    for event in events:
        writer.write(event.SerializeToString(deterministic=True))
    data = content.getvalue()
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        existing = path.read_bytes() if path.exists() else b""
        if existing.startswith(data):
            return
        if existing and data.startswith(existing):
            with path.open("ab") as file:
                file.write(data[len(existing) :])
            return
    write_file(path, data)
