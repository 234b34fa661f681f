"""Compiling a federation's pipelines to KFP's IR, and what a cluster can take of them."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import yaml

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.locations import check_store_uri
from perfit.sampling import sample_clients
from perfit_pipelines.pipelines import Images, Part, federated_round, federated_tuning
from perfit_pipelines.workflow_nodes import Workflow
from perfit_pipelines.workflow_size import ARGUMENT_BYTES, KEPT_BYTES, WorkflowSize, estimate
from perfit_pipelines.writing import write_file

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

PipelineName = Literal["federated_tuning", "federated_round"]
PARAMETER_BYTES = 10_000
"""Of a run's parameter, as the API server takes them unless it is told otherwise: what the UI's form can send."""


@dataclass(frozen=True)
class Compiled:
    """A pipeline's IR with its platform settings, as YAML, and the clients of each of its loops."""

    data: bytes
    loops: Mapping[str, int]

    def size(self, loops: Mapping[str, int] | None = None) -> WorkflowSize:
        """Estimate the workflow of a run.

        Args:
            loops: Iterations of each loop; None for the clients that take part.
        """
        documents = list(yaml.load_all(self.data, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
        return estimate(Workflow.of(documents, self.loops if loops is None else loops))


def compile_pipeline(
    spec: ClusterSpec, pipeline: PipelineName, store: str, target: Path, images: Images | None = None
) -> WorkflowSize:
    """Write a pipeline's IR, with its platform settings, to a YAML file; an existing file is replaced atomically.

    Returns:
        What a run of it takes in the cluster.

    Raises:
        PerfitError: The store's URI holds credentials, the target cannot be written, or the pipeline is too large for
            a cluster.
    """
    if target.suffix not in (".yaml", ".yml"):
        raise PerfitError(f"{target} is not a YAML file", "give a name that ends in .yaml")
    compiled = compile_part(spec, pipeline, store, images or Images(), Part())
    size = compiled.size()
    check_size(compiled, size)
    write_file(target, compiled.data)
    return size


def compile_part(
    spec: ClusterSpec, pipeline: PipelineName, store: str, images: Images, part: Part, file: str | None = None
) -> Compiled:
    """Compile what one run does.

    Args:
        spec: The federation.
        pipeline: Which one.
        store: Default of the pipeline's parameter ``store``.
        images: Where tasks run.
        part: Of a tuning, the rounds; of a round, how many participants the run serves.
        file: URI of the federation file, where it is too long to be an argument.

    Raises:
        PerfitError: The store's URI holds credentials, or the federation file fits no pipeline.
    """
    check_store_uri(store)
    if pipeline == "federated_tuning":
        built = federated_tuning(spec, store, images, part, file)
    else:
        built = federated_round(spec, store, images, part.at_most, file)
    return Compiled(compiled_yaml(built), _loops(spec, part.at_most))


def compiled_yaml(pipeline: BaseComponent) -> bytes:
    """Return a pipeline's IR with its platform settings."""
    from kfp import compiler

    with tempfile.TemporaryDirectory() as directory, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        target = Path(directory, "pipeline.yaml")
        compiler.Compiler().compile(pipeline, str(target))
        return _without_comment(target.read_text(encoding="utf-8")).encode()


def check_size(compiled: Compiled, size: WorkflowSize) -> None:
    """Refuse what the cluster would.

    Raises:
        PerfitError: An argument is too long, or the run's workflow becomes too large.
    """
    if size.argument > ARGUMENT_BYTES:
        raise PerfitError(
            f"the federation file makes an argument of {size.argument:,} bytes, more than a pod is given "
            f"({ARGUMENT_BYTES:,})",
            "start it with perfit submit or perfit schedule, which put the file into the store",
        )
    if not size.fits:
        clients = sum(compiled.loops.values())
        raise PerfitError(
            f"a run of this pipeline takes {size.kept:,} bytes at its end ({clients:,} clients a round, {size.nodes:,} "
            f"nodes), more than a cluster takes ({KEPT_BYTES:,})",
            "start it with perfit submit or perfit schedule, which divide it into several runs; or lower rounds or "
            "participation.fraction",
        )


def participants_by_tier(spec: ClusterSpec) -> dict[str, int]:
    """How many clients of each tier of pods take part in a round, which is the same in all rounds."""
    chosen = [client.tier for client in sample_clients(spec.clients, spec.participation, spec.training.seed, 1)]
    return {tier: chosen.count(tier) for tier in spec.pod_tiers()}


def _loops(spec: ClusterSpec, at_most: int) -> dict[str, int]:
    """Clients of each tier in a round; of a part of one, all in the tier that takes most."""
    tiers = spec.pod_tiers()
    if at_most and tiers:
        largest = max(tiers, key=spec.names_claims)
        return {tier: at_most if tier == largest else 0 for tier in tiers}
    return participants_by_tier(spec)


def _without_comment(text: str) -> str:
    """Return compiled YAML without KFP's comment on top, which a default of several lines breaks out of."""
    _, start, body = text.partition("\ncomponents:\n")
    return start.lstrip() + body
