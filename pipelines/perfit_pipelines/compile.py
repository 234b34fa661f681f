"""Compiling a federation's pipelines to KFP's IR."""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Literal

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit_pipelines.pipelines import Images, federated_round, federated_tuning

PipelineName = Literal["federated_tuning", "federated_round"]
_MAX_WORKFLOW_BYTES = 1_400_000
"""A workflow in the cluster must fit in etcd's 1.5 MiB; KFP embeds the IR in it (kubeflow/pipelines#13738)."""


def compile_pipeline(
    spec: ClusterSpec, pipeline: PipelineName, store: str, target: Path, images: Images | None = None
) -> None:
    """Write a pipeline's IR, with its platform settings, to a YAML file; an existing file is replaced when it is whole.

    Raises:
        PerfitError: The target cannot be written, or the pipeline is too large for a cluster.
    """
    from kfp import compiler

    build = {"federated_tuning": federated_tuning, "federated_round": federated_round}[pipeline]
    if target.suffix not in (".yaml", ".yml"):
        raise PerfitError(f"{target} is not a YAML file", "give a name that ends in .yaml")
    try:
        with tempfile.TemporaryDirectory(dir=target.parent) as directory, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            draft = Path(directory, "pipeline.yaml")
            compiler.Compiler().compile(build(spec, store, images or Images()), str(draft))
            size = _drop_comment(draft)
            if size > _MAX_WORKFLOW_BYTES:
                raise PerfitError(
                    f"the compiled pipeline has {size:,} bytes, more than a cluster takes ({_MAX_WORKFLOW_BYTES:,})",
                    "lower rounds and run the pipeline again for more, or schedule federated_round",
                )
            os.replace(draft, target)
    except OSError as error:
        raise PerfitError(f"{target} cannot be written: {error}", "give a path in a directory that exists") from error


def _drop_comment(file: Path) -> int:
    """Remove KFP's comment on top, which a default of several lines runs out of; return the size that is left."""
    _, start, body = file.read_text(encoding="utf-8").partition("\ncomponents:\n")
    return file.write_text(start.lstrip() + body, encoding="utf-8")
