"""The federation whose compiled pipelines are kept under ``goldens/``, and what is compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from perfit.federation_file import parse_federation
from perfit_pipelines.compile import PipelineName, compile_pipeline
from perfit_pipelines.pipelines import Images

PIPELINES: tuple[PipelineName, ...] = ("federated_tuning", "federated_round")
STORE = "s3://bucket/prefix"
IMAGES = Images("registry.example/client:1", "registry.example/server:1")
FEDERATION = """\
name: hospitals
model: owner/model
rounds: 2
participation: {minimum_clients: 2}
tiers:
  office: {cpu: 500m, memory: 2Gi, parallelism: 3}
  gpu:
    cpu: 4
    memory: 24Gi
    accelerator: {type: nvidia.com/gpu, count: 2}
    node_selector: {cloud.google.com/gke-accelerator: nvidia-l4}
    tolerations: [{key: nvidia.com/gpu, operator: Exists, effect: NoSchedule}]
    queue: gpus
    queue_priority: research
    queue_seconds: 3600
clients:
  - {id: north, tier: office, rank: 4, data: s3://data/north.jsonl, secret: keys-of-north}
  - {id: south, tier: office, data: s3://data/south.jsonl}
  - {id: east, tier: gpu, data: /data/east.jsonl, volume: east-records}
"""


def golden_file(pipeline: PipelineName) -> Path:
    """Where a pipeline's golden IR is."""
    return Path(__file__).with_name("goldens") / f"{pipeline}.yaml"


def compiled(pipeline: PipelineName, directory: Path, text: str = FEDERATION) -> Path:
    """Compile a pipeline of a federation file into a directory."""
    target = directory / f"{pipeline}.yaml"
    compile_pipeline(parse_federation(text), pipeline, STORE, target, IMAGES)
    return target


def documents(path: Path) -> list[dict[str, Any]]:
    """The pipeline and its platform settings."""
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def normalised(path: Path) -> str:
    """A pipeline without what depends only on the SDK's version."""
    pipeline, platform = documents(path)
    pipeline["sdkVersion"] = "kfp"
    for executor in pipeline["deploymentSpec"]["executors"].values():
        executor["container"]["command"] = "the SDK's start, and the component's source"
    return yaml.safe_dump_all([pipeline, platform], sort_keys=True, width=110)
