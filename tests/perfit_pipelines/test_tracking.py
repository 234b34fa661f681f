"""Metrics of federations that ran: in MLflow's database, by TensorBoard's reader, in W&B where it is installed."""

from __future__ import annotations

import shutil
import threading
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from perfit.errors import PerfitError
from perfit.protocol import UpdateRecord
from perfit_components.log_lines import format_phase
from perfit_pipelines.tracking.history import History, read_history
from perfit_pipelines.tracking.live import LiveTracking
from perfit_pipelines.tracking.tensorboard_tracker import TensorBoardTracker
from perfit_report import scalar_metrics

from ..perfit_components.running import Site


@pytest.fixture(scope="module")
def database(tmp_path_factory) -> str:
    """A database of MLflow with its tables; each test has an experiment of its own."""
    from perfit_pipelines.tracking.mlflow_tracker import MlflowTracker

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    MlflowTracker(uri, "first")
    return uri


@pytest.fixture
def experiment(database, request, monkeypatch) -> Experiment:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", request.node.name)
    # As in a pod whose run KFP's own plugin tracks: it must not be written to.
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    return Experiment(database, request.node.name)


class Experiment:
    """What is in an experiment of MLflow, asked of its own client."""

    def __init__(self, uri: str, name: str):
        from mlflow import MlflowClient

        self.client, self.name = MlflowClient(uri), name

    @property
    def id(self) -> str:
        return self.client.get_experiment_by_name(self.name).experiment_id

    def runs(self) -> dict[str, object]:
        """All runs by name; no two have the same."""
        runs = self.client.search_runs([self.id])
        named = {run.info.run_name: run for run in runs}
        assert len(named) == len(runs)
        return named

    def steps(self, run: str, metric: str) -> list[tuple[int, float]]:
        """Every value of a metric that was ever written, doubles included."""
        history = self.client.get_metric_history(self.runs()[run].info.run_id, metric)
        return [(value.step, value.value) for value in history]


def records(site: Site, client: str) -> dict[int, UpdateRecord]:
    summaries = site.context.summaries()
    return {record.round: record for summary in summaries for record in summary.trained if record.client == client}


def test_mlflow_has_a_run_for_the_federation_and_one_for_each_client(trained, experiment):
    result = trained.stored("track", "mlflow")
    assert result.code == 0, result.err
    assert result.out == f"MLflow: experiment {experiment.name!r} of {experiment.client.tracking_uri}, run 'tiny'\n"
    runs = experiment.runs()
    parent = runs.pop("tiny")
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {parent.info.status, *(run.info.status for run in runs.values())} == {"FINISHED"}
    assert sorted(runs) == ["ann", "bob"]
    summaries = trained.site.context.summaries()
    for name in ("perplexity_after_mean", "perplexity_before_mean", "loss_last_mean", "bytes_up", "bytes_down"):
        assert experiment.steps("tiny", name) == [(s.round, scalar_metrics(s)[name]) for s in summaries]
    of_bob = records(trained.site, "bob")
    assert experiment.steps("bob", "perplexity_after") == [(n, r.perplexity.after) for n, r in of_bob.items()]
    assert experiment.steps("bob", "bytes_up") == [(n, r.bytes_up) for n, r in of_bob.items()]
    spec = trained.site.spec
    assert parent.data.params["method.name"] == spec.method.name
    assert parent.data.params["training.learning_rate"] == str(spec.training.learning_rate)
    assert parent.data.params["training.seed"] == str(spec.training.seed)
    # A federation that ran elsewhere may have been trained with other libraries than this machine's.
    assert not any(key.startswith("version") for key in parent.data.params)


def test_a_federation_that_goes_on_or_is_rolled_back_has_no_run_and_no_value_twice(make, experiment, tmp_path):
    home = make(rounds=4)
    site = home.site.prepare()
    assert "has no committed round" in home.stored("track", "mlflow").err
    site.run_round(1)
    shutil.copytree(site.root, tmp_path / "earlier" / "federations" / "tiny")
    home.stored("track", "mlflow")
    assert experiment.runs()["tiny"].info.status == "RUNNING"
    home.edit("rounds: 4", "rounds: 5")
    home.site.prepare().run_round(2)
    home.stored("track", "mlflow")
    before = experiment.runs()
    assert before["tiny"].data.params["rounds"] == "4"
    assert before["tiny"].data.tags["perfit.changed.rounds"] == "5"
    second = site.summary(2)
    # Again, and from a copy of the store that is behind: nothing changes.
    assert home.stored("track", "mlflow").code == 0
    assert home.perfit("track", "mlflow", "--store", (tmp_path / "earlier").as_uri()).code == 0
    assert {name: run.to_dictionary() for name, run in experiment.runs().items()} == {
        name: run.to_dictionary() for name, run in before.items()
    }
    site.roll_back(1)
    home.stored("track", "mlflow")  # round 1 again, of another branch
    home.edit("rounds: 5", "rounds: 2")
    again = home.site.prepare().run_round(2)
    home.stored("track", "mlflow")
    runs = experiment.client.search_runs([experiment.id])
    parents = {run.info.run_name: run for run in runs if "mlflow.parentRunId" not in run.data.tags}
    assert sorted(parents) == ["tiny", "tiny, branch 1"]
    assert len(runs) == 2 * 3
    after = {
        name: experiment.client.get_metric_history(run.info.run_id, "perplexity_after_mean")
        for name, run in parents.items()
    }
    assert [(value.step, value.value) for value in after["tiny"]][1:] == [
        (2, scalar_metrics(second)["perplexity_after_mean"])
    ]
    assert [value.step for value in after["tiny, branch 1"]] == [1, 2]
    assert after["tiny, branch 1"][1].value == scalar_metrics(again)["perplexity_after_mean"]
    assert parents["tiny, branch 1"].data.tags["perfit.changed.rounds"] == "2"


def test_a_writer_that_was_killed_leaves_nothing_twice(trained, experiment):
    trained.stored("track", "mlflow")
    parent = experiment.runs()["tiny"].info.run_id
    experiment.client.set_tag(parent, "perfit.round", "0")  # the tag is written last
    trained.stored("track", "mlflow")
    assert sorted(experiment.runs()) == ["ann", "bob", "tiny"]
    for run, metric in (("tiny", "perplexity_after_mean"), ("ann", "perplexity_after")):
        assert [step for step, _ in experiment.steps(run, metric)] == [1, 2]


def test_no_client_is_in_an_experiment_twice_where_kfp_writes_to_it(trained, experiment):
    kfp = experiment.client.create_experiment(experiment.name)
    experiment.client.create_run(kfp, tags={"kfp.pipeline_run_id": "5e6f"})
    result = trained.stored("track", "mlflow")
    assert result.code == 1
    assert "KFP's own plugin writes to the MLflow experiment" in result.err
    assert "MLFLOW_EXPERIMENT_NAME" in result.err
    assert len(experiment.client.search_runs([kfp])) == 1


def test_a_server_that_does_not_answer(trained, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    result = trained.stored("track", "mlflow")
    assert result.code == 1
    assert "MLflow at http://127.0.0.1:9" in result.err
    assert "perfit track mlflow" in result.err


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """The values in a directory of event files by tag, as TensorBoard reads them."""
    events = EventAccumulator(str(directory)).Reload()
    tags = events.Tags()["scalars"]
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def test_tensorboard_has_each_round_once(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path))
    result = trained.stored("track", "tensorboard")
    assert result.out == f"TensorBoard: tensorboard --logdir {tmp_path}\n"
    (directory,) = tmp_path.iterdir()
    found, summaries = scalars(directory), trained.site.context.summaries()
    for name in ("perplexity_after_mean", "bytes_up"):
        assert found[name] == [(s.round, pytest.approx(scalar_metrics(s)[name], rel=1e-6)) for s in summaries]
    expected = [(n, pytest.approx(r.losses[-1], rel=1e-6)) for n, r in records(trained.site, "ann").items()]
    assert scalars(directory / "clients" / "ann")["loss_last"] == expected
    # A file that is behind is appended to, since a TensorBoard that runs has it open; a damaged one is replaced.
    behind, damaged = (path / "events.out.tfevents.perfit" for path in (directory, directory / "clients" / "ann"))
    whole, file = {path: path.read_bytes() for path in (behind, damaged)}, behind.stat().st_ino
    behind.write_bytes(whole[behind][:-100])
    damaged.write_bytes(b"something else")
    for _ in range(2):
        trained.stored("track", "tensorboard")
        assert {path: path.read_bytes() for path in (behind, damaged)} == whole
    assert behind.stat().st_ino == file


def test_tensorboards_file_of_metrics_stays_where_settings_change_or_the_store_is_behind(trained, tmp_path):
    history = read_history(trained.site.context)
    TensorBoardTracker(tmp_path).write(history)
    (directory,) = tmp_path.iterdir()
    settings, metrics = (directory / f"events.out.tfevents.{name}" for name in ("0-settings", "perfit"))
    before, file = (settings.read_bytes(), metrics.read_bytes()), metrics.stat().st_ino
    TensorBoardTracker(tmp_path).write(replace(history, settings={"rounds": "9"}, rounds=history.rounds[:1]))
    assert settings.read_bytes() != before[0]
    assert (metrics.read_bytes(), metrics.stat().st_ino) == (before[1], file)


@pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_offline(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("PERFIT_HOME", str(tmp_path))
    result = trained.stored("track", "wandb")
    assert result.code == 0, result.err
    assert "project 'perfit'" in result.out
    runs = [
        path.name for path in (trained.directory / ".perfit" / "wandb").iterdir() if path.name.startswith("offline")
    ]
    identity = trained.site.context.base_after(1).summary.digest[:32]
    assert sorted(name.split("-", 3)[-1] for name in runs) == [identity, f"{identity}-ann", f"{identity}-bob"]


def test_a_library_that_is_not_installed(trained):
    if find_spec("wandb"):
        pytest.skip("wandb is installed")
    result = trained.stored("track", "wandb")
    assert result.code == 1
    assert "wandb is not installed" in result.err
    assert "pip install wandb" in result.err


def test_a_run_that_finds_everything_done_writes_it_too(finished, experiment, monkeypatch):
    home = finished.home
    monkeypatch.setenv("PERFIT_TRACK", "mlflow tensorboard")
    again = home.stored("run", home.file)
    assert "nothing to do" in again.out
    assert again.out.splitlines()[-1].startswith("TensorBoard: ")
    (directory,) = (home.directory / ".perfit" / "tensorboard").iterdir()
    assert [step for step, _ in scalars(directory / "clients" / "bob")["perplexity_after"]] == [1, 2]
    assert [step for step, _ in experiment.steps("ann", "perplexity_after")] == [1, 2]
    assert experiment.runs()["tiny"].data.params["version.torch"]


class Recorder:
    """A tracker that notes how many rounds it was given, and fails while ``broken``."""

    def __init__(self, is_live=True):
        self.is_live = is_live
        self.rounds, self.broken, self.called = [], True, threading.Semaphore(0)

    def write(self, history: History) -> str:
        self.rounds.append(len(history.rounds))
        self.called.release()
        if self.broken:
            raise PerfitError("no answer", "start it")
        return "there"


def test_live_tracking_writes_when_a_round_begins_and_survives_an_outage(trained):
    tracker, late, history = Recorder(), Recorder(is_live=False), read_history(trained.site.context)
    tracking = LiveTracking([tracker, late], lambda: history)
    with tracking:
        for round in (1, 2):
            tracking.on_line(format_phase(round, "ann", "loading"))
            assert tracker.called.acquire(timeout=60)
            tracking.on_line(format_phase(round, "bob", "loading"))
    assert (tracker.rounds, late.rounds) == ([2, 2], [])
    with pytest.raises(PerfitError, match="no answer"):
        tracking.finish()
    tracker.broken = late.broken = False
    assert tracking.finish() == ["there", "there"]
