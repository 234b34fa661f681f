"""One of the processes that do a client's part of a round together, as torchrun starts them.

The first is the client: it alone writes to the store, and its log is the client's. The others load the model and the
records, and compute with it. A process that fails says why in the store of the process group, where a thread of each
other looks: none waits for long for one that has gone, whatever the library that passes gradients on makes of it. The
reason becomes the client's record, and no exit code: Kubernetes would start the pod again. Where a process was killed,
or told to stop, it shall: then all end with an exit code, since the pods can only begin together.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from perfit import processes
from perfit.errors import log_error
from perfit.processes import ProcessLost
from perfit_components.steps.client import TaskResult, attempt, computing, record_failure, shown
from perfit_components.steps.client_context import ClientContext
from perfit_components.steps.computation import end, follow
from perfit_components.steps.failure import Failure, failure_as_record, stoppable

_KEY = "perfit/failure"
_LOOK_S = 1.0
_GRACE_S = 20.0
"""From a failure on, a process has this time to end by itself."""
_PATIENCE = timedelta(hours=1)
"""How long processes wait for each other: one may have to download the model."""


def train_together(uri: str, round: int, name: str, threads: int) -> TaskResult | None:
    """Do a client's part of a round in several processes, of which torchrun has set the environment of this one.

    Args:
        uri: URI of the federation.
        round: From 1.
        name: The client's name in the cluster, that of its Secret.
        threads: CPU threads of each process.

    Returns:
        In the first process what its record says, as :func:`perfit_components.steps.client.train`; None in the others.
        If a process failed, this ends the process instead, in the first after the reason is in the record.
    """
    reasons = Reasons(_join())
    first = processes.index() == 0

    def give_up(failure: Failure | None) -> NoReturn:
        if first and failure:
            record_failure(uri, round, name, failure)
        # At once: an ordinary exit may wait for what the others owe.
        os._exit(1 if failure is None or failure.interrupted else 0)

    with reasons.watched(give_up):
        result = attempt(uri, round, name, threads) if first else _follow(uri, round, name, threads)
        if isinstance(result, Failure):
            give_up(reasons.first(result))
        if first:
            _end()
    dist.destroy_process_group()
    return shown(result) if first else None


class Reasons:
    """Why the first process that failed did, as all of them see it.

    Args:
        store: Of the process group, a connection of its own: each serves one call at a time.
    """

    def __init__(self, store: dist.Store):
        self._store, self._leaving = store, threading.Event()

    def first(self, own: Failure) -> Failure:
        """Say why this process failed, unless another has said so before; return what was said first."""
        self._leaving.set()
        try:
            return Failure(**json.loads(self._store.compare_set(_KEY, "", json.dumps(asdict(own)))))
        except RuntimeError as error:  # it was in the first node's torchrun, which has gone
            log_error("the other processes do not hear of this", error)
            return own

    @contextmanager
    def watched(self, give_up: Callable[[Failure | None], None]) -> Iterator[None]:
        """Within the context, a thread calls ``give_up`` if another process failed and this one does not leave.

        It is given why the other failed; None if the store has gone, and with it the first node.
        """
        thread = threading.Thread(target=self._watch, args=(give_up,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._leaving.set()

    def _watch(self, give_up: Callable[[Failure | None], None]) -> None:
        failure = None
        while not self._leaving.wait(_LOOK_S):
            try:
                if self._store.check([_KEY]):
                    failure = Failure(**json.loads(self._store.get(_KEY)))
                    break
            except RuntimeError:
                break
        if not self._leaving.wait(_GRACE_S):
            give_up(failure)


def _join() -> dist.Store:
    """Set up the group of processes, each on an accelerator of its own if there are any; return its store."""
    store, index, count = next(dist.rendezvous("env://", timeout=_PATIENCE))
    accelerated = torch.cuda.is_available()
    if accelerated:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if accelerated else "gloo"
    dist.init_process_group(backend, store=store, rank=index, world_size=count, timeout=_PATIENCE)
    return store.clone()


def _follow(uri: str, round: int, name: str, threads: int) -> Failure | None:
    def compute() -> None:
        with computing(threads):
            follow(ClientContext.open(uri, round, name))

    with stoppable():
        return failure_as_record(compute)


def _end() -> None:
    """Let the other processes end. The client's part is done, whatever has become of them."""
    try:
        end()
    except ProcessLost as error:
        log_error("it was when the client's part was done", error)
