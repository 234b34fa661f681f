"""Python's garbage collection is off within the context, and as it was behind it."""

from __future__ import annotations

import gc

import pytest

from perfit.collection import without_collection


def test_collection_is_on_again_also_after_an_error():
    @without_collection()
    def fail():
        raise ZeroDivisionError(gc.isenabled())

    with pytest.raises(ZeroDivisionError, match="False"):
        fail()
    assert gc.isenabled()


def test_collection_stays_off_where_it_was():
    with without_collection():
        with without_collection():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
