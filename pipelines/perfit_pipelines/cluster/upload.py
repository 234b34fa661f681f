"""Compiled pipelines, as versions of pipelines in Kubeflow."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from kfp_server_api import ApiException, V2beta1Pipeline, V2beta1PipelineVersion

from perfit.cluster_spec import DATA_MOUNT, ClusterSpec
from perfit.errors import PerfitError
from perfit.federation_file import is_local
from perfit_components.steps.file_by_uri import put_federation_file
from perfit_pipelines.cluster.connection import Kubeflow, list_all, name_filter
from perfit_pipelines.compile import PARAMETER_BYTES, Compiled, PipelineName, check_size, compile_part
from perfit_pipelines.pipelines import Images, Part
from perfit_pipelines.runs import divide
from perfit_pipelines.workflow_size import WorkflowSize

_SHORT = {"federated_tuning": "tuning", "federated_round": "round"}
_HASH_DIGITS = 12
LIMITED = (2, 17, 0)
"""From this version of Kubeflow Pipelines on, runs may have a deadline and their workflows a time to live. An older
server that is given one silently drops all that a pipeline says about its pods: Secrets, volumes, nodes, labels."""

NO_LIMITS = "this Kubeflow Pipelines is older than 2.17: the run has no deadline, its workflow stays"


@dataclass(frozen=True)
class Version:
    """A version of a pipeline in Kubeflow.

    Args:
        pipeline: Name of the pipeline.
        name: Of the version: a hash of its content.
        pipeline_id: Of the pipeline.
        version_id: Of the version.
        ir: The pipeline's specification.
        uploaded: Whether it is new; otherwise it was already there.
        size: What a run of it takes in the cluster.
        parameters: For its runs. They equal the defaults, but Kubeflow compares runs by what they were given.
    """

    pipeline: str
    name: str
    pipeline_id: str
    version_id: str
    ir: dict[str, Any]
    uploaded: bool
    size: WorkflowSize
    parameters: dict[str, Any]

    @property
    def page(self) -> str:
        """Its page in the UI."""
        return f"pipelines/details/{self.pipeline_id}/version/{self.version_id}"


@dataclass(frozen=True)
class ClusterPipeline:
    """A federation's pipeline for a cluster, and the runs that it takes.

    Args:
        spec: The federation.
        kind: Which of its pipelines.
        store: That the pods use.
        images: Where tasks run.
        file: URI of the federation file in the store, if it is too long for a run's parameter.
        parts: What each run does, one after the other.
    """

    spec: ClusterSpec
    kind: PipelineName
    store: str
    images: Images
    file: str | None
    parts: list[Part]

    @classmethod
    def of(cls, spec: ClusterSpec, kind: PipelineName, store: str, images: Images, first: int = 1) -> ClusterPipeline:
        """Put the federation file into the store if it is long, and divide the pipeline, from a round on, into runs.

        Raises:
            PerfitError: The store cannot be written, or the pipeline cannot be compiled, or is too large however it is
                divided.
        """
        file = _in_store(spec, store) if len(spec.to_json().encode()) > PARAMETER_BYTES else None
        return cls(spec, kind, store, images, file, divide(spec, kind, store, images, file, first))

    @property
    def name(self) -> str:
        """Its name in Kubeflow."""
        return f"{self.spec.name}-{_SHORT[self.kind]}"

    @property
    def division(self) -> str:
        """How several runs share the work."""
        runs, part = len(self.parts), self.parts[0]
        if not part.at_most:
            return f"{runs} runs, one after the other, of up to {part.last} rounds each"
        rounds = self.spec.rounds - part.first + 1 if self.kind == "federated_tuning" else 1
        return f"{runs} runs, one after the other: {runs // rounds} a round, of up to {part.at_most} clients each"

    def compile(self, part: Part) -> Compiled:
        """Compile what one run does.

        Raises:
            PerfitError: It is too large.
        """
        return compile_part(self.spec, self.kind, self.store, self.images, part, self.file)


def upload(kubeflow: Kubeflow, pipeline: ClusterPipeline, part: Part) -> Version:
    """Compile what one run of a pipeline does and upload it, unless the same is already there.

    Raises:
        PerfitError: It cannot be compiled or is too large, or Kubeflow refuses it, or does not understand all of it.
    """
    compiled, spec = pipeline.compile(part), pipeline.spec
    size = compiled.size()
    check_size(compiled, size)
    parameters = {"method": spec.method.name, "store": pipeline.store}
    description = f"Federation {spec.name}, {pipeline.kind}"
    return upload_compiled(kubeflow, pipeline.name, description, compiled.data, size, parameters, "cluster")


def upload_compiled(
    kubeflow: Kubeflow,
    name: str,
    description: str,
    data: bytes,
    size: WorkflowSize,
    parameters: dict[str, Any],
    section: str,
) -> Version:
    """Upload a version of a pipeline, unless the same is already there.

    Args:
        kubeflow: Where to.
        name: Of the pipeline.
        description: Of the pipeline, where it is new.
        data: The compiled pipeline.
        size: What a run of it takes in the cluster.
        parameters: For its runs.
        section: Of the user's file, with the limits of a run.

    Raises:
        PerfitError: Kubeflow refuses it, or does not understand all of it.
    """
    version_name = hashlib.sha256(data).hexdigest()[:_HASH_DIGITS]
    pipeline_id = _pipeline(kubeflow, name, description).pipeline_id
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "pipeline.yaml")
        file.write_bytes(data)
        version, uploaded = _version(kubeflow, pipeline_id, version_name, file)
    _check_understood(kubeflow, version, section)
    ir = read_ir(data)
    return Version(name, version_name, pipeline_id, version.pipeline_version_id, ir, uploaded, size, parameters)


def _in_store(spec: ClusterSpec, store: str) -> str:
    try:
        return put_federation_file(spec, store)
    except PerfitError as error:
        raise PerfitError(
            f"the federation file is too long for a run's parameter, and cannot be put into the store: {error.problem}",
            f"give this command the server's keys in AWS_* variables, and a way to the store; {error.fix}",
        ) from error


def knows_limits(kubeflow: Kubeflow) -> bool:
    """Return whether runs there may have limits; a server that does not say its version is asked when it has one."""
    return not kubeflow.version or kubeflow.version >= LIMITED


def without_limits(spec: ClusterSpec) -> ClusterSpec:
    """Return a federation whose runs have no deadline and whose workflows stay, for older Kubeflow Pipelines."""
    return spec.model_copy(update={"cluster": spec.cluster.without_limits()})


def cluster_store(spec: ClusterSpec, store: str | None) -> str:
    """Return the store that the cluster's pods use.

    Raises:
        PerfitError: None is named, or it is a directory of this machine.
    """
    uri = store or spec.store
    if not uri:
        raise PerfitError(
            f"federation {spec.name!r} names no store", "add `store: s3://bucket/prefix` to its file, or give --store"
        )
    if not uri.startswith("s3://"):
        raise PerfitError(
            f"the store {uri} is not one that the cluster's pods can reach", "give an S3 store: s3://bucket/prefix"
        )
    return uri


def unreachable_data(spec: ClusterSpec) -> list[str]:
    """Return a warning for each path to client data that is on no volume of the client's pod."""
    return [
        f"client {client.id}: {uri} is a path of this machine; its pod will look for it in the image "
        f"(use s3://, or a volume claim and a path under {DATA_MOUNT})"
        for client in spec.clients
        for uri in filter(None, (client.data, client.held_out))
        if is_local(uri) and not (client.volume and Path(uri).is_relative_to(DATA_MOUNT))
    ]


def read_ir(content: bytes | str) -> dict[str, Any]:
    """Return the pipeline's specification from compiled YAML, whose second document is about Kubernetes."""
    return next(yaml.load_all(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def _pipeline(kubeflow: Kubeflow, name: str, description: str) -> V2beta1Pipeline:
    def find() -> V2beta1Pipeline | None:
        with kubeflow.calling("list pipelines"):
            listed = list_all(
                kubeflow.client.list_pipelines, "pipelines", namespace=kubeflow.namespace, filter=name_filter(name)
            )
            return next(listed, None)

    def create() -> V2beta1Pipeline:
        body = V2beta1Pipeline(name=name, display_name=name, description=description, namespace=kubeflow.namespace)
        return kubeflow.client.pipelines.pipeline_service_create_pipeline(body)

    return _find_or_create(kubeflow, f"pipeline {name}", find, create)[0]


def _version(kubeflow: Kubeflow, pipeline_id: str, name: str, file: Path) -> tuple[V2beta1PipelineVersion, bool]:
    def find() -> V2beta1PipelineVersion | None:
        with kubeflow.calling("list versions of the pipeline"):
            versions = kubeflow.client.list_pipeline_versions
            return next(
                list_all(versions, "pipeline_versions", pipeline_id=pipeline_id, filter=name_filter(name)), None
            )

    def create() -> V2beta1PipelineVersion:
        return kubeflow.client.upload_pipeline_version(str(file), name, pipeline_id=pipeline_id)

    return _find_or_create(kubeflow, f"version {name} of the pipeline", find, create)


def _check_understood(kubeflow: Kubeflow, version: V2beta1PipelineVersion, section: str) -> None:
    stored = version.pipeline_spec
    if stored is None:
        with kubeflow.calling("show the version of the pipeline"):
            read = kubeflow.client.get_pipeline_version(version.pipeline_id, version.pipeline_version_id)
        stored = read.pipeline_spec
    if not {"platform_spec", "platformSpec"} & set(stored or {}):
        raise PerfitError(
            f"Kubeflow at {kubeflow.where} dropped the settings of the pipeline's pods: Secrets, volumes, nodes",
            f"upgrade Kubeflow Pipelines to 2.17, or set {section}.deadline_seconds and {section}.keep_seconds to null",
        )


def _find_or_create(kubeflow: Kubeflow, what: str, find, create) -> tuple[Any, bool]:
    """Return the object and whether it was created; of two that submit at the same time, only one creates it."""
    if existing := find():
        return existing, False
    try:
        with kubeflow.calling(f"create {what}"):
            return create(), True
    except PerfitError as error:
        taken = isinstance(error.__cause__, ApiException) and error.__cause__.status == 409
        if taken and (existing := find()):
            return existing, False
        if taken:
            raise PerfitError(
                f"{what} exists in Kubeflow, but is not shown to you under this name",
                "rename or remove it in the UI, or give your federation or bench another name",
            ) from error
        raise
