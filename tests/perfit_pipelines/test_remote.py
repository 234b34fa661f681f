"""Owners' own processes, each with its key alone, take part in a federation whose run waits for them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import yaml
from kfp.local.graph_utils import topological_sort_tasks

from perfit.cluster_spec import ClusterSpec
from perfit_components.steps.aggregate import close_round
from perfit_components.steps.prepare import prepare
from perfit_components.steps.wait import wait_for_clients
from perfit_pipelines.local_run import run_locally, wait_last
from perfit_pipelines.pipelines import Images, Part, federated_tuning
from perfit_pipelines.runs import divide
from perfit_storage import RoundPlace, open_store

from ..perfit_components.running import Site, in_memory, make_spec, write_data
from .store_roles import SERVER, KeyedStore, role_server

COMMAND = """
import sys
from perfit_pipelines import cli
try:
    cli.main()
finally:
    print("imported:", *sorted({"kfp", "torch"} & set(sys.modules)), flush=True)
"""
_SECONDS = 120


class Owner:
    """An owner's process, with what it printed."""

    def __init__(self, uri: str, client: str, data: Path, log: Path, environment: Mapping[str, str], *options: str):
        named = ["--federation", uri, "--id", client, "--data", str(data), "--poll", "1", "--threads", "1"]
        self.log = log
        keys = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")} | dict(environment)
        with log.open("ab") as output:
            command = [sys.executable, "-c", COMMAND, "client", *named, *options]
            self.process = subprocess.Popen(command, env=keys, stdout=output, stderr=output)

    @property
    def said(self) -> str:
        return self.log.read_text()

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + _SECONDS
        while text not in self.said:
            assert self.process.poll() is None, self.said
            assert time.monotonic() < deadline, self.said
            time.sleep(0.05)

    def end(self) -> int:
        """Tell it to stop, as a service manager does; return its exit code."""
        self.process.terminate()
        return self.process.wait(_SECONDS)


@pytest.fixture
def owners() -> Iterator[list[Owner]]:
    """Owners' processes; they are ended at last."""
    started: list[Owner] = []
    yield started
    for owner in started:
        if owner.process.poll() is None:
            owner.process.kill()


def federation(model: str, data: Path, rounds: int, eve_has: int = 600) -> ClusterSpec:
    deadlines = {"office": 600, "clinic": eve_has}
    tiers = {name: {"runner": "remote", "deadline_seconds": seconds} for name, seconds in deadlines.items()}
    clients = {"ann": {"tier": "office", "data": None}, "eve": {"tier": "clinic", "data": None, "rank": 1}}
    return make_spec(model, data, rounds=rounds, clients=clients, tiers=tiers)


def in_pods(model: str, data: Path) -> ClusterSpec:
    """The same federation, of one round, of clients in pods."""
    tiers = {"office": {}, "clinic": {}}
    return make_spec(
        model, data, rounds=1, clients={"ann": {"tier": "office"}, "eve": {"tier": "clinic", "rank": 1}}, tiers=tiers
    )


def test_two_owners_and_a_round_that_one_of_them_misses(tiny_llama, tmp_path, owners):
    data = write_data(tmp_path / "data")
    with role_server(tmp_path / "s3") as server:
        keyed = KeyedStore(server, "s3://perfit", federation(tiny_llama, data, 1))
        site = Site(keyed.spec, keyed.uri)

        def start(client: str, *options: str) -> Owner:
            log = tmp_path / f"{client}.log"
            owner = Owner(site.uri, client, data / f"{client}.jsonl", log, keyed.environment(client), *options)
            owners.append(owner)
            return owner

        ann, eve = start("ann"), start("eve")  # before there is a federation
        lines: list[str] = []
        run_locally(keyed.spec, keyed.uri, keyed.environment(SERVER), tmp_path / "run", lines.append)
        assert any("2 of 2 remote clients delivered" in line for line in lines)
        objects = open_store(f"{keyed.uri}/federations/tiny", server.administrator)
        expected = in_memory(in_pods(tiny_llama, data))
        assert {key: objects.get(key).data for key in expected} == expected

        eve.wait_for("waiting for round 2")
        assert eve.end() == 128 + signal.SIGTERM
        assert run_round(keyed, federation(tiny_llama, data, 2, eve_has=1), 2) == (
            ["ann"],
            {"eve": "its owner's process (perfit client) left no record in time"},
        )
        eve = start("eve", "--rounds", "1")  # it was down for a round
        assert run_round(keyed, federation(tiny_llama, data, 3), 3) == (["ann", "eve"], {})
        assert eve.process.wait(_SECONDS) == 0
        assert ann.end() == 128 + signal.SIGTERM
    assert [line for line in (ann.said + eve.said).splitlines() if "imported:" in line] == ["imported:"] * 3


def run_round(keyed: KeyedStore, spec: ClusterSpec, round: int) -> tuple[list[str], dict[str, str]]:
    """Do the server's part of a round; return who delivered, and why others did not."""
    with keyed.acting(SERVER):
        prepared = prepare(spec.to_yaml(), keyed.uri)
        assert prepared.round == round
        wait_for_clients(prepared.uri, round)
        close_round(prepared.uri, round)
        summary = Site(spec, keyed.uri).summary(round)
    return [record.client for record in summary.trained], {lost.client: lost.reason for lost in summary.lost}


def test_a_stop_in_the_middle_of_a_training_is_no_failure(tiny_llama, tmp_path, owners):
    """A service manager tells all processes of a service; the round stays open for the next start."""
    data = write_data(tmp_path / "data")
    clients = {"ann": {"tier": "office", "data": None}, "bob": {}}
    training = {"steps": 50_000, "checkpoint_steps": 1}
    tiers = {"default": {}, "office": {"runner": "remote"}}
    spec = make_spec(tiny_llama, data, clients=clients, tiers=tiers, training=training)
    site = Site(spec, (tmp_path / "store").as_uri()).prepare()
    owner = Owner(site.uri, "ann", data / "ann.jsonl", tmp_path / "log", {})
    owners.append(owner)
    checkpoint = site.root / "clients/ann/checkpoint.safetensors"
    owner.wait_for("step=3/50000")
    training_process = next(iter(psutil.Process(owner.process.pid).children()))
    training_process.terminate()
    assert owner.end() == 128 + signal.SIGTERM
    assert not training_process.is_running()
    assert checkpoint.stat().st_size > 0
    assert site.store.read_record(RoundPlace(1), "ann") is None


def test_a_local_run_trains_its_own_clients_before_it_waits_for_others(tmp_path):
    """KFP's runner takes a group's tasks in whatever order they come, one after the other."""
    clients = {"ann": {"tier": "office", "data": None}, "bob": {}, "eve": {"tier": "weak"}}
    tiers = {"default": {}, "office": {"runner": "remote"}, "weak": {}}
    pipeline = federated_tuning(make_spec("owner/model", tmp_path, clients=clients, tiers=tiers), "file:///store")
    wait_last(pipeline)
    tasks = topological_sort_tasks(pipeline.pipeline_spec.components["comp-clients"].dag.tasks)
    assert len(tasks) == 3
    assert tasks[0] == "wait", "they are taken from the end"


def test_remote_clients_take_no_room_in_a_run(tmp_path):
    clients = {f"c{number}": {"tier": "office", "data": None} for number in range(1000)}
    spec = make_spec("owner/model", tmp_path, clients=clients, tiers={"office": {"runner": "remote"}})
    assert divide(spec, "federated_round", "s3://bucket/x", Images(), "s3://bucket/x/file") == [Part(1)]


def test_a_store_that_owners_do_not_reach_is_refused(home):
    tree = yaml.safe_load(home.file.read_text())
    tree["tiers"]["strong"] = {"runner": "remote"}
    del tree["clients"][0]["data"]
    home.file.write_text(yaml.safe_dump(tree))
    result = home.perfit("run", home.file)
    assert result.code == 1
    assert "tier 'strong' is remote, and this machine's own store is for this command alone" in result.err
    result = home.perfit("validate", home.file)
    assert "ann: its records are on its owner's machine and were not read" in result.out
    assert "tier strong is remote: a round waits up to 21600 s for its clients\n" in result.out
