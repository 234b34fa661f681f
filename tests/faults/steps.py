"""Federations whose steps run as processes that can be killed, and what an undisturbed one leaves after each step."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from signal import SIGKILL
from typing import Any

from perfit.cluster_spec import ClusterSpec
from perfit_components.steps.aggregate import close_round
from perfit_storage import FederationStore, ObjectStore, open_store

from ..perfit_components.running import Site, files

KILLED = -SIGKILL
Order = dict[str, Any]
"""A step for a host to run; see ``step_host.py``."""


@dataclass(frozen=True)
class Federation:
    """A federation in a store of its own, and the environment in which its steps reach the store."""

    spec: ClusterSpec
    store_uri: str
    environment: dict[str, str] = field(default_factory=dict)

    @classmethod
    def on_s3(cls, spec: ClusterSpec, server) -> Federation:
        return cls(spec, f"{server.store_uri}/{uuid.uuid4()}", server.environment)

    @property
    def uri(self) -> str:
        return f"{self.store_uri}/federations/{self.spec.name}"

    @cached_property
    def store(self) -> FederationStore:
        return FederationStore.open(self.store_uri, self.spec.name, self.environment)

    @cached_property
    def objects(self) -> ObjectStore:
        return open_store(self.uri, self.environment)

    def write(self, contents: Mapping[str, bytes]) -> Federation:
        for key, data in contents.items():
            self.objects.put(key, data)
        return self

    def contents(self) -> dict[str, bytes]:
        """All objects by their keys."""
        return {key: self.objects.get(key).data for key in self.objects.list("")}

    def order(self, step: str, round: int = 1, client: str = "") -> Order:
        arguments = {
            "prepare": lambda: [self.spec.to_yaml(), self.store_uri],
            "client": lambda: [self.uri, round, self.spec.secret_of(self.spec.client(client)), 1],
            "aggregate": lambda: [self.uri, round, self.spec.tiers_in_use() if round < self.spec.rounds else None],
        }
        return {"step": step, "arguments": arguments[step](), "environment": self.environment, "uri": self.store_uri}


@dataclass(frozen=True)
class Case:
    """A step, and what is in the store before and after it if nothing disturbs it."""

    step: tuple
    before: dict[str, bytes]
    after: dict[str, bytes]


def undisturbed(site: Site) -> list[Case]:
    """Run all steps of a federation in this process, in an empty store of files."""
    cases, before = [], {}

    def done(*step) -> None:
        nonlocal before
        after = files(site.root)
        cases.append(Case(step, before, after))
        before = after

    site.prepare()
    done("prepare")
    for round in range(1, site.spec.rounds + 1):
        for client in site.planned(round):
            assert site.train_client(client, round)["status"] == "trained"
            done("client", round, client)
        close_round(site.uri, round, site.spec.tiers_in_use() if round < site.spec.rounds else None)
        done("aggregate", round)
    return cases


class Host:
    """Runs steps one after another, each in a process of its own."""

    def __init__(self, directory: Path):
        self._output, self._lock = directory / "output", threading.Lock()
        environment = {"TMPDIR": str(directory), "PERFIT_CACHE": str(directory / "cache"), "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("step_host.py")],
            env=os.environ | environment | {"PERFIT_STORE_PATIENCE_S": "60"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def output(self) -> str:
        """What the last step wrote."""
        return self._output.read_text()

    def start(self, order: Order, last: int | None = None) -> None:
        """Start a step; it dies right before change number ``last`` in its store, if that is a directory."""
        with self._lock:  # who kills waits for the process id
            self._process.stdin.write(json.dumps(order | {"output": str(self._output), "last": last}) + "\n")
            self._process.stdin.flush()
            self._pid = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Kill the step that was started, if it has not ended; it is not waited for."""
        with self._lock, suppress(ProcessLookupError):
            os.kill(self._pid, SIGKILL)

    def wait(self) -> int:
        """Wait for the step; return its exit code, negative if a signal ended it."""
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def run(self, order: Order, last: int | None = None) -> int:
        self.start(order, last)
        return self.wait()

    def run_to_the_end(self, order: Order, attempts: int = 5) -> None:
        """Run a step again until it ends well, as Kubeflow does."""
        for _ in range(attempts):
            if self.run(order) == 0:
                return
        raise AssertionError(f"{order['step']} failed {attempts} times:\n{self.output}")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Hosts:
    """As many hosts as there are cores in CI."""

    NUMBER = 2

    def __init__(self, directory: Path):
        self._hosts = []
        for number in range(self.NUMBER):
            (directory / str(number)).mkdir()
            self._hosts.append(Host(directory / str(number)))
        self._idle: queue.Queue[Host] = queue.Queue()
        for host in self._hosts:
            self._idle.put(host)

    @contextmanager
    def one(self) -> Iterator[Host]:
        host = self._idle.get()
        try:
            yield host
        finally:
            self._idle.put(host)

    def close(self) -> None:
        for host in self._hosts:
            host.close()
