"""The two pipelines of a federation, built from its federation file.

Three steps: prepare, each client, aggregate. What KFP needs to know at compile time is unrolled here: the rounds, and
in each round one loop a tier, whose pods have that tier's resources. Everything else is read at run time from the
federation's own files; what tasks hand each other are the names of the clients that a round still needs.
"""

# No `from __future__ import annotations` here: KFP reads the annotations themselves.
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from kfp import dsl, kubernetes
from kfp.dsl.base_component import BaseComponent

from perfit.cluster_spec import CA_FILE, DATA_MOUNT, HUB_SECRET, Cluster, ClusterSpec, Tier
from perfit.errors import PerfitError
from perfit.methods import METHODS
from perfit_components.aggregate import aggregate
from perfit_components.client import client
from perfit_components.images import CLIENT_IMAGE, SERVER_IMAGE
from perfit_components.prepare import prepare
from perfit_components.queue_limit import QUEUE_SECONDS, ROLE_LABEL, queue_labels
from perfit_components.secret_names import STORE_KEYS
from perfit_components.steps.prepare import AS_IN_FILE, NEXT_ROUND
from perfit_components.train_job import train_job
from perfit_components.wait import wait
from perfit_pipelines.brief import brief

CACHE_MOUNT = "/cache"
CA_MOUNT = "/etc/perfit-ca"
WAIT_MEMORY = "1Gi"
"""Of the task that waits for remote clients."""
_USER = 10001


@dataclass(frozen=True)
class Images:
    """The images that clients' and server's tasks run in."""

    client: str = CLIENT_IMAGE
    server: str = SERVER_IMAGE

    @classmethod
    def of(cls, client: str | None, server: str | None) -> Self:
        """Return the images that are named, with the default of each that is not."""
        return cls(client or CLIENT_IMAGE, server or SERVER_IMAGE)


@dataclass(frozen=True)
class Part:
    """What one run does of a tuning that is too large for a single one, or of a scheduled round.

    Args:
        first: The first round, where those before it are known to be committed.
        last: The last round; None for the file's.
        at_most: Participants of a round that the run serves, if it cannot serve all; then it is of one round, and the
            next run goes on. 0 for all.
    """

    first: int = 1
    last: int | None = None
    at_most: int = 0


def federated_tuning(
    spec: ClusterSpec, store: str, images: Images = Images(), part: Part = Part(), file: str | None = None
) -> BaseComponent:
    """Build the pipeline of all rounds of the federation file, or of some.

    Run again, it goes on where an earlier run stopped: what is done is found in the store.

    Args:
        spec: Gives rounds and tiers, and is the default of the parameter ``federation_file``.
        store: Default of the parameter ``store``.
        images: Where tasks run.
        part: What of the tuning the run does.
        file: Default of the parameter ``federation_file`` in place of the file's text: its URI.

    Raises:
        PerfitError: Some, but not all clients of a tier have a volume.
    """
    last = part.last or spec.rounds
    stage = _round_stage(spec, images)

    def run(prepared: dsl.PipelineTask) -> None:
        before, federation, served = prepared, prepared.outputs["federation"], _served(part, prepared)
        for number in range(part.first, last + 1):
            given = {"plan_next": number < last, "served": served, **_tier_inputs(spec, before)}
            before = stage(federation=federation, round=number, **given)
            _uncached(before).set_display_name(f"Round {number} of {spec.rounds}")

    extent = f"{spec.rounds} rounds" if part == Part() else f"rounds {part.first} to {last} of {spec.rounds}"
    return _pipeline("federated-tuning", extent, part, spec, store, images, file, run)


def federated_round(
    spec: ClusterSpec, store: str, images: Images = Images(), at_most: int = 0, file: str | None = None
) -> BaseComponent:
    """Build the pipeline of one round from wherever the head is: the unit of scheduled tuning.

    Args:
        spec: Gives the tiers, and is the default of the parameter ``federation_file``.
        store: Default of the parameter ``store``.
        images: Where tasks run.
        at_most: Participants that the run serves; 0 for all.
        file: As for :func:`federated_tuning`.

    Raises:
        PerfitError: Some, but not all clients of a tier have a volume.
    """
    part = Part(NEXT_ROUND, NEXT_ROUND, at_most)
    stage = _round_stage(spec, images)

    def run(prepared: dsl.PipelineTask) -> None:
        federation, number = prepared.outputs["federation"], prepared.outputs["next_round"]
        given = {"plan_next": False, "served": _served(part, prepared), **_tier_inputs(spec, prepared)}
        done = stage(federation=federation, round=number, **given)
        _uncached(done).set_display_name("Round")

    return _pipeline("federated-round", "one round from the head", part, spec, store, images, file, run)


def _pipeline(
    name: str,
    extent: str,
    part: Part,
    spec: ClusterSpec,
    store: str,
    images: Images,
    file: str | None,
    run: Callable[[dsl.PipelineTask], None],
) -> BaseComponent:
    """A pipeline that finds or founds the federation, then does what ``run`` does with it."""
    clients = f"{len(spec.clients)} clients, {extent}"
    description = f"{spec.algorithm.title} federation {spec.name!r}: {clients}, base model {spec.model}."
    tiers = spec.pod_tiers()
    claim_tiers = [tier for tier in tiers if spec.names_claims(tier)]
    waits = {"waits": True} if spec.remote_tiers() else {}

    @dsl.pipeline(name=name, description=description, pipeline_config=_limits(spec.cluster))
    def pipeline(federation_file: str = file or spec.to_json(), store: str = store, method: str = AS_IN_FILE):
        """Run a federation.

        Args:
            federation_file: The federation file (YAML, or JSON on one line), or its URI in the store. Rounds and tiers
                are those that the pipeline was compiled with.
            store: Where federations are kept, e.g. s3://bucket/prefix.
            method: Run the federation by another method than the file's, under a name of its own.
        """
        prepared = brief(prepare)(
            federation_file=federation_file,
            store=store,
            method=method,
            round=part.first,
            at_most=part.at_most,
            tiers=tiers,
            claim_tiers=claim_tiers,
            **waits,
        )
        _on_server(prepared, spec, images.client, "prepare").set_display_name("Prepare")
        _with_model(prepared, spec.cluster)
        run(prepared)

    return _offer_methods(pipeline)


def _limits(cluster: Cluster) -> dsl.PipelineConfig | None:
    """How long a run and its workflow may live; nothing at all where neither is limited: KFP 2.16 knows no limits."""
    if cluster.deadline_seconds is None and cluster.keep_seconds is None:
        return None
    # Stock 2.17 gives workflows an hour after a success or failure, which wins over one after any end: name all three.
    return dsl.PipelineConfig(
        ttl_seconds_after_finished=cluster.keep_seconds,
        ttl_seconds_after_success=cluster.keep_seconds,
        ttl_seconds_after_failure=cluster.keep_seconds,
        active_deadline_seconds=cluster.deadline_seconds,
    )


def _offer_methods(pipeline: BaseComponent) -> BaseComponent:
    """Make the parameter ``method`` a choice in the UI, for which KFP's DSL has no word yet."""
    parameter = pipeline.pipeline_spec.root.input_definitions.parameters["method"]
    for name in (AS_IN_FILE, *METHODS):
        parameter.literals.add(string_value=name)
    return pipeline


def _round_stage(spec: ClusterSpec, images: Images) -> BaseComponent:
    """A round: all clients in one group, then the aggregation, also when a client's pod died.

    The aggregation must be a leaf, or Argo refuses it, and there must be one group before it, or KFP runs it once for
    each. The outputs are for the next round: without ``plan_next`` they are empty. Where a run serves some of the
    participants, ``served`` says how many have been served with it; 0 for all.
    """
    tiers = spec.pod_tiers()
    clients = _clients_group(spec, images)
    outputs = NamedTuple("Participants", list(_tier_types(spec).items()))

    def round_stage(federation, round, plan_next, served, *participants):
        inputs = dict(zip(outputs._fields, participants, strict=True))
        waits = {"served": served} if spec.remote_tiers() else {}
        trained = _uncached(clients(federation=federation, round=round, **waits, **inputs)).set_display_name("Clients")
        given = {"tiers": tiers, "plan_next": plan_next, "served": served}
        closed = brief(aggregate)(federation=federation, round=round, **given)
        _on_server(closed, spec, images.server).set_display_name("Aggregate")
        closed.after(trained).ignore_upstream_failure()
        return outputs(*(closed.outputs[name] for name in outputs._fields))

    types = {"federation": str, "round": int, "plan_next": bool, "served": int, **_tier_types(spec)}
    return dsl.pipeline(name="round")(_typed(round_stage, types, outputs))


def _clients_group(spec: ClusterSpec, images: Images) -> BaseComponent:
    """The participants of a round: for each tier a loop over names, the client's task directly in it.

    Remote tiers have no loop: one task waits for all their clients, beside the loops.
    """
    tiers, waits = spec.pod_tiers(), bool(spec.remote_tiers())
    of_tier = {tier: _client_of(spec, tier, images) for tier in tiers}

    def clients(federation, round, *rest):
        served, participants = (rest[0], rest[1:]) if waits else (None, rest)
        for tier, names in zip(tiers, participants, strict=bool(tiers)):
            with dsl.ParallelFor(names, name=tier, parallelism=spec.tiers[tier].parallelism or None) as item:
                of_tier[tier](federation, round, item)
        if waits:
            waiting = _on_server(brief(wait)(federation=federation, round=round, served=served), spec, images.server)
            waiting.set_memory_limit(WAIT_MEMORY).set_display_name("Remote clients")

    types = {"federation": str, "round": int, **({"served": int} if waits else {}), **_tier_types(spec)}
    return dsl.pipeline(name="clients")(_typed(clients, types))


def _client_of(spec: ClusterSpec, tier: str, images: Images) -> Callable[..., None]:
    """Return what adds the task of one client of a tier to a loop.

    A plain string is the only kind of loop item that may name a Secret and a volume claim. A claim that is called
    otherwise than the Secret reaches the task as an input of a pipeline around it, at a pod more.
    """
    in_job = spec.tiers[tier].is_job
    component = brief(train_job if in_job else client, f"client-{tier}")
    fixed = {"threads": spec.tiers[tier].threads, **({"image": images.client} if in_job else {})}

    def add(federation, round, name, volume=None) -> None:
        task = component(federation=federation, round=round, name=name, **fixed)
        _on_client(task, name, volume or name, spec, tier, images).set_display_name(f"Client ({tier})")

    if not spec.names_claims(tier):
        return add

    @dsl.pipeline(name=f"claim-{tier}")
    def with_claim(federation: str, round: int, secret: str, volume: str):
        add(federation, round, secret, volume)

    def add_with_claim(federation, round, item) -> None:
        inner = with_claim(federation=federation, round=round, secret=item.secret, volume=item.volume)
        _uncached(inner).set_display_name(f"Client ({tier}) with its volume")

    return add_with_claim


def _tier_types(spec: ClusterSpec) -> dict[str, type]:
    """The lists of clients that steps hand on, one a tier of pods, and what they hold.

    Where all tiers are remote, one empty list is handed on: it is what lets one round follow the other.
    """
    items = [dict[str, str] if spec.names_claims(tier) else str for tier in spec.pod_tiers()] or [str]
    return {f"tier_{number}": list[item] for number, item in enumerate(items, 1)}


def _tier_inputs(spec: ClusterSpec, before: dsl.PipelineTask) -> Mapping[str, dsl.pipeline_channel.PipelineChannel]:
    """The clients that the step before hands on, by tier."""
    return {name: before.outputs[name] for name in _tier_types(spec)}


def _served(part: Part, prepared: dsl.PipelineTask) -> dsl.pipeline_channel.PipelineChannel | int:
    """How many participants will have been served, of a round that takes several runs."""
    return prepared.outputs["served"] if part.at_most else 0


def _typed(function: Callable, types: Mapping[str, Any], outputs: type | None = None) -> Callable:
    """Give a pipeline's function the signature that KFP reads."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [inspect.Parameter(name, kind, annotation=annotation) for name, annotation in types.items()]
    returns = inspect.Signature.empty if outputs is None else outputs
    function.__signature__ = inspect.Signature(parameters, return_annotation=returns)
    function.__annotations__ = {**types, **({} if outputs is None else {"return": outputs})}
    return function


def _on_server(task: dsl.PipelineTask, spec: ClusterSpec, image: str, role: str = "server") -> dsl.PipelineTask:
    """Settings of every task that reads and writes the whole federation."""
    _with_store(task, spec.server_secret, role, spec.cluster).set_container_image(image)
    return task.set_memory_limit(spec.cluster.server_memory)


def _on_client(
    task: dsl.PipelineTask, secret, volume, spec: ClusterSpec, tier_name: str, images: Images
) -> dsl.PipelineTask:
    """Settings of a client's task: its tier's resources, its own keys, its own data volume."""
    tier = spec.tiers[tier_name]
    in_job = tier.is_job  # then this pod only follows it, and KFP hands the settings on
    _with_store(task, secret, "client", spec.cluster).set_container_image(images.server if in_job else images.client)
    task.set_cpu_limit(tier.cpu).set_memory_limit(tier.memory)
    _place(task, tier)
    _with_model(task, spec.cluster)
    if _mounts_volumes(spec, tier_name):
        kubernetes.mount_pvc(task, pvc_name=volume, mount_path=DATA_MOUNT)
    return task


def _with_store(task: dsl.PipelineTask, secret, role: str, cluster: Cluster) -> dsl.PipelineTask:
    """Give a task its keys, a /tmp, and the label by which the network policies let its role reach the store."""
    if cluster.store_ca:
        kubernetes.use_config_map_as_volume(task, config_map_name=cluster.store_ca, mount_path=CA_MOUNT)
        task.set_env_variable("AWS_CA_BUNDLE", f"{CA_MOUNT}/{CA_FILE}")
    kubernetes.add_pod_label(task, ROLE_LABEL, role)
    kubernetes.use_secret_as_env(task, secret_name=secret, secret_key_to_env={key: key for key in STORE_KEYS})
    kubernetes.set_security_context(task, run_as_user=_USER, run_as_group=_USER, run_as_non_root=True)
    # KFP cannot make the root file system read-only, but a cluster's policy may.
    kubernetes.empty_dir_mount(task, volume_name="tmp", mount_path="/tmp")
    return _uncached(task)


def _uncached(task: dsl.PipelineTask) -> dsl.PipelineTask:
    # The store is the state: KFP must not answer from its cache what another run may have changed.
    return task.set_caching_options(False)


def _with_model(task: dsl.PipelineTask, cluster: Cluster) -> None:
    """Give a task that loads the model its cache, a token for the hub where there is one, and shared memory."""
    if cluster.model_cache:
        # Clients only read it, but KFP 2.17 cannot mount it so: they check what they load (perfit/model_files.py).
        kubernetes.mount_pvc(task, pvc_name=cluster.model_cache, mount_path=CACHE_MOUNT)
    else:
        kubernetes.empty_dir_mount(task, volume_name="cache", mount_path=CACHE_MOUNT)
    kubernetes.use_secret_as_env(
        task, secret_name=HUB_SECRET, secret_key_to_env={"HF_TOKEN": "HF_TOKEN"}, optional=True
    )
    kubernetes.empty_dir_mount(
        task, volume_name="dshm", mount_path="/dev/shm", medium="Memory", size_limit=cluster.shared_memory
    )


def _place(task: dsl.PipelineTask, tier: Tier) -> None:
    if tier.accelerator:
        task.set_accelerator_type(tier.accelerator.type).set_accelerator_limit(tier.accelerator.count)
    for key, value in tier.node_selector.items():
        kubernetes.add_node_selector(task, key, value)
    for toleration in tier.tolerations:
        kubernetes.add_toleration(task, **toleration.model_dump(exclude_none=True))
    if tier.is_job:
        return  # it is the job that waits in the queue
    for key, value in queue_labels(tier).items():
        kubernetes.add_pod_label(task, key, value)
    if tier.queue_seconds:
        kubernetes.add_pod_annotation(task, QUEUE_SECONDS, str(tier.queue_seconds))


def _mounts_volumes(spec: ClusterSpec, tier: str) -> bool:
    without = [client.id for client in spec.clients if client.tier == tier and not client.volume]
    if spec.has_volumes(tier) and without:
        raise PerfitError(
            f"tier {tier!r}: these clients have no volume, though others of the tier have one: {', '.join(without)}",
            "give each of them a volume, or put them in a tier of their own: a tier's pods are all alike",
        )
    return spec.has_volumes(tier)
