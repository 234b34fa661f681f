"""The method: personalised federated instruction tuning by architecture search (PerFIT, arXiv 2402.16919)."""

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "__version__":  # looked up only when asked for: the steps of a round never do
        from importlib.metadata import version

        return version("perfit-kubeflow")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
