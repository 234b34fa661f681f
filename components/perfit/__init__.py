"""The method: personalised federated instruction tuning by architecture search (PerFIT, arXiv 2402.16919).

What researchers use is here under one name, and imported when it is first asked for: docs/python.md.
"""

import logging
from importlib import import_module
from typing import Any

# Each import of it warns of a package of kernels that nobody here needs.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

_PUBLIC = {
    "records": ("Record", "RecordReport", "check_records", "read_records"),
    "split": ("Split",),
    "partition": ("partition_records", "split_records", "write_partition"),
    "spec": ("FederationSpec",),
    "federation_file": ("load_federation",),
    "methods": ("METHODS",),
    "simulation": ("Simulation", "State", "simulate"),
    "client": ("ClientResult",),
    "adapter": ("SparseAdapter",),
    "space": ("LoraSpace",),
    "bench.measure": ("measure",),
    "bench.results": ("Measurements", "RoundResult"),
    "bench.comparison": ("Comparison", "compare_methods"),
    "export": ("peft_files",),
    "errors": ("PerfitError", "TrainingDiverged"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name == "__version__":  # looked up only when asked for: the steps of a round never do
        from importlib.metadata import version

        return version("perfit-kubeflow")
    if name in _MODULE_OF:  # most of them import torch
        return getattr(import_module(f"perfit.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
