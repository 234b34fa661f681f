"""A method that an installed package adds: two backends, one answer, and every command that reads it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from perfit.adapter_file import AdapterFile
from perfit_components.log_lines import parse_task
from perfit_storage import FederationStore

from ..perfit_components.running import files, undated
from .commands import make_home

TOY = '''
"""The first half of what a client holds is shared; the server goes half the way to the mean, and counts."""

from typing import Literal

import numpy as np
from pydantic import Field

from perfit.methods import VALUES, Method, MethodOptions, Mix, Roles

COUNTER = "counter"


class Options(MethodOptions):
    name: Literal["toy"] = "toy"
    step: float = Field(default=1.0, gt=0)


def share_first_half(options, space, held):
    positions = np.flatnonzero(held)
    shared = np.zeros_like(held)
    shared[positions[: positions.size // 2]] = True
    return Roles(held, held, shared)


def start_from_the_better(options, own, shared, score):
    scores = score(own).mean(), score(shared).mean()
    print(f"toy: own {scores[0]:.4f}, shared {scores[1]:.4f}", flush=True)
    return Mix(own, 1) if scores[0] < scores[1] else Mix(shared, 0)


def init(values):
    return {VALUES: values, COUNTER: np.zeros_like(values)}


def merge(options, space, state, cohort):
    step = cohort.average(VALUES, state[VALUES]) - state[VALUES]
    values = state[VALUES] + np.float32(options.step) * step
    return {VALUES: values, COUNTER: state[COUNTER] + cohort.shared.astype(np.float32)}


METHOD = Method(
    "Half steps", "none", Options, roles=share_first_half, start=start_from_the_better, init=init, merge=merge
)
'''
METADATA = "Metadata-Version: 2.1\nName: toy-method\nVersion: 0.1\n"
ENTRY_POINTS = "[perfit.methods]\ntoy = toy_method:METHOD\n"
PERFIT = "from perfit_pipelines.cli import main; main()"
SIMULATE = """
from pathlib import Path

import numpy as np
import torch

from perfit.export import peft_files
from perfit.federation_file import load_federation
from perfit.simulation import simulate

torch.set_num_threads(1)
spec = load_federation(Path("federation.yaml"))
state = simulate(spec)
np.savez("simulated.npz", **state.vectors)
for client, result in state.results.items():
    directory = Path("simulated", client)
    directory.mkdir(parents=True)
    for name, content in peft_files(spec.expanded_lora, spec.model, result.adapter).items():
        (directory / name).write_bytes(content)
"""


@dataclass(frozen=True)
class Ran:
    """A directory with a federation by the toy method that has run, and what ``perfit run`` printed."""

    directory: Path
    output: str

    @property
    def root(self) -> Path:
        """The federation's directory in the store."""
        return self.directory / "store/federations/tiny"

    @property
    def store(self) -> FederationStore:
        return FederationStore.open((self.directory / "store").as_uri(), "tiny")

    @property
    def log(self) -> str:
        (file,) = (self.directory / ".perfit/federations").glob("tiny*/run.log")
        return file.read_text()

    def perfit(self, *arguments: str) -> str:
        """Run the command on the store here, in a process that finds the toy's package."""
        return python(self.directory, PERFIT, *arguments, "--store", (self.directory / "store").as_uri())

    def server(self, round: int, file: str, name: str) -> np.ndarray:
        """A vector of the server, shape (N,)."""
        stored = AdapterFile.parse((self.root / f"rounds/{round}/{file}.safetensors").read_bytes())
        return stored.named_vectors(np.ones(stored.space.size, dtype=bool))[name]

    def held(self, client: str) -> np.ndarray:
        """The architecture of a client, bool, shape (N,)."""
        (digest,) = self.store.find_masks(client)
        return AdapterFile.parse(self.store.get_mask(client, digest)).mask


def python(directory: Path, code: str, *arguments: str) -> str:
    """Run Python code with the toy's package installed; return what it printed."""
    path = os.pathsep.join(filter(None, [str(directory / "packages"), os.environ.get("PYTHONPATH")]))
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "120", "PERFIT_HOME": str(directory / ".perfit")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def ran(tiny_llama, tmp_path_factory) -> Ran:
    """Two clients of ranks 2 and 1, two rounds, through KFP's local runner."""
    directory = tmp_path_factory.mktemp("toy")
    information = directory / "packages/toy_method-0.1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(METADATA)
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    (directory / "packages/toy_method.py").write_text(TOY)
    home = make_home(directory, tiny_llama, method={"name": "fedit"})
    tree = yaml.safe_load(home.file.read_text())
    home.file.write_text(
        yaml.safe_dump({**tree, "method": {"name": "toy", "step": 0.5}, "exchange": {"holders": 1, "dtype": "float32"}})
    )
    return Ran(directory, Ran(directory, "").perfit("run", "federation.yaml"))


def test_the_pipeline_and_the_simulation_give_the_same_bytes(ran):
    printed = python(ran.directory, SIMULATE)
    simulated = files(ran.directory / "simulated")
    assert len(simulated) == 4
    stored = files(ran.root)
    for key, content in simulated.items():
        client, name = key.split("/")
        assert stored[f"clients/{client}/adapter/{name}"] == content, key
    with np.load(ran.directory / "simulated.npz") as vectors:
        assert (ran.server(2, "global", "values") == vectors["values"]).all()
        assert (ran.server(2, "state", "counter") == vectors["counter"]).all()
    # Every client chose a start in the second round (in the first there is one), on the same scores; the tiers' loops
    # have an order of KFP's own.
    chosen = sorted(line.strip() for line in ran.log.splitlines() if line.strip().startswith("toy: "))
    assert len(chosen) == 2
    assert chosen == sorted(line for line in printed.splitlines() if line.startswith("toy: "))


def test_clients_share_the_first_half_of_what_they_hold(ran):
    for client, rank in (("ann", 2), ("bob", 1)):
        record = json.loads((ran.root / f"rounds/2/updates/{client}.json").read_text())
        assert (record["budget"], record["shared"]) == (224 * rank, 112 * rank)
        update = AdapterFile.parse((ran.root / record["update"]["key"]).read_bytes())
        assert update.vectors(half(ran.held(client)), ["values"])["values"].shape == (112 * rank,)
        assert (ran.root / f"clients/{client}/state/2.safetensors").exists()


def test_the_server_goes_half_the_way_and_counts(ran):
    before, after = ran.server(0, "global", "values"), ran.server(1, "global", "values")
    total, weight = np.zeros(before.size), np.zeros(before.size)
    for client in ("ann", "bob"):
        record = json.loads((ran.root / f"rounds/1/updates/{client}.json").read_text())
        shared = half(ran.held(client))
        update = AdapterFile.parse((ran.root / record["update"]["key"]).read_bytes())
        total[shared] += record["samples"] * update.vectors(shared, ["values"])["values"]
        weight[shared] += record["samples"]
    shared = weight > 0
    np.testing.assert_allclose(after[shared], (before[shared] + total[shared] / weight[shared]) / 2, atol=1e-6)
    assert (after[~shared] == before[~shared]).all()
    assert np.abs(after - before)[shared].max() > 1e-3
    for round in (0, 1, 2):
        assert (ran.server(round, "state", "counter") == round * shared).all()


def half(held: np.ndarray) -> np.ndarray:
    """The first half of what is held."""
    return held & (np.cumsum(held) <= np.count_nonzero(held) // 2)


def test_every_command_shows_it(ran):
    assert ran.output.startswith("federation tiny: toy, store ")
    assert "  after  change " in ran.output
    log = ran.log
    tasks = list(filter(None, map(parse_task, log.splitlines())))
    assert (tasks[0], tasks.count("aggregate"), tasks[-1]) == ("prepare", 1, "aggregate-2")

    status = ran.perfit("status")
    assert ": round 2 committed, " in status.splitlines()[0]
    rows = [line.split() for line in status.splitlines() if line.startswith((" ann", " bob"))]
    assert [(row[0], row[2], row[-1]) for row in rows] == [("ann", "448", "ok"), ("bob", "224", "ok")]

    ran.perfit("report", "-o", "page.html")
    page = (ran.directory / "page.html").read_text()
    assert undated(page) == undated((ran.root / "rounds/2/report.html").read_text())
    assert "Half steps" in page
    assert "ann" in page
    assert "bob" in page

    ran.perfit("export", "ann", "exported", "--adapter-only")
    assert files(ran.directory / "exported") == files(ran.root / "clients/ann/adapter")
