"""The methods by name: those of this package, one file per paper, and those that installed packages add.

A package adds methods with entry points of the group ``perfit.methods``, each naming a :class:`Method`::

    [project.entry-points."perfit.methods"]
    my-method = "my_package.my_module:METHOD"
"""

from __future__ import annotations

from importlib.metadata import entry_points

from perfit.methods import (
    fedadam,
    fedavgm,
    feddpa,
    fedit,
    fedprox,
    fedsa_lora,
    fedyogi,
    ffa_lora,
    flexlora,
    hetlora,
    local,
    perfit,
    perfit_adaptive,
    perfit_local,
    rolora,
    scaffold,
)
from perfit.methods.method import (
    VALUES,
    AfterTuning,
    ClientStart,
    Method,
    MethodOptions,
    Mix,
    Roles,
    Search,
    Tuned,
    Vectors,
)

__all__ = [
    "METHODS",
    "VALUES",
    "AfterTuning",
    "ClientStart",
    "Method",
    "MethodOptions",
    "Mix",
    "Roles",
    "Search",
    "Tuned",
    "Vectors",
]

_TABLE = (
    perfit.METHOD,
    perfit_adaptive.METHOD,
    fedit.METHOD,
    local.METHOD,
    perfit_local.METHOD,
    fedprox.METHOD,
    ffa_lora.METHOD,
    fedsa_lora.METHOD,
    feddpa.METHOD,
    flexlora.METHOD,
    hetlora.METHOD,
    rolora.METHOD,
    scaffold.METHOD,
    fedavgm.METHOD,
    fedadam.METHOD,
    fedyogi.METHOD,
)

METHODS: dict[str, Method] = {
    method.name: method for method in (*(entry.load() for entry in entry_points(group="perfit.methods")), *_TABLE)
}
"""Every method by its name in federation files; installed packages cannot replace one of this package."""
