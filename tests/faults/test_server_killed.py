"""An S3 server that is killed and comes back: clients wait for it, and a server step is run again, as Kubeflow does."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from signal import SIGKILL

import pytest

from perfit_storage import StoreError
from perfit_storage.local_server import LocalS3Server, find_weed

from .invariants import check, delivered
from .s3_proxy import AFTER, BEFORE, faulty
from .steps import Federation
from .totals import EFFORT, TOTALS

OUTAGE_S = 1.0
KILLS = [
    ("client", BEFORE, "updates/ann.safetensors"),
    ("client", AFTER, "updates/ann.json"),
    ("aggregate", AFTER, "summary.json"),
    ("aggregate", AFTER, "head.json"),
]
WRITES = {
    "prepare": ["state.probe.safetensors", "spec.yaml", "model.json", "global.safetensors", "head.json", "plan.json"],
    "client": ["adapter_model.safetensors", "baseline.json", "updates/ann.safetensors", "updates/ann.json"],
    "aggregate": ["global.safetensors", "summary.json", "head.json", "report.html", "plan.json"],
}
if EFFORT > 1:
    KILLS = [(step, AFTER, key) for step, keys in WRITES.items() for key in keys]


class MortalServer:
    """An S3 server that can be killed and started again at the same port, with the same data and keys."""

    def __init__(self, directory: Path):
        self._directory = directory
        self.start()

    def start(self) -> None:
        self._server = LocalS3Server(self._directory).__enter__()
        self.store_uri, self.environment = self._server.store_uri, self._server.environment
        self._group = json.loads((self._directory / "state.json").read_text())["group"]

    def kill(self) -> None:
        os.killpg(self._group, SIGKILL)

    def restart(self) -> None:
        self.stop()
        port = self.environment["AWS_ENDPOINT_URL"]
        self.start()
        assert self.environment["AWS_ENDPOINT_URL"] == port

    def stop(self) -> None:
        self._server.__exit__()


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[MortalServer]:
    try:
        find_weed()
    except StoreError as error:
        pytest.skip(str(error))
    server = MortalServer(tmp_path_factory.mktemp("mortal"))
    yield server
    server.stop()


class KillServer:
    """Watches a proxy, and kills the server behind it before or after a write is passed on, once."""

    def __init__(self, server: MortalServer, moment: str, key: str):
        self._server, self._moment, self._key, self.killed = server, moment, key, threading.Event()

    def __call__(self, moment: str, method: str, path: str) -> bool:
        if self.killed.is_set() or (moment, method) != (self._moment, "PUT") or not path.endswith(self._key):
            return False
        self._server.kill()
        self.killed.set()
        return True


@pytest.mark.parametrize(("step", "moment", "key"), KILLS)
def test_a_server_that_is_killed_loses_nothing(site, cases, hosts, server, step, moment, key):
    case = next(case for case in cases if case.step[0] == step)
    federation = Federation.on_s3(site.spec, server).write(case.before)
    with hosts.one() as host, faulty(server) as (proxy, environment):
        proxy.behaviour.watch = kill = KillServer(server, moment, key)
        order = replace(federation, environment=environment).order(*case.step)
        host.start(order)
        assert kill.killed.wait(60), host.output
        time.sleep(OUTAGE_S)
        server.restart()
        code = host.wait()
        if step == "client":
            assert code == 0, host.output
            assert (1, "ann") in delivered(federation), host.output
        host.run_to_the_end(order)
    check(federation, case.after)
    TOTALS.count("faults injected")
