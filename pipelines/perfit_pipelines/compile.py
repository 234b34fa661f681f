"""Compiling a federation's pipelines to KFP's IR."""

from __future__ import annotations

import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import Literal

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.locations import check_store_uri
from perfit_pipelines.pipelines import Images, federated_round, federated_tuning
from perfit_pipelines.writing import write_file

PipelineName = Literal["federated_tuning", "federated_round"]
_MAX_WORKFLOW_BYTES = 1_400_000
"""A workflow in the cluster must fit in etcd's 1.5 MiB; KFP embeds the IR in it (kubeflow/pipelines#13738)."""


def compile_pipeline(
    spec: ClusterSpec,
    pipeline: PipelineName,
    store: str,
    target: Path,
    images: Images | None = None,
    first: int = 1,
) -> None:
    """Write a pipeline's IR, with its platform settings, to a YAML file; an existing file is replaced atomically.

    Args:
        spec: The federation.
        pipeline: Which of the two.
        store: URI of the store.
        target: The file.
        images: Where tasks run; None for those of this version.
        first: The first round of a tuning, where those before it are known to be committed.

    Raises:
        PerfitError: The store's URI holds credentials, the target cannot be written, or the pipeline is too large for
            a cluster.
    """
    from kfp import compiler

    check_store_uri(store)
    build = {"federated_tuning": partial(federated_tuning, first=first), "federated_round": federated_round}[pipeline]
    if target.suffix not in (".yaml", ".yml"):
        raise PerfitError(f"{target} is not a YAML file", "give a name that ends in .yaml")
    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        compiled = Path(directory, "pipeline.yaml")
        compiler.Compiler().compile(build(spec, store, images or Images()), str(compiled))
        data = _without_comment(compiled.read_text(encoding="utf-8")).encode()
    if len(data) > _MAX_WORKFLOW_BYTES:
        raise PerfitError(
            f"the compiled pipeline has {len(data):,} bytes, more than a cluster takes ({_MAX_WORKFLOW_BYTES:,})",
            "lower rounds and run the pipeline again for more, or schedule federated_round",
        )
    write_file(target, data)


def _without_comment(text: str) -> str:
    """Return compiled YAML without KFP's comment on top, which a default of several lines breaks out of."""
    _, start, body = text.partition("\ncomponents:\n")
    return start.lstrip() + body
