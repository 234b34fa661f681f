"""The methods by name: those of this package, one file per paper, and those that installed packages add.

A package adds methods with entry points of the group ``perfit.methods``, each naming a :class:`Method`::

    [project.entry-points."perfit.methods"]
    my-method = "my_package.my_module:METHOD"
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points

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
    "perfit",
    "perfit-adaptive",
    "fedit",
    "local",
    "perfit-local",
    "fedprox",
    "ffa-lora",
    "fedsa-lora",
    "feddpa",
    "flexlora",
    "hetlora",
    "rolora",
    "scaffold",
    "fedavgm",
    "fedadam",
    "fedyogi",
)


class _Methods(Mapping[str, Method]):
    """The methods, each imported when it is first asked for: a federation has one."""

    @cached_property
    def installed(self) -> dict[str, Method]:
        """Methods of other packages by name."""
        methods = [entry.load() for entry in entry_points(group="perfit.methods")]
        return {method.name: method for method in methods if method.name not in _TABLE}

    def __getitem__(self, name: str) -> Method:
        if name in _TABLE:
            return import_module(f"perfit.methods.{name.replace('-', '_')}").METHOD
        return self.installed[name]

    def __iter__(self) -> Iterator[str]:
        return iter((*_TABLE, *self.installed))

    def __len__(self) -> int:
        return len(_TABLE) + len(self.installed)


METHODS = _Methods()
"""Every method by its name in federation files; installed packages cannot replace one of this package."""
