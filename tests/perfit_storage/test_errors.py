from __future__ import annotations

import pickle

from perfit.errors import PerfitError
from perfit_storage import AccessDenied, CorruptObject, ObjectNotFound, StoreError, StoreUnreachable


def test_message_and_pickle():
    error = pickle.loads(pickle.dumps(ObjectNotFound("no such thing", "make one")))
    assert type(error) is ObjectNotFound
    assert (error.problem, error.fix) == ("no such thing", "make one")
    assert str(error) == "no such thing\n  fix: make one"


def test_every_error_of_a_store_is_one_that_a_user_can_act_on():
    for kind in (AccessDenied, CorruptObject, ObjectNotFound, StoreUnreachable):
        assert issubclass(kind, StoreError)
    assert issubclass(StoreError, PerfitError)
