"""Following a run: how often it is polled, which errors are waited out, what ends it, and following again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress

import kfp_server_api
import pytest

from perfit.errors import PerfitError
from perfit_pipelines.cluster.connection import Endpoint, connect
from perfit_pipelines.cluster.follow import Pace, exit_code, follow
from perfit_pipelines.cluster.nodes import TaskReader

from .conftest import QUICK, write_federation
from .kfp_api import until
from .recorded import TWO_TIERS, Recording, client_died

COMMAND = "import typer; from perfit_pipelines.cluster.commands import register; a = typer.Typer(); register(a); a()"


class Time:
    """A clock that only sleeping advances."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)

    def clock(self) -> float:
        return self.now


class Notes:
    """A watcher that records what it is told."""

    def __init__(self):
        self.states, self.troubles = [], []

    def on_progress(self, view) -> None:
        self.states.append(view.state)

    def on_trouble(self, text) -> None:
        self.troubles.append(text)


@pytest.fixture
def run_id(api) -> str:
    """A run that someone started."""
    api.runs["a-run"] = kfp_server_api.V2beta1Run(run_id="a-run", display_name="a run")
    return "a-run"


def watch(api, run_id: str, pace: Pace) -> tuple:
    time, notes = Time(), Notes()
    ended = follow(connect(Endpoint(api.url)), run_id, TaskReader([]), notes, (), pace, time.sleep, time.clock)
    return ended, notes, time


def test_looks_grow_rare_while_nothing_changes(api, run_id):
    api.play(*[("PENDING", [])] * 4, *[("RUNNING", [])] * 3, ("SUCCEEDED", []))
    view, _, time = watch(api, run_id, Pace(first=2, longest=5, growth=1.5))
    # 2, 3, 4.5, then at most 5; after the change to RUNNING again from 2 on.
    assert time.slept == [2, 3, 4.5, 5, 2, 3, 4.5]
    assert exit_code(view.state) == 0


def test_a_server_that_fails_for_a_while_is_asked_again(api, run_id):
    api.fail("GET", "/runs/", 503, "upstream connect error", times=2)
    api.fail("GET", "/runs/", 429, "too many requests")
    api.fail("GET", "/runs/", times=20)
    api.play(("RUNNING", []), ("SUCCEEDED", []))
    view, notes, _ = watch(api, run_id, Pace())
    assert (view.state, notes.states) == ("SUCCEEDED", ["RUNNING", "SUCCEEDED"])
    assert "(503): upstream connect error; trying again" in notes.troubles[0]
    assert any("cannot be reached" in trouble for trouble in notes.troubles)


def test_a_server_that_stays_away_ends_following(api, run_id):
    api.fail("GET", "/runs/", 502, "bad gateway", times=10**6)
    with pytest.raises(PerfitError, match="following ended, while the run goes on") as error:
        watch(api, run_id, Pace(patience=600))
    assert f"perfit follow {run_id}" in error.value.fix


@pytest.mark.parametrize(
    ("status", "said", "fix"),
    [
        (401, "token has expired", "PERFIT_KFP_TOKEN"),
        (403, "no right", "ask an administrator"),
        (404, "gone", "--host"),
    ],
)
def test_a_refusal_ends_following_at_once(api, run_id, status, said, fix):
    api.fail("GET", "/runs/", status, said)
    with pytest.raises(PerfitError, match=said) as error:
        watch(api, run_id, Pace())
    assert fix in error.value.fix
    assert f"perfit follow {run_id}" in error.value.fix


def test_a_session_that_ends_meanwhile(api, run_id):
    api.play(("RUNNING", []))
    api.fail("GET", "/runs/", 200)
    with pytest.raises(PerfitError, match="web page"):
        watch(api, run_id, Pace())


def test_a_time_limit_ends_following(api, run_id):
    api.play(("RUNNING", []))
    view, _, time = watch(api, run_id, Pace(first=10, longest=10, limit=35))
    assert (view.state, exit_code(view.state), time.now) == ("RUNNING", 4, 40)


def test_a_run_is_found_again_by_its_id(api, perfit, file):
    perfit.succeed("submit", write_federation(file, **TWO_TIERS), "--no-follow")
    (run_id,) = api.runs
    died = client_died()
    # The first look is for the run's pipeline.
    api.play(*[("RUNNING", died.at("09:47:46").as_listed())] * 2, ("FAILED", died.as_listed()))
    result = perfit("follow", run_id, *QUICK)
    assert result.exit_code == 3
    assert "Round 1 of 1: dock: running" in result.stdout
    assert "Round 1 of 1: dock: failed" in result.stdout


def test_a_run_for_programs(api, perfit, file):
    perfit.succeed("submit", write_federation(file, **TWO_TIERS), "--no-follow")
    (run_id,) = api.runs
    died = client_died()
    api.play(*[("RUNNING", died.at("09:47:46").as_listed())] * 3, ("FAILED", died.as_listed()))
    result = perfit("follow", run_id, "--json", *QUICK)
    *views, end = map(json.loads, result.stdout.splitlines())
    assert (result.exit_code, [view["state"] for view in views]) == (3, ["RUNNING", "FAILED"])
    (dock,) = (task for task in views[-1]["tasks"] if task["label"] == "dock")
    assert (dock["stage"], dock["state"]) == ("Round 1 of 1", "FAILED")
    assert (end["run"], end["state"]) == (run_id, "FAILED")
    assert any("dock" in cause for cause in end["causes"])


def test_a_list_that_is_about_to_stop_is_said_once(api, perfit, file):
    """Of 16 clients, at 271 nodes; here neither the store nor Kubernetes can be asked."""
    details = Recording.of("list-stopped").details
    api.play(*[("RUNNING", details)] * 3, ("SUCCEEDED", details))
    out = perfit.succeed("submit", file, *QUICK)
    assert out.count("Kubeflow lists 271 nodes of this run; beyond about 1 MiB its list stays as it is") == 1
    assert "told by nobody: set AWS_* to keys of the store" in out


def test_a_run_that_does_not_exist(perfit):
    error = perfit.fail("follow", "no-such-run")
    assert "would not show the run no-such-run (404)" in error.problem


def test_a_run_of_something_else(perfit, run_id):
    assert perfit.fail("follow", run_id).problem == "the run is not of a federation"


def interrupt(process: subprocess.Popen[str]) -> str:
    """Press Ctrl-C, again after a while: Python drops a KeyboardInterrupt that meets a destructor. Return stderr."""
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=10)[1]
    process.kill()
    raise AssertionError(f"not interrupted: {process.communicate()}")


def test_interrupting_ends_following_and_not_the_run(api, file):
    api.play(("RUNNING", []))
    arguments = ("submit", file, "--host", api.url, "--poll-interval", "0.05")
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until(lambda: len(api.calls("GET", "/runs/")) > 2)
    said = interrupt(process)

    (run_id,) = api.runs
    assert process.returncode == 130
    assert f"the run goes on. Follow again: perfit follow {run_id}" in said
    assert f"Terminate on its page, {api.url}/#/runs/details/{run_id}" in said
    assert "run the same command again" not in said, "that would submit another run"
    assert not api.calls("POST", "terminate")


def test_registering_the_commands_imports_neither_kfp_nor_torch():
    check = COMMAND.replace("a()", "import sys; print({'kfp', 'torch', 'kubernetes', 'numpy'} & set(sys.modules))")
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout == "set()\n"
