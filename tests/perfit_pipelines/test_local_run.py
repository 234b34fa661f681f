"""Two backends, one answer: a federation in memory, and through the pipeline on KFP's local runner."""

from __future__ import annotations

import builtins
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from kfp import local

from perfit.errors import PerfitError
from perfit.federation_file import parse_federation
from perfit_components.log_lines import parse_task, plain
from perfit_components.steps.file_by_uri import put_federation_file
from perfit_pipelines import local_run
from perfit_pipelines.local_run import run_locally
from perfit_pipelines.pipelines import federated_round
from perfit_report import scalar_metrics
from perfit_storage import open_store

from ..perfit_components.running import THREE, Site, files, in_memory, undated
from .commands import Home, make_home
from .terminal import COMMAND, perfit_in_terminal


def test_the_pipeline_leaves_what_the_federation_in_memory_gives(finished):
    expected = in_memory(finished.home.site.spec)
    stored = files(finished.home.site.root)
    assert {key: stored.get(key) for key in expected} == expected


def test_a_run_on_a_real_s3_server_leaves_the_same_files(finished, s3_server, tmp_path):
    spec = finished.home.site.spec
    uri = f"{s3_server.store_uri}/{uuid.uuid4()}"
    lines = []
    environment, own_print = dict(os.environ), builtins.print
    run_locally(spec, uri, s3_server.environment, tmp_path, lines.append)
    objects = open_store(f"{uri}/federations/{spec.name}", s3_server.environment)
    assert {key: objects.get(key).data for key in objects.list("")} == files(finished.home.site.root)
    log = (tmp_path / "run.log").read_text()
    assert log.splitlines() == [plain(line) for line in lines]
    assert s3_server.environment["AWS_SECRET_ACCESS_KEY"] not in log
    assert (dict(os.environ), builtins.print) == (environment, own_print)


def tasks(home: Home) -> list[str]:
    """The tasks of the last run, in the order of their start."""
    lines = (home.results / "run.log").read_text().splitlines()
    return list(filter(None, map(parse_task, lines)))


@pytest.fixture
def copied(finished, tmp_path) -> Home:
    """A copy of the finished federation, to work on."""
    shutil.copytree(finished.home.directory, tmp_path / "copy")
    return Home(tmp_path / "copy")


def test_a_second_run_starts_no_task_and_prints_the_same(finished, copied):
    copied.stored("run", copied.file)  # writes where the data are now
    before, ran = files(copied.site.root), (copied.results / "run.log").stat()
    shutil.rmtree(copied.results / "adapters")
    again = copied.stored("run", copied.file)
    assert again.code == 0, again.err
    table = finished.result.out[finished.result.out.index("Perplexity") :]
    assert again.out.splitlines()[1] == "all 2 rounds are committed: there is nothing to do"
    assert again.out.endswith(table)
    assert files(copied.site.root) == before
    assert (copied.results / "run.log").stat() == ran
    for name in ("adapters/bob/adapter_config.json", "report.html"):
        assert (copied.results / name).read_bytes() == (finished.home.results / name).read_bytes()


def test_a_run_begins_with_the_first_round_that_is_not_committed(copied):
    before = files(copied.site.root)
    copied.edit("rounds: 2", "rounds: 3")
    result = copied.stored("run", copied.file)
    assert result.code == 0, result.err
    assert sorted(tasks(copied)) == ["aggregate", "client-strong", "client-weak", "prepare"]
    assert "Perplexity on held-out records, round 3" in result.out
    stored, expected = files(copied.site.root), in_memory(copied.site.spec)
    kept = [key for key in before if key.startswith(("rounds/", "masks/"))]
    assert {key: stored[key] for key in kept} == {key: before[key] for key in kept}
    assert {key: stored.get(key) for key in expected} == expected


@pytest.mark.parametrize("lost", ["rounds/1/summary.json", "rounds/2/report.html"])
def test_what_is_lost_of_committed_rounds_is_made_again(copied, lost):
    before = files(copied.site.root)
    (copied.site.root / lost).unlink()
    assert copied.stored("run", copied.file).code == 0
    assert tasks(copied) == ["prepare", "aggregate", "aggregate-2"]
    assert files(copied.site.root)[lost] == before[lost]


def test_every_round_leaves_a_page_and_metrics_to_kfp(finished):
    outputs = files(finished.home.results / "kfp")
    (first,) = {key.partition("/")[0] for key in outputs}
    for round, task in [(1, "aggregate"), (2, "aggregate-2")]:
        assert outputs[f"{first}/{task}/page"] == files(finished.home.site.root)[f"rounds/{round}/report.html"]
        artifacts = json.loads(outputs[f"{first}/{task}/executor_output.json"])["artifacts"]
        (metrics,) = artifacts["metrics"]["artifacts"]
        assert metrics["metadata"] == scalar_metrics(finished.home.site.summary(round))


@pytest.fixture
def temporary(tmp_path, monkeypatch) -> Path:
    """The system's directory of temporary files."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(directory))
    return directory


def test_a_run_whose_clients_all_fail_says_why(make, temporary):
    """The prompts fill the sequence, which only the clients' own pods notice, as they have the tokenizer."""
    home = make(training={"sequence_length": 8}, clients={"ann": {"tier": "strong"}})
    result = home.stored("run", home.file)
    assert result.code == 1
    first, *rest = result.err.splitlines()
    assert first == (
        "error: round 1 is not committed: 0 of 1 clients delivered, participation.minimum_clients is 1. "
        "The head stays where it was. Without an update:"
    )
    assert rest[0].startswith(
        f"  ann (failed): {home.directory}/data/ann.jsonl: no usable record: line 1: the prompt alone has"
    )
    assert rest[-1] == (
        "  fix: repair these clients and run again (those that delivered do not train again), or lower minimum_clients"
    )
    assert f"client ann has no result: {home.directory}/data/ann.jsonl" in result.out
    assert home.site.store.read_head().round == 0
    assert list(temporary.iterdir()) == []
    status = home.stored("status").out.splitlines()
    assert status[1] == "round 1 is not committed: 0 of 1 clients have a result so far"
    assert status[2].startswith(f"ann (failed) in round 1: {home.directory}/data/ann.jsonl: no usable record: line 1: ")
    home.edit("sequence_length: 8", "sequence_length: 64")  # as the reason says, under the same name
    assert home.stored("run", home.file).code == 0
    assert home.site.store.read_head().round == 2


def test_a_run_goes_on_without_a_client_whose_records_are_missing(make):
    home = make(rounds=1)
    missing = home.directory / "data/bob.jsonl"
    missing.rename(missing.with_suffix(".away"))
    result = home.stored("run", home.file)
    assert result.code == 0, result.err
    assert result.err == f"going on without bob:\nclient bob: {missing}: no such file\n  fix: check the path\n"
    reason = f"bob (failed) in round 1: {missing}: no such file\n  fix: check the path\n"
    assert reason in result.out
    assert home.stored("status").out.endswith(reason)


STOPPING = "stopping; run the same command again to go on where it stopped"


def assert_quick(told_s: float, ended_s: float) -> None:
    """It took six seconds in silence when tasks were left to notice the signal. Other work slows a machine down."""
    slower = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
    print(f"told after {told_s:.2f} s, ended after {ended_s:.2f} s, on a machine {slower:.1f} times as slow")
    assert told_s < 2 * slower
    assert ended_s < 4 * slower


@pytest.mark.parametrize(
    ("stop", "number"),
    [(os.killpg, signal.SIGINT), (os.kill, signal.SIGTERM)],
    ids=["Ctrl-C in a terminal", "SIGTERM to the command alone"],
)
def test_a_stop_starts_no_further_task_and_leaves_no_temporary_files(make, temporary, stop, number):
    home = make(training={"steps": 10_000}, **THREE, tiers={"default": {"parallelism": 2}})
    command = [*COMMAND, "run", home.file, "--output", home.results, "--store", home.site.store_uri]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=home.directory, env=environment, **options) as run:
        try:
            assert any("searched, 3 steps" in line for line in run.stdout)
            sent = time.monotonic()
            stop(run.pid, number)
            assert run.stderr.readline() == f"{STOPPING}\n"
            told = time.monotonic() - sent
            stop(run.pid, number)  # of an impatient person: it stops all the same
            _, err = run.communicate(timeout=60)
            ended = time.monotonic() - sent
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert (run.returncode, err) == (128 + number, "")
    assert_quick(told, ended)
    assert tasks(home) == ["prepare", "client-default", "client-default"]
    assert list(temporary.iterdir()) == []


def test_a_terminal_shows_bars_and_answers_ctrl_c(make):
    """With this machine's own S3 server, which has to end too."""
    home = make(training={"steps": 10_000}, method={"search_steps": 200})  # long enough to be drawn
    with perfit_in_terminal("run", home.file, cwd=home.directory) as terminal:
        for stage in ("preparing the federation", "ann  loading", "ann  searching", "ann  training"):
            terminal.wait_for(stage)
        pressed = time.monotonic()
        terminal.send("\x03")
        terminal.wait_for(STOPPING)
        told = time.monotonic() - pressed
        assert terminal.end() == 130
        assert_quick(told, time.monotonic() - pressed)
    assert "round 1/2" in terminal.shown


def test_a_round_is_committed_without_the_client_that_fails(make):
    """Prompts of 200 words, which the command's own check of the records does not measure."""
    home = make(rounds=1)
    record = {"instruction": "sea " * 200, "output": "blue"}
    (home.directory / "data/bob.jsonl").write_text(f"{json.dumps(record)}\n" * 4)
    result = home.stored("run", home.file)
    assert result.code == 0, result.err
    reason = f"{home.directory}/data/bob.jsonl: no usable record: line 1: the prompt alone has"
    assert [line for line in result.out.splitlines() if line.startswith(f"client bob has no result: {reason}")]
    rows = {line.split()[0]: line.split() for line in result.out.splitlines() if line.startswith((" ann", " bob"))}
    assert (rows["ann"][-1], rows["bob"]) == ("ok", ["bob", "1", *["-"] * 7, "failed"])
    assert "round 1 is committed: 1 of 2 clients delivered" in (home.results / "run.log").read_text()
    assert sorted(path.name for path in (home.results / "adapters").iterdir()) == ["ann"]
    (status,) = [line.split() for line in home.stored("status").out.splitlines() if " of 2 " in line]
    assert (status[:4], status[-2:]) == (["1", "1", "of", "2"], ["bob", "failed"])
    assert f"\nbob (failed) in round 1: {reason.removeprefix('client bob has no result: ')}" in result.out
    page = (home.results / "report.html").read_text()
    assert "no usable record: line 1: the prompt alone has" in page


def test_an_error_that_is_not_ours_points_at_the_log(home, tmp_path):
    """A model whose files are damaged, for which we have no message."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text('{"model_type": "llama", "hidden_size": "many"}')
    spec = home.site.spec.model_copy(update={"model": str(broken)})
    with pytest.raises(PerfitError) as caught:
        run_locally(spec, home.site.store_uri, {}, tmp_path / "run", lambda line: None)
    assert "Inner task failed: 'prepare'" in caught.value.problem
    assert caught.value.fix == f"look at the end of {tmp_path}/run/run.log"
    assert "hidden_size" in (tmp_path / "run/run.log").read_text()


# One round from the head


def run_round(site: Site, root: Path, at_most: int = 0, **parameters: str) -> None:
    """Run ``federated_round`` as a scheduled run does, here through the local runner."""
    with local_run._settings({}):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(root), raise_on_error=True)
        federated_round(site.spec, site.store_uri, at_most=at_most)(**parameters)


def test_one_round_after_the_other_with_a_client_that_joins(tiny_llama, tmp_path, capfd):
    home = make_home(tmp_path, tiny_llama, clients={"ann": {"tier": "strong"}})
    run_round(home.site, tmp_path / "kfp")
    assert home.site.store.read_head().round == 1
    first = files(home.site.root)
    assert [key for key in first if key.startswith("masks/")] == [key for key in first if key.startswith("masks/ann/")]

    tree = yaml.safe_load(home.file.read_text())
    tree["clients"].append({"id": "bob", "data": "data/bob.jsonl", "tier": "weak", "rank": 1})
    home.file.write_text(yaml.safe_dump(tree))
    capfd.readouterr()
    run_round(home.site, tmp_path / "kfp")
    assert home.site.store.read_head().round == 2
    second = files(home.site.root)
    assert [outcome.client for outcome in home.site.summary(2).trained] == ["ann", "bob"]
    assert len([key for key in second if key.startswith("masks/bob/")]) == 1
    printed = capfd.readouterr().out
    assert "round=0 client=bob" in printed
    assert "round=0 client=ann" not in printed
    kept = [key for key in first if key not in ("head.json", "spec.yaml") and not key.startswith("clients/")]
    assert {key: second[key] for key in kept} == {key: first[key] for key in kept}


def test_a_run_by_another_method_has_a_directory_that_every_command_opens(home, tmp_path):
    run_round(home.site, tmp_path / "kfp", method="fedsa-lora")
    root = home.site.root.with_name("tiny.fedsa-lora")
    assert not home.site.root.exists()
    assert parse_federation((root / "spec.yaml").read_text()).method.name == "fedsa-lora"
    assert (root / "clients/ann/state/1.safetensors").exists()
    home.site.prepare()
    several = "holds the federations tiny, tiny.fedsa-lora\n  fix: name one with --federation\n"
    assert home.stored("status").err.endswith(several)

    status = home.stored("status", "-f", "tiny.fedsa-lora").out.splitlines()
    assert status[0].startswith(f"file://{root}: round 1 committed, ")
    assert [line.split()[:3] for line in status if line.startswith((" ann", " bob"))] == [
        ["ann", "2", "448"],
        ["bob", "1", "224"],
    ]
    assert home.stored("report", "-f", "tiny.fedsa-lora", "-o", "page.html").code == 0
    assert undated((tmp_path / "page.html").read_text()) == undated((root / "rounds/1/report.html").read_text())
    assert home.stored("export", "bob", "bob", "--adapter-only", "-f", "tiny.fedsa-lora").code == 0
    assert files(tmp_path / "bob") == files(root / "clients/bob/adapter")


def test_two_runs_of_one_client_each_leave_what_one_run_leaves(home, tmp_path):
    """A round that takes several runs, as Kubeflow takes them: here two, whose file is passed by its URI."""
    site = home.site
    whole = Site(site.spec, (tmp_path / "whole").as_uri())
    run_round(whole, tmp_path / "kfp")
    uri = put_federation_file(site.spec, site.store_uri)
    heads = []
    for _ in range(2):
        run_round(site, tmp_path / "kfp", at_most=1, federation_file=uri)
        heads.append(site.store.read_head().round)
    assert heads == [0, 1]
    left = {key: data for key, data in files(site.root).items() if not key.startswith("files/")}
    assert left == {**files(whole.root), "rounds/1/served.json": b"0\n"}
