"""How the processes of a client's job hear why one of them failed."""

from __future__ import annotations

from queue import Empty, Queue

import pytest
import torch.distributed as dist

from perfit_components.steps import job_process
from perfit_components.steps.failure import Failure
from perfit_components.steps.job_process import Reasons

ONE, OTHER = Failure("out of memory", "out_of_memory"), Failure("the connection was lost")


@pytest.fixture
def at_once(monkeypatch) -> None:
    monkeypatch.setattr(job_process, "_LOOK_S", 0.01)
    monkeypatch.setattr(job_process, "_GRACE_S", 0.01)


def test_the_first_reason_is_that_of_all():
    store = dist.HashStore()
    assert Reasons(store).first(ONE) == ONE
    assert Reasons(store).first(OTHER) == ONE


def test_who_waits_for_one_that_failed_gives_up(at_once):
    store, given = dist.HashStore(), Queue()
    with Reasons(store).watched(given.put):
        Reasons(store).first(ONE)
        assert given.get(timeout=60) == ONE


def test_who_leaves_by_itself_need_not_give_up(at_once):
    store, given = dist.HashStore(), Queue()
    with Reasons(store).watched(given.put) as _:
        pass
    Reasons(store).first(ONE)
    own = Reasons(store)
    with own.watched(given.put):
        own.first(OTHER)
    with pytest.raises(Empty):
        given.get(timeout=0.2)


def test_who_has_lost_the_first_node_gives_up_without_a_reason(at_once):
    server = dist.TCPStore("127.0.0.1", 0, is_master=True)
    connection, given = dist.TCPStore("127.0.0.1", server.port), Queue()
    reasons = Reasons(connection)
    del server
    with reasons.watched(given.put):
        assert given.get(timeout=60) is None
    assert reasons.first(ONE) == ONE
