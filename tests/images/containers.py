"""Containers with the limits that the cluster puts on pods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from docker import DockerClient

USER = 10001

RESTRICTED: dict[str, Any] = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}
"""What Kubernetes' "restricted" level asks of a pod, and a root file system that nobody can write to."""


@dataclass(frozen=True)
class Ended:
    """What a container left: its exit code and all that it printed."""

    code: int
    output: str


def run(daemon: DockerClient, image: str, command: Sequence[str] | None = None, **options: Any) -> Ended:
    """Run a container to its end, without a network; ``options`` are docker-py's, over those of `RESTRICTED`."""
    options = {**RESTRICTED, "network_mode": "none", **options}
    container = daemon.containers.create(image, command, **options)
    try:
        container.start()
        code = container.wait(timeout=300)["StatusCode"]
        return Ended(code, container.logs().decode())
    finally:
        container.remove(force=True)


def run_python(daemon: DockerClient, image: str, code: str, **options: Any) -> str:
    """Run Python code in a container as KFP runs a task's: in a shell, by ``python3``. Return what it printed."""
    ended = run(daemon, image, ["sh", "-ec", 'python3 -c "$0"', code], **options)
    assert ended.code == 0, ended.output
    return ended.output.strip()
