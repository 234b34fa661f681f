"""``perfit bench``: runs that are done are not run again, an interrupted one is; tables, and errors before any run."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from ...perfit.bench.helpers import write_bench
from ..commands import Result, perfit
from .test_light_imports import CODE

CELLS = Path(".perfit/bench/tiny/cells")
GO_ON = "stopping; run the same command again to go on with the run that was interrupted"
SECTIONS = {
    "baselines": ["local"],
    "targets": [1000, 1.5],
    "methods": {"local": {}, "fedit": {"grid": {"training.learning_rate": [1e37, 0.01]}}},
    "training": {"steps": 3, "batch_size": 2, "learning_rate": 0.01, "sequence_length": 64},
}


@dataclass(frozen=True)
class Bench:
    """A directory with a bench file that has run to its end, and what that printed."""

    directory: Path
    result: Result

    @property
    def environment(self) -> dict[str, str]:
        """Of a process that works here."""
        return {**os.environ, "PERFIT_HOME": str(self.directory / ".perfit")}

    @property
    def times(self) -> dict[str, int]:
        """When each run's results were written."""
        return {path.name: path.stat().st_mtime_ns for path in (self.directory / CELLS).iterdir()}


@pytest.fixture(scope="session")
def finished(tiny_llama, tmp_path_factory) -> Bench:
    """A bench of two methods, one of them with a point that diverges. Leave its directory as it is."""
    directory = tmp_path_factory.mktemp("bench")
    write_bench(directory, tiny_llama, **SECTIONS)
    result = perfit("bench", "bench.yaml", cwd=directory)
    assert result.code == 0, result.err
    return Bench(directory, result)


@pytest.fixture
def copy(finished, tmp_path) -> Bench:
    """That bench, moved to a directory of its own name, to work on."""
    directory = tmp_path / "copy"
    shutil.copytree(finished.directory, directory)
    return Bench(directory, finished.result)


def rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open()))


def test_the_tables_compare_the_methods_at_their_chosen_points(finished):
    assert "3 runs, of which 0 are done" in finished.result.out
    output = finished.directory / ".perfit/bench/tiny"
    local, fedit = rows(output / "summary.csv")
    assert (local["method"], fedit["method"]) == ("local", "fedit")
    assert fedit["point"] == "training.learning_rate=0.01"
    difference = float(fedit["personal"]) - float(local["personal"])
    assert float(fedit["minus_local"]) == pytest.approx(difference)
    assert float(fedit["minus_local_low"]) <= difference <= float(fedit["minus_local_high"])
    assert (local["bytes_down"], fedit["rounds_to_1000"], fedit["seeds_to_1.5"]) == ("0.0", "1.0", "0")
    markdown = (output / "report.md").read_text()
    assert f"| {float(fedit['personal']):.2f} | {float(fedit['worst_client']):.2f} |" in markdown
    assert "| fedit | training.learning_rate=1e+37 | failed: " in markdown
    assert markdown in finished.result.out
    clients = rows(output / "clients.csv")
    chosen = [row for row in clients if (row["method"], row["chosen"]) == ("fedit", "1")]
    assert [(row["round"], row["client"]) for row in chosen] == [("1", "client-1"), ("1", "client-2")]
    assert sum(float(row["personal"]) for row in chosen) / 2 == pytest.approx(float(fedit["personal"]))
    (failed,) = (row for row in clients if row["failure"])
    assert (failed["method"], failed["chosen"]) == ("fedit", "0")


def test_a_bench_that_is_done_runs_nothing_and_imports_no_torch(finished):
    before = finished.times
    command = [sys.executable, "-c", CODE, "bench", "bench.yaml", "-o", "elsewhere"]
    again = subprocess.run(command, cwd=finished.directory, env=finished.environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert "3 runs, of which 3 are done" in again.stdout
    assert again.stdout.splitlines()[-1] == "imported: matplotlib"
    assert finished.times == before
    for name in ("report.html", "report.md", "summary.csv", "clients.csv"):
        written = (finished.directory / "elsewhere" / name).read_bytes()
        assert written == (finished.directory / ".perfit/bench/tiny" / name).read_bytes()


def test_only_what_is_missing_is_run(copy):
    before = copy.times
    gone = next(name for name in before if name.startswith("local."))
    (copy.directory / CELLS / gone).unlink()
    again = perfit("bench", "bench.yaml", cwd=copy.directory)
    assert "3 runs, of which 2 are done\nrun 1 of 1: local, seed 0\n" in again.out
    after = copy.times
    assert after.pop(gone) > before.pop(gone)
    assert after == before


@pytest.mark.parametrize(
    ("stop", "number"),
    [
        (os.killpg, signal.SIGINT),  # from a terminal
        (os.kill, signal.SIGINT),
        (os.kill, signal.SIGTERM),
    ],
)
def test_a_stop_loses_only_the_run_that_is_interrupted(copy, tiny_llama, stop, number):
    before = copy.times
    methods = {"local": {}, "fedit": {"grid": {"training.steps": [100_000]}}}
    write_bench(copy.directory, tiny_llama, **{**SECTIONS, "methods": methods})
    command = [sys.executable, "-c", "from perfit_pipelines.cli import main; main()", "bench", "bench.yaml"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=copy.directory, env=copy.environment, **options) as run:
        try:
            assert next(run.stdout) == "2 runs, of which 1 are done\n"
            assert next(run.stdout).startswith("run 1 of 1: fedit")
            time.sleep(1)
            stop(run.pid, number)
            _, err = run.communicate(timeout=60)  # until nobody holds the pipes: the run has ended too
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)
    assert run.returncode == 128 + number
    assert err.splitlines()[-1] == GO_ON
    assert {name: time for name, time in copy.times.items() if name.endswith(".json")} == before


def test_a_mistake_in_the_file_is_reported_before_anything_is_run(tiny_llama, tmp_path):
    write_bench(tmp_path, tiny_llama, methods={"local": {}, "fedit": {"method": {"name": "fedavg"}}})
    result = perfit("bench", "bench.yaml", cwd=tmp_path)
    assert result.code == 1
    assert "method.name: there is no method 'fedavg'; use one of perfit, perfit-adaptive, fedit" in result.err
    assert "fix: correct this key" in result.err
    assert not (tmp_path / CELLS).exists()


def test_a_model_that_does_not_exist(tmp_path):
    write_bench(tmp_path, "./none")
    result = perfit("bench", "bench.yaml", cwd=tmp_path)
    assert (result.code, result.err) == (
        1,
        "error: model: none does not exist\n  fix: give a hub id, a directory or a .gguf file\n",
    )


def test_an_error_within_a_run_is_the_commands(tiny_llama, tmp_path):
    training = {"steps": 1, "batch_size": 2, "sequence_length": 8}
    write_bench(tmp_path, tiny_llama, methods={"local": {}}, training=training)
    result = perfit("bench", "bench.yaml", cwd=tmp_path)
    assert result.code == 1
    assert result.err.startswith("error: local, seed 0: ")
    assert "fills the sequence length of 8" in result.err
    assert "  fix: " in result.err
