"""What an image contains, and whether tasks run in it: ``python -m perfit_components.health client`` (or server)."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
import tempfile

from perfit.errors import PerfitError

_SERVER = {
    "perfit": "perfit-kubeflow",
    "perfit_storage": "perfit-kubeflow",
    "kfp.dsl.executor_main": "kfp",
    "jinja2": "jinja2",
    "minio": "minio",
    "ml_dtypes": "ml-dtypes",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "yaml": "pyyaml",
}
MODULES = {
    "server": {
        **_SERVER,
        "perfit.kernels": "numba",
        "perfit_report": "perfit-kubeflow",
        "matplotlib.figure": "matplotlib",
    },
    "client": {
        **_SERVER,
        "accelerate": "accelerate",
        "datasets": "datasets",
        "gguf": "gguf",
        "peft": "peft",
        "pyarrow.parquet": "pyarrow",
        "torch": "torch",
        "transformers": "transformers",
    },
}
"""For each image, the modules that its tasks import, and the distributions that they come from."""


def check(image: str) -> dict[str, str]:
    """Write a temporary file and import what an image's tasks need.

    Args:
        image: ``client`` or ``server``.

    Returns:
        The version of each distribution, of Python, and of CUDA if torch is installed and can use a GPU.

    Raises:
        PerfitError: There is no such image, nothing can be written, or a module cannot be imported.
    """
    if image not in MODULES:
        raise PerfitError(f"there is no image {image!r}", f"give one of {', '.join(MODULES)}")
    # KFP's launcher sets it too: its executor then imports nothing that only compiling needs.
    os.environ["_KFP_RUNTIME"] = "true"
    _write_temporary_file()
    versions = {"python": sys.version.split()[0]}
    for module, distribution in MODULES[image].items():
        versions[distribution] = _version(module, distribution)
    return {**versions, **_accelerators()}


def _write_temporary_file() -> None:
    try:
        with tempfile.TemporaryFile() as file:
            file.write(b"?")
    except OSError as error:
        raise PerfitError(
            f"no temporary file can be written: {error}", "mount something at /tmp: --tmpfs /tmp, or an emptyDir"
        ) from error


def _version(module: str, distribution: str) -> str:
    try:
        importlib.import_module(module)
        return importlib.metadata.version(distribution)
    except ImportError as error:
        raise PerfitError(f"{module} cannot be imported: {error}", "build the images again: make images") from error


def _accelerators() -> dict[str, str]:
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    return {"cuda": torch.version.cuda or "none", "gpus": ", ".join(names) or "none"}


def main() -> None:
    """Print the versions as JSON, or an error with its fix and exit code 1."""
    try:
        print(json.dumps(check(*sys.argv[1:2] or [""]), indent=1, sort_keys=True))
    except PerfitError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
