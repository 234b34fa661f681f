"""PerFIT's search alone: the options of PerFIT, the roles of local tuning."""

from __future__ import annotations

import numpy as np

from perfit.round import ClientRound

from .helpers import SPACE, make_spec, masks


def test_a_client_trains_what_its_search_has_kept_and_shares_nothing():
    spec = make_spec({"name": "perfit-local", "metric": "gradient", "search_steps": 12})
    assert spec.search == make_spec({"name": "perfit", "metric": "gradient", "search_steps": 12}).search
    assert spec.expansion == 2
    held = np.array([0, 1, 0, 1, 1, 0], dtype=bool)
    assert masks(ClientRound(spec, SPACE, held, 1).roles) == ([1, 3, 4], [1, 3, 4], [])
