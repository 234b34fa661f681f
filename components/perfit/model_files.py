"""The files of a base model as a federation was founded with them: names, sizes and hashes.

A model comes to every client's pod on its own way: from a volume that others write to, a hub whose branch moves on, a
conversion. The manifest makes it the same model for all: nothing is loaded that differs from it.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from perfit.errors import PerfitError
from perfit.protocol import Digest, Message, NonNegativeInt, Text

SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".safetensors", ".bin")
"""Of the files that transformers loads without running code. PyTorch's .bin is read where there is no .safetensors."""


class ModelFile(Message):
    """A file: its path below the model's directory, its bytes in number and as a hash."""

    name: Text
    size: NonNegativeInt
    sha256: Digest


class ModelManifest(Message):
    """What the model of a federation consists of.

    Args:
        model: The key ``model`` of the federation file.
        commit: Of the hub's repository; None for a directory or a GGUF file.
        files: Sorted by name.
    """

    model: Text
    commit: Text | None = None
    files: tuple[ModelFile, ...]


def describe_files(model: str, directory: str | Path, commit: str | None = None) -> ModelManifest:
    """Hash the files of a prepared model: about a second a GB.

    Raises:
        PerfitError: One cannot be read.
    """
    found = _loadable(Path(directory))
    files = tuple(
        ModelFile(name=name, size=path.stat().st_size, sha256=_sha256(path)) for name, path in sorted(found.items())
    )
    return ModelManifest(model=model, commit=commit, files=files)


def check_files(manifest: ModelManifest, directory: str | Path) -> None:
    """Compare the files of a prepared model with those that its federation was founded with.

    Raises:
        PerfitError: A file is missing, was added or has other bytes; it is named.
    """
    found, expected = _loadable(Path(directory)), {file.name: file for file in manifest.files}
    for name in sorted({*found, *expected}):
        if name not in found:
            raise _differs(directory, name, "is missing, but was there")
        if name not in expected:
            raise _differs(directory, name, "was not there")
        if found[name].stat().st_size != expected[name].size or _sha256(found[name]) != expected[name].sha256:
            raise _differs(directory, name, "has other bytes than")


def _differs(directory: str | Path, name: str, how: str) -> PerfitError:
    return PerfitError(
        f"model: {directory}/{name} {how} when the federation was founded",
        "use the same model files everywhere; if this is a cache, see who may write to it, delete that directory from "
        "it, and run again",
    )


def _loadable(directory: Path) -> dict[str, Path]:
    """The regular files below a directory that may be loaded, by relative path; no hidden ones."""
    found: dict[str, Path] = {}
    for folder, folders, names in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(folder, name) for name in names if not name.startswith(".")):
            name = path.relative_to(directory).as_posix()
            if path.suffix in SUFFIXES and name.isprintable() and path.is_file():
                found[name] = path
    if any(name.endswith(".safetensors") for name in found):
        return {name: path for name, path in found.items() if not name.endswith(".bin")}
    return found


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise PerfitError(
            f"model: {path} cannot be read: {error.strerror}", "make it readable for this user"
        ) from error
