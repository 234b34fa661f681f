"""A client's task that is told to stop, or takes too long, leaves a record and ends well; the next attempt delivers.

If there is a checkpoint, the next attempt goes on from it, to the bytes of a task that nobody stopped.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from perfit.protocol import parse_outcome
from perfit_components.log_lines import Step, parse_step
from perfit_storage import RoundPlace

from ..perfit_components.running import Site, files

CODE = """
import sys
from perfit_components.steps.client import train
print(train(sys.argv[1], 1, sys.argv[2], threads=1), flush=True)
"""
LONG = {"steps": 10_000}


@contextmanager
def task(site: Site) -> Iterator[subprocess.Popen]:
    """A client's task, as its pod runs it."""
    command = [sys.executable, "-c", CODE, site.uri, site.name("ann")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def planned(make_site, **sections) -> Site:
    site = make_site(clients={"ann": {}}, method={"name": "fedit"}, **sections).prepare()
    assert site.planned(1) == ["ann"]
    return site


def test_sigterm_ends_a_training_with_a_record_and_exit_code_0(make_site):
    site = planned(make_site, training=LONG)
    with task(site) as process:
        assert any("step=3/" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert "'status': 'failed'" in out
    outcome = parse_outcome(site.store.read_record(RoundPlace(1), "ann"))
    assert outcome.reason.startswith("the task was told to stop (its pod was deleted, evicted or preempted)")


def test_a_client_that_takes_too_long_has_failed_the_round(make_site):
    site = planned(make_site, training=LONG, participation={"client_deadline_seconds": 3})
    with task(site) as process:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    assert "'status': 'failed'" in out
    outcome = parse_outcome(site.store.read_record(RoundPlace(1), "ann"))
    assert outcome.reason.startswith("the client took longer than participation.client_deadline_seconds")


def test_what_was_stopped_is_done_by_the_next_attempt(make_site):
    site = planned(make_site, training={"steps": 300})
    with task(site) as process:
        assert any("step=3/" in line for line in process.stdout)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert site.train_client("ann")["status"] == "trained"
    assert site.aggregate(1).trained[0].client == "ann"


def test_handlers_are_as_before_afterwards(make_site):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)
    site = planned(make_site, participation={"client_deadline_seconds": 600})
    assert site.train_client("ann")["status"] == "trained"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGALRM)) == before
    assert signal.alarm(0) == 0


STEPS, EVERY = 100, 7
CHECKPOINT = "clients/ann/checkpoint.safetensors"


def with_checkpoints(make_site, method: dict, **training) -> Site:
    training = {"steps": STEPS, "checkpoint_steps": EVERY, **training}
    site = make_site(clients={"ann": {}}, method=method, training=training).prepare()
    site.planned(1)
    return site


def undisturbed(site: Site, store_uri: str, rounds: int = 1) -> dict[str, bytes]:
    """The files after the same trainings without a stop and without checkpoints; the last round is not aggregated."""
    training = site.spec.training.model_copy(update={"checkpoint_steps": None})
    other = Site(site.spec.model_copy(update={"training": training}), store_uri).prepare()
    for round in range(1, rounds):
        other.run_round(round)
    other.train(rounds)
    return files(other.root)


def but_checkpoints(stored: dict[str, bytes]) -> dict[str, bytes]:
    return {key: data for key, data in stored.items() if key not in {"spec.yaml", CHECKPOINT}}


def steps_in(lines) -> list[Step]:
    return [step for line in lines if (step := parse_step(line))]


def stop(site: Site, number: signal.Signals, round: int) -> int:
    """Stop a client's task with a signal in the midst of a search (round 0) or tuning; return the last step done."""
    after = random.randrange(2 * EVERY, STEPS // 2)
    with task(site) as process:
        assert any(f"round={round} client=ann step={after}/" in line for line in process.stdout)
        process.send_signal(number)
        out, _ = process.communicate(timeout=60)
    return max([after, *(step.step for step in steps_in(out.splitlines()))])


SEARCHING = {"search_steps": STEPS, "warmup_steps": 10, "pruning_iterations": 30}


@pytest.mark.parametrize(
    ("number", "round", "method", "training"),
    [
        (signal.SIGTERM, 0, SEARCHING, {}),
        (signal.SIGKILL, 0, SEARCHING, {"gradient_accumulation": 2}),
        (signal.SIGTERM, 1, {}, {}),
        (signal.SIGKILL, 1, {"name": "scaffold"}, {}),
        (signal.SIGTERM, 1, {"name": "scaffold"}, {"optimizer": "sgd", "gradient_accumulation": 2}),
    ],
    ids=["search", "search, killed", "perfit", "scaffold, killed", "scaffold, sgd"],
)
def test_the_next_attempt_goes_on_to_the_same_bytes(
    make_site, tmp_path, capsys, caplog, number, round, method, training
):
    site = with_checkpoints(make_site, method, **training)
    last = stop(site, number, round)
    capsys.readouterr()
    assert site.train_client("ann")["status"] == "trained"
    seen = [step.step for step in steps_in(capsys.readouterr().out.splitlines()) if step.round == round]
    done = seen[0] - 1
    assert done % EVERY == 0
    assert last - EVERY <= done <= last
    assert seen == list(range(done + 1, STEPS + 1))
    assert caplog.messages == [f"going on after step {done} of {STEPS}, from a checkpoint"]
    assert but_checkpoints(files(site.root)) == but_checkpoints(undisturbed(site, (tmp_path / "other").as_uri()))
    assert files(site.root)[CHECKPOINT] == b""


@pytest.mark.parametrize("content", [None, b"garbage", bytes(2**25)], ids=["of another round", "garbage", "huge"])
def test_what_is_no_checkpoint_of_this_round_changes_nothing(make_site, tmp_path, caplog, content):
    site = with_checkpoints(make_site, {"name": "fedit"})
    if content is None:
        stop(site, signal.SIGKILL, 1)
        content = files(site.root)[CHECKPOINT]
    site.run_round(1)
    site.planned(2)
    site.store.put_client_file("ann", "checkpoint.safetensors", content)
    caplog.clear()
    assert site.train_client("ann", 2)["status"] == "trained"
    assert [message.partition(":")[0] for message in caplog.messages] == ["the checkpoint is not used"]
    assert files(site.root)[CHECKPOINT] == b""
    assert but_checkpoints(files(site.root)) == but_checkpoints(undisturbed(site, (tmp_path / "other").as_uri(), 2))
