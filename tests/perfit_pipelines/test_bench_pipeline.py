"""The pipeline of a bench: its pods, and a run of two cells, one of which fails, through KFP's local runner."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import local

from perfit.bench.cell import run_cell
from perfit.bench.plan import plan_cells
from perfit.bench.results import CellResult
from perfit.bench.spec import Cell, Pods
from perfit_components.steps.bench_cell import run
from perfit_pipelines import local_run
from perfit_pipelines.bench_pipeline import bench_pipeline
from perfit_pipelines.cluster.cells import RemoteCells
from perfit_pipelines.compile import compiled_yaml
from perfit_storage import BenchStore

from ..perfit.bench.helpers import write_bench

GRID = {"training.sequence_length": [8, 64]}
"""No prompt fits into 8 tokens."""


def numbers(result: CellResult) -> dict[str, Any]:
    """All but time, memory and machine."""
    tree = result.model_dump(exclude={"peak_memory", "environment"})
    for round in tree["rounds"]:
        del round["seconds"]
    return tree


@dataclass(frozen=True)
class Ran:
    """Two cells that the pipeline has run."""

    cells: list[Cell]
    directory: Path
    store: BenchStore

    def remote(self) -> RemoteCells:
        return RemoteCells(self.cells, self.directory, self.store)


@pytest.fixture(scope="module")
def ran(tiny_llama, tmp_path_factory) -> Ran:
    directory = tmp_path_factory.mktemp("bench")
    file = write_bench(directory, tiny_llama, methods={"fedit": {"grid": GRID}})
    plan, cells = plan_cells(file, directory / "scratch")
    store = BenchStore.open((directory / "store").as_uri(), plan.name)
    ran = Ran(cells, directory, store)
    remote = ran.remote()
    remote.send(remote.missing)
    with local_run._settings({}):
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(directory / "kfp"))
        bench_pipeline(store.uri, plan.pods, "keys")(cells=remote.missing)
    return ran


def test_a_cell_gives_the_numbers_that_it_gives_here_whatever_becomes_of_others(ran, tmp_path):
    remote = ran.remote()
    remote.fetch()
    failing, good = ran.cells
    assert remote.missing == [failing.name]
    fetched = CellResult.model_validate_json((ran.directory / good.file).read_bytes())
    assert numbers(fetched) == numbers(run_cell(good.job, tmp_path))
    assert fetched.job == good.job
    ((cell, reason),) = remote.reasons()
    assert (cell, "client-1.data.jsonl: no usable record: " in reason, "  fix: " in reason) == (failing, True, True)
    assert str(ran.directory / "scratch") not in ran.store.find_result(good.name, 10**6).decode()


def test_a_cell_that_is_done_is_not_run_again(ran, monkeypatch):
    (_, good) = ran.cells
    before = ran.store.find_result(good.name, 10**6)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("sys.executable", "/none")  # nothing can be started
    assert run(ran.store.uri, good.name, 1) == {"cell": good.name, "status": "done", "reason": ""}
    assert ran.store.find_result(good.name, 10**6) == before


def test_a_job_of_another_name_is_not_run(ran):
    failing, good = ran.cells
    name = f"{good.label}.seed-7.{'0' * 16}"
    ran.store.put_job(name, ran.store.read_job(failing.name, 10**6))
    ended = run(ran.store.uri, name, 1)
    assert (ended["status"], ended["reason"].split("\n")[0]) == ("failed", "its name is that of another job")
    assert ran.store.find_failure(name) == ended["reason"]


def test_each_cell_has_the_pod_that_the_file_says():
    pods = {"cpu": "4", "memory": "20Gi", "parallelism": 3, "image": "registry/client:1", "store_ca": "authority"}
    pods |= {"node_selector": {"disk": "fast"}, "accelerator": {"count": 2}, "model_cache": "models"}
    data = compiled_yaml(bench_pipeline("s3://bucket/benches/tiny", Pods.model_validate(pods), "keys"))
    ir, platform = yaml.safe_load_all(data)
    assert ir["root"]["dag"]["tasks"]["for-loop-1"]["iteratorPolicy"] == {"parallelismLimit": 3}
    (container,) = (executor["container"] for executor in ir["deploymentSpec"]["executors"].values())
    assert container["image"] == "registry/client:1"
    resources = container["resources"]
    assert (resources["resourceCpuLimit"], resources["resourceMemoryLimit"]) == ("4", "20Gi")
    assert resources["accelerator"]["resourceCount"] == "2"
    kubernetes = platform["platforms"]["kubernetes"]
    (settings,) = kubernetes["deploymentSpec"]["executors"].values()
    assert [secret["secretName"] for secret in settings["secretAsEnv"]] == ["keys", "perfit-hub"]
    assert settings["nodeSelector"] == {"labels": {"disk": "fast"}}
    assert settings["securityContext"]["runAsNonRoot"] is True
    assert {mount["mountPath"] for mount in settings["emptyDirMounts"]} == {"/tmp", "/dev/shm"}
    assert [mount["mountPath"] for mount in settings["pvcMount"]] == ["/cache"]
    assert settings["podMetadata"] == {"labels": {"perfit/role": "client"}}
    assert kubernetes["pipelineConfig"]["activeDeadlineSeconds"] == 86_400
