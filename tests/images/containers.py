"""Containers with the limits that the cluster puts on pods."""

from __future__ import annotations

import builtins
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from docker import DockerClient

    from perfit.cluster_spec import ClusterSpec
    from perfit_pipelines.pipelines import Images

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


def run_federation(
    spec: ClusterSpec,
    store: str,
    images: Images,
    environment: Mapping[str, str],
    inputs: Mapping[Path, str],
    outputs: Path,
    cache: Path,
) -> None:
    """Run ``federated_tuning`` through KFP's DockerRunner: the tasks' very commands, as the cluster limits them.

    Args:
        spec: The federation.
        store: URI of a store that containers on this machine's network reach.
        images: That tasks run in.
        environment: Of every task: the keys to the store.
        inputs: What tasks read, by path on this machine, and where containers find it.
        outputs: Directory for what tasks give to KFP; handed over to the images' user.
        cache: Directory for /cache; likewise.
    """
    from docker.types import Mount
    from kfp import local

    from perfit_pipelines.pipelines import federated_tuning

    for directory in (outputs, cache):
        directory.mkdir()
        shutil.chown(directory, USER, USER)
    mounts = [Mount(target, str(path), type="bind", read_only=True) for path, target in inputs.items()]
    mounts.append(Mount("/cache", str(cache), type="bind"))
    runner = local.DockerRunner(environment=dict(environment), mounts=mounts, network_mode="host", **RESTRICTED)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(builtins, "print", print)  # the runner replaces it, and would leave it so
        warnings.simplefilter("ignore")
        local.init(runner, pipeline_root=str(outputs))
        federated_tuning(spec, store, images)()
