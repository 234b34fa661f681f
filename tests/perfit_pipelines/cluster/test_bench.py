"""``perfit bench --store``: what is submitted, and what of the results is taken; the pods are played by the tests."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from perfit.bench.spec import Job, Pods
from perfit_components.steps.bench_cell import run as run_cell
from perfit_pipelines.bench_pipeline import LOOP, bench_pipeline
from perfit_pipelines.cluster.bench import CellsRun, batches
from perfit_pipelines.cluster.nodes import place_of_node
from perfit_pipelines.cluster.upload import read_ir
from perfit_pipelines.compile import compiled_yaml
from perfit_pipelines.workflow_nodes import Workflow
from perfit_storage import AccessDenied, BenchStore, open_store

from ...perfit.bench.helpers import result_of, write_bench
from ...perfit_components.running import files
from ..commands import Result, perfit
from ..store_roles import RoleServer, role_server
from .conftest import QUICK
from .kfp_api import KfpApi, until
from .test_follow import interrupt

SECTIONS = {"baselines": ["local"], "methods": {"local": {}, "fedit": {}}}


@dataclass(frozen=True)
class Bench:
    """A bench file of two cells, a store, and a Kubeflow."""

    directory: Path
    store_uri: str
    api: KfpApi

    @property
    def store(self) -> BenchStore:
        return BenchStore.open(self.store_uri, "tiny")

    @property
    def cells(self) -> Path:
        return self.directory / ".perfit/bench/tiny/cells"

    @property
    def names(self) -> list[list[str]]:
        """The cells of each run that was started."""
        return [run.runtime_config.parameters["cells"] for run in self.api.runs.values()]

    @property
    def submitted(self) -> list[list[str]]:
        """Their labels."""
        return [[name.partition(".")[0] for name in names] for names in self.names]

    @property
    def command(self) -> list[str]:
        where = ["--store", self.store_uri, "--secret", "keys", "--endpoint", self.api.url]
        return ["bench", "bench.yaml", *where, *QUICK]

    def run(self) -> Result:
        return perfit(*self.command, cwd=self.directory)

    def pods(self, play: Callable[[dict[str, str]], object]) -> None:
        """Say what the pods of the next run do, given the names of its cells by label."""

        def start(query, body) -> None:
            play({name.partition(".")[0]: name for name in body["runtime_config"]["parameters"]["cells"]})

        self.api.before["/runs"] = start

    def answer(self, cell: str, of: str | None = None) -> None:
        """Store a result without running anything: of a cell's own job, or of another's."""
        job = Job.model_validate_json(self.store.read_job(of or cell, 10**6))
        self.store.create_result(cell, json.dumps(result_of(job)).encode())


@pytest.fixture(scope="module")
def roles(tmp_path_factory) -> Iterator[RoleServer]:
    with role_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bench(tiny_llama, tmp_path, api, roles, monkeypatch) -> Bench:
    """With a key to the store that may do what ``--policy`` prints."""
    write_bench(tmp_path, tiny_llama, **SECTIONS)
    uri = f"{roles.server.store_uri}/{tmp_path.name}"
    printed = perfit("bench", "bench.yaml", "--store", uri, "--policy", cwd=tmp_path)
    roles.add_users({tmp_path.name: ("secret", json.loads(printed.out))})
    for name, value in roles.environment(tmp_path.name, "secret").items():
        monkeypatch.setenv(name, value)
    return Bench(tmp_path, uri, api)


def test_a_bench_here_and_there_gives_one_table(bench):
    """A cell fails; it is run again, by another command, and what comes back is another's; the third runs it here."""

    def first(cells: dict[str, str]) -> None:
        assert run_cell(bench.store.uri, cells["local"], 1)["status"] == "done"
        bench.store.put_failure(cells["fedit"], "no \x1b[31mroom\n  fix: make some")

    bench.pods(first)
    result = bench.run()
    assert (result.code, bench.submitted) == (1, [["local", "fedit"]])
    assert "fedit, seed 0: no \\x1b[31mroom\n  fix: make some\n" in result.err
    assert "error: 1 of 2 runs have no result\n  fix: see why above; then run the same command again" in result.err
    (done,) = files(bench.cells)
    assert done.startswith("local.")

    bench.pods(lambda cells: bench.answer(cells["fedit"], of=done.removesuffix(".json")))
    result = bench.run()
    assert (result.code, bench.submitted[1:]) == (1, [["fedit"]])
    assert "2 runs, of which 1 are done" in result.out
    assert re.search(r"fedit, seed 0: s3://\S+/benches/tiny/cells/fedit\.\S+\.json: it is of another job", result.err)
    assert list(files(bench.cells)) == [done]
    assert bench.run().code == 1
    assert len(bench.submitted) == 2  # what is there is not run again, also if it is refused

    assert perfit("bench", "bench.yaml", cwd=bench.directory).code == 0
    rows = list(csv.DictReader((bench.directory / ".perfit/bench/tiny/summary.csv").open()))
    difference = float(rows[1]["personal"]) - float(rows[0]["personal"])
    assert [row["method"] for row in rows] == ["local", "fedit"]
    assert float(rows[1]["minus_local"]) == pytest.approx(difference)


def test_the_key_of_a_bench_opens_nothing_else(bench, roles):
    for path in ("benches/other/cells/x.json", "benches/tiny-2/x", "federations/tiny/head.json"):
        open_store(bench.store_uri, roles.administrator).put(path, b"x")
        with pytest.raises(AccessDenied):
            open_store(bench.store_uri).get(path)
        with pytest.raises(AccessDenied):
            list(open_store(bench.store_uri).list(path.rpartition("/")[0]))


def test_a_policy_is_of_a_store(bench):
    command = ["bench", "bench.yaml", "--policy"]
    assert "a policy is of a store, and none is given" in perfit(*command, cwd=bench.directory).err
    assert "is not a store that has keys" in perfit(*command, "--store", "file:///data", cwd=bench.directory).err


def test_a_run_is_of_the_file_and_gives_the_tables(bench):
    pods = {"parallelism": 1, "memory": "3Gi"}
    write_bench(bench.directory, "owner/model", **SECTIONS, pods=pods)
    bench.pods(lambda cells: [bench.answer(cell) for cell in cells.values()])
    result = bench.run()
    assert result.code == 0, result.err
    assert "Cells: local.seed-0." in result.out
    assert "the run succeeded; what its 2 cells gave is fetched" in result.out
    (pipeline,), (version,), (run,) = (d.values() for d in (bench.api.pipelines, bench.api.versions, bench.api.runs))
    assert (pipeline.display_name, run.service_account) == ("tiny-bench", "perfit-runner")
    (executor,) = version.pipeline_spec["pipeline_spec"]["deploymentSpec"]["executors"].values()
    assert executor["container"]["resources"]["resourceMemoryLimit"] == "3Gi"
    stored = [json.loads(content) for content in files(bench.cells).values()]
    assert all(str(bench.directory) in job["job"]["spec"]["clients"][0]["data"] for job in stored)
    assert "| fedit | - | 5.00 |" in result.out
    assert not list(bench.cells.parent.glob("kubeflow-run*"))

    again = perfit("bench", "bench.yaml", "-o", "elsewhere", cwd=bench.directory)
    assert (again.code, "2 runs, of which 2 are done" in again.out) == (0, True)


def test_the_same_command_follows_the_run_that_is_under_way(bench):
    bench.api.play(("RUNNING", []))
    command = [sys.executable, "-c", "from perfit_pipelines.cli import main; main()", *bench.command]
    environment = {**os.environ, "PERFIT_HOME": str(bench.directory / ".perfit")}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=bench.directory, env=environment, **pipes) as process:
        until(lambda: len(bench.api.calls("GET", "/runs/")) > 2)
        said = interrupt(process)
    assert process.returncode == 130
    assert "the run goes on. Follow again: run the same command again" in said
    assert not bench.api.calls("POST", "terminate")

    # Meanwhile one of the two is done, and then the run is over.
    bench.answer(bench.names[0][0])
    bench.api.play(("RUNNING", []), ("SUCCEEDED", []))
    result = bench.run()
    assert "following the run of 2 cells that is under way, id " in result.out
    assert (result.code, bench.submitted) == (1, [["local", "fedit"]])
    assert "fedit, seed 0: its pod left neither a result nor a reason" in result.err

    (bench.cells / f"{bench.names[0][0]}.json").unlink()  # as on another machine
    bench.pods(lambda cells: bench.answer(cells["fedit"]))
    assert bench.run().code == 0
    assert bench.submitted == [["local", "fedit"], ["fedit"]]


def test_a_run_that_was_cancelled_ends_the_command(bench):
    bench.api.play(("CANCELED", []))
    result = bench.run()
    assert (result.code, "the run was cancelled" in result.err) == (4, True)


def test_an_old_kubeflow_gets_no_limits(bench, serve):
    old = Bench(bench.directory, bench.store_uri, serve(version=(2, 16, 1)))
    old.pods(lambda cells: [old.answer(cell) for cell in cells.values()])
    result = old.run()
    assert (result.code, "older than 2.17: the run has no deadline" in result.err) == (0, True)
    (version,) = old.api.versions.values()
    kubernetes = version.pipeline_spec["platform_spec"]["platforms"]["kubernetes"]
    assert "pipelineConfig" not in kubernetes


def test_more_cells_than_a_parameter_holds_are_several_runs():
    names = [f"perfit.seed-{seed}.{'0' * 16}" for seed in range(1000)]
    parts = list(batches(names))
    assert [name for part in parts for name in part] == names
    assert all(len(json.dumps(part)) <= 10_000 for part in parts)
    assert len(parts) == 4


def test_cells_are_found_among_the_nodes_of_their_run():
    data = compiled_yaml(bench_pipeline("s3://bucket/benches/tiny", Pods(), "keys"))
    nodes = Workflow.of(list(yaml.safe_load_all(data)), {LOOP: 2}).nodes()
    places = {place_of_node(node["name"]) for node in nodes if node["type"] == "Pod"}
    tasks = CellsRun(["a", "b"], read_ir(data)).tasks
    assert [task.label for task in tasks] == ["a", "b"]
    assert len({task.node for task in tasks} & places) == 2


@pytest.mark.parametrize(
    ("pods", "problem"),
    [
        ({"gpus": 1}, "pods.gpus: "),
        ({"memory": "16 GB"}, "pods.memory: '16 GB' is not a Kubernetes quantity"),
        ({"accelerator": {"count": 2, "divide": "batch"}}, "pods.accelerator.divide: a pod of a bench has one process"),
    ],
)
def test_what_no_pod_of_a_bench_can_have(bench, pods, problem):
    write_bench(bench.directory, "owner/model", **SECTIONS, pods=pods)
    result = bench.run()
    assert (result.code, problem in result.err) == (1, True), result.err
    assert not bench.api.requests
