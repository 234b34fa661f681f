"""A directory that holds secrets: readable by its owner only, and never where git would commit it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from perfit.errors import PerfitError
from perfit_storage.files import write_atomically

SECRETS = "secrets.yaml"
"""The file that marks a directory as written by this command."""


def check_directory(directory: Path, files: Sequence[str] = (SECRETS,)) -> None:
    """Check that secrets may be written to a directory.

    Args:
        directory: It need not exist.
        files: Names by any of which it is known to be ours; git must ignore the first.

    Raises:
        PerfitError: It holds other files, or is in a git work tree that does not ignore it.
    """
    known = any((directory / file).is_file() for file in files)
    if directory.exists() and not known and (not directory.is_dir() or any(directory.iterdir())):
        raise PerfitError(f"{directory} exists and was not written by this command", "give a new directory")
    if _git_would_commit(directory.resolve(), files[0]):
        raise PerfitError(
            f"{directory} is in a git work tree that does not ignore it, and would hold secrets",
            f"give a directory outside of it, or add {directory.name}/ to .gitignore",
        )


def write_private(directory: Path, files: Mapping[str, str]) -> None:
    """Write files that only their owner can read, each atomically.

    Args:
        directory: Created if it is missing.
        files: Texts by path below the directory.

    Raises:
        PerfitError: They cannot be written.
    """
    try:
        for name, text in files.items():
            path = directory / name
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.parent.chmod(0o700)
            write_atomically(path, text.encode(), mode=0o600)
    except OSError as error:
        raise PerfitError(f"{directory} cannot be written: {error}", "give another directory") from error


def _git_would_commit(directory: Path, file: str) -> bool:
    existing = next(path for path in (directory, *directory.parents) if path.is_dir())
    if shutil.which("git"):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
        command = ["git", "-C", str(existing), "check-ignore", "-q", str(directory / file)]
        answer = subprocess.run(command, env=environment, capture_output=True).returncode
        if answer in (0, 1):
            return answer == 1
    # Without git, or with a repository that git refuses to read, a work tree counts as one that ignores nothing.
    return any((path / ".git").exists() for path in (existing, *existing.parents))
