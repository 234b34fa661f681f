"""PerFIT's search without its exchange: each client trains its own architecture alone.

Not a method of a paper, but the control that tells what the search gives from what the exchange gives.
"""

from __future__ import annotations

from typing import Literal

from perfit.methods.local import keep_all
from perfit.methods.method import Method
from perfit.methods.perfit import Options as PerFITOptions
from perfit.methods.perfit import search


class Options(PerFITOptions):
    """How clients search, as for PerFIT."""

    name: Literal["perfit-local"] = "perfit-local"


METHOD = Method("PerFIT without exchange", "baseline", Options, roles=keep_all, search=search)
