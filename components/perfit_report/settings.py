"""What a federation was run with: its settings under flat names, and the libraries that are installed."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from perfit.spec import FederationSpec, flatten

_LIBRARIES = ("perfit-kubeflow", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "numpy")


def settings(spec: FederationSpec) -> dict[str, Any]:
    """Return all that the method reads of a federation file, defaults included, by dotted key, and how many clients."""
    fields = set(FederationSpec.model_fields) - {"clients"}
    return flatten(spec.model_dump(mode="json", include=fields)) | {"clients": len(spec.clients)}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that results depend on, as far as they are installed here."""
    found = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
