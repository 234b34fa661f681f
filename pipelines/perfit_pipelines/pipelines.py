"""The two pipelines of a federation, built from its federation file.

What KFP needs to know at compile time is unrolled here: the rounds, and one loop a tier, whose pods have that tier's
resources. Everything else is read at run time from the federation's own files.
"""

# No `from __future__ import annotations` here: KFP reads the annotations themselves.
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

from kfp import dsl, kubernetes
from kfp.dsl.base_component import BaseComponent

from perfit.errors import PerfitError
from perfit.spec import Cluster, Federation, Method, Tier
from perfit_components.aggregate_round import aggregate_round
from perfit_components.close_search import close_search
from perfit_components.images import CLIENT_IMAGE, SERVER_IMAGE
from perfit_components.keys import SERVER_SECRET, STORE_KEYS
from perfit_components.merge_statuses import merge_statuses
from perfit_components.plan_round import plan_round
from perfit_components.prepare_federation import prepare_federation
from perfit_components.report_round import report_round
from perfit_components.search_client import search_client
from perfit_components.steps.plan import SEARCH_ROUND
from perfit_components.steps.prepare import AS_IN_FILE
from perfit_components.train_client import train_client

HUB_SECRET = "perfit-hub"
ROLE_LABEL = "perfit/role"
DATA_MOUNT = "/data"
CACHE_MOUNT = "/cache"
_USER = 10001


@dataclass(frozen=True)
class Images:
    """The images that clients' and server's tasks run in."""

    client: str = CLIENT_IMAGE
    server: str = SERVER_IMAGE


def federated_tuning(spec: Federation, store: str, images: Images = Images()) -> BaseComponent:
    """Build the pipeline that searches every client's architecture, then runs all rounds of the federation file.

    Run again, it goes on where an earlier run stopped: what is done is found in the store.

    Args:
        spec: Gives rounds and tiers, and is the default of the parameter ``federation_file``.
        store: Default of the parameter ``store``.
        images: Where tasks run.

    Raises:
        PerfitError: Some, but not all clients of a tier have a volume.
    """
    search, rounds = _search_stage(spec, images), _round_stage(spec, images)

    def run(prepared: dsl.PipelineTask) -> None:
        federation = _uncached(search(federation=prepared.outputs["federation"])).output
        for number in range(1, spec.rounds + 1):
            stage = rounds(federation=federation, round=number)
            federation = _uncached(stage).set_display_name(f"Round {number} of {spec.rounds}").output

    return _pipeline("federated-tuning", f"{spec.rounds} rounds", spec, store, images, run)


def federated_round(spec: Federation, store: str, images: Images = Images()) -> BaseComponent:
    """Build the pipeline of one round from wherever the head is: the unit of scheduled tuning.

    Clients that have no architecture yet search it first.

    Args:
        spec: Gives the tiers, and is the default of the parameter ``federation_file``.
        store: Default of the parameter ``store``.
        images: Where tasks run.

    Raises:
        PerfitError: Some, but not all clients of a tier have a volume.
    """
    stage = _round_stage(spec, images)

    def run(prepared: dsl.PipelineTask) -> None:
        _uncached(stage(federation=prepared.outputs["federation"], round=prepared.outputs["next_round"]))

    return _pipeline("federated-round", "one round from the head", spec, store, images, run)


def _pipeline(
    name: str, extent: str, spec: Federation, store: str, images: Images, run: Callable[[dsl.PipelineTask], None]
) -> BaseComponent:
    """A pipeline that finds or founds the federation, then does what ``run`` does with it."""
    clients = f"{len(spec.clients)} clients, {extent}"
    description = f"{spec.method.name} federation {spec.name!r}: {clients}, base model {spec.model}."

    @dsl.pipeline(name=name, description=description, pipeline_config=_limits(spec.cluster))
    def pipeline(federation_file: str = spec.to_json(), store: str = store, method: str = AS_IN_FILE):
        """Run a federation.

        Args:
            federation_file: The federation file (YAML, or JSON on one line). Rounds and tiers are those that the
                pipeline was compiled with.
            store: Where federations are kept, e.g. s3://bucket/prefix.
            method: Run the federation by another method than the file's, under a name of its own.
        """
        prepared = prepare_federation(federation_file=federation_file, store=store, method=method)
        _on_server(prepared, images.client, "prepare").set_display_name("Prepare")
        _with_model(prepared, spec.cluster)
        run(prepared)

    return _offer_methods(pipeline)


def _limits(cluster: Cluster) -> dsl.PipelineConfig | None:
    """How long a run and its workflow may live; nothing at all where neither is limited: KFP 2.16 knows no limits."""
    if cluster.deadline_seconds is None and cluster.keep_seconds is None:
        return None
    return dsl.PipelineConfig(
        ttl_seconds_after_finished=cluster.keep_seconds, active_deadline_seconds=cluster.deadline_seconds
    )


def _offer_methods(pipeline: BaseComponent) -> BaseComponent:
    """Make the parameter ``method`` a choice in the UI, for which KFP's DSL has no word yet."""
    parameter = pipeline.pipeline_spec.root.input_definitions.parameters["method"]
    for name in (AS_IN_FILE, *get_args(Method.model_fields["name"].annotation)):
        parameter.literals.add(string_value=name)
    return pipeline


def _search_stage(spec: Federation, images: Images) -> BaseComponent:
    tiers = {tier: _tier_clients(spec, tier, images, tuning=False) for tier in spec.tiers_in_use()}

    @dsl.pipeline(name="search")
    def search(federation: str) -> str:
        statuses = _all_tiers(tiers, federation, SEARCH_ROUND, images)
        done = close_search(federation=federation, statuses=statuses)
        return _on_server(done, images.server).set_display_name("Count architectures").output

    return search


def _round_stage(spec: Federation, images: Images) -> BaseComponent:
    tiers = {tier: _tier_clients(spec, tier, images, tuning=True) for tier in spec.tiers_in_use()}

    @dsl.pipeline(name="round")
    def round_stage(federation: str, round: int) -> str:
        statuses = _all_tiers(tiers, federation, round, images)
        committed = aggregate_round(federation=federation, round=round, statuses=statuses)
        _on_server(committed, images.server).set_display_name("Aggregate")
        drawn = report_round(federation=committed.output, round=round)
        _on_server(drawn, images.server).set_display_name("Report")
        return committed.output

    return round_stage


def _tier_clients(spec: Federation, tier: str, images: Images, *, tuning: bool) -> BaseComponent:
    """The clients of one tier, side by side, each in a pipeline of its own.

    Two traps of KFP 2.17 shape this. Secret and volume reach a task's platform settings only as plain inputs of the
    pipeline that holds the task, not as fields of a loop's item. And platform settings of a nested pipeline with two
    executors can end up at those of another tier, so that each client is one task.
    """

    @dsl.pipeline(name=f"client-{tier}")
    def one_client(federation: str, round: int, client: str, secret: str, volume: str) -> dict[str, str]:
        if tuning:
            task = train_client(federation=federation, round=round, client=client)
        else:
            task = search_client(federation=federation, client=client)
        return _on_client(task, secret, volume, spec, tier, images).output

    @dsl.pipeline(name=f"clients-{tier}")
    def clients_of_tier(federation: str, round: int, clients: list[dict[str, str]]) -> list[dict[str, str]]:
        with dsl.ParallelFor(clients, parallelism=spec.tiers[tier].parallelism or None) as item:
            done = one_client(
                federation=federation, round=round, client=item.id, secret=item.secret, volume=item.volume
            )
            _uncached(done)
        return dsl.Collected(done.output)

    return clients_of_tier


def _all_tiers(tiers: dict[str, BaseComponent], federation, round, images: Images):
    """Plan and run the clients of every tier; return their statuses as one list."""
    merged = None
    for tier, clients_of_tier in tiers.items():
        planned = plan_round(federation=federation, round=round, tier=tier)
        _on_server(planned, images.server).set_display_name(f"Plan {tier}")
        clients = clients_of_tier(federation=federation, round=round, clients=planned.output)
        statuses = _uncached(clients).set_display_name(f"Clients: {tier}").output
        if merged is not None:
            statuses = _on_server(merge_statuses(first=merged, second=statuses), images.server).output
        merged = statuses
    return merged


def _on_server(task: dsl.PipelineTask, image: str, role: str = "server") -> dsl.PipelineTask:
    """Settings of every task that reads and writes the whole federation."""
    return _with_store(task, SERVER_SECRET, role).set_container_image(image)


def _on_client(
    task: dsl.PipelineTask, secret, volume, spec: Federation, tier_name: str, images: Images
) -> dsl.PipelineTask:
    """Settings of a client's task: its tier's resources, its own keys, its own data volume."""
    tier = spec.tiers[tier_name]
    _with_store(task, secret, "client").set_container_image(images.client)
    task.set_cpu_limit(tier.cpu).set_memory_limit(tier.memory)
    _place(task, tier)
    _with_model(task, spec.cluster)
    if _has_volumes(spec, tier_name):
        kubernetes.mount_pvc(task, pvc_name=volume, mount_path=DATA_MOUNT)
    return task


def _with_store(task: dsl.PipelineTask, secret, role: str) -> dsl.PipelineTask:
    """Give a task its keys, a /tmp, and the label by which the network policies let its role reach the store."""
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


def _has_volumes(spec: Federation, tier: str) -> bool:
    clients = [client for client in spec.clients if client.tier == tier]
    without = [client.id for client in clients if not client.volume]
    if 0 < len(without) < len(clients):
        raise PerfitError(
            f"tier {tier!r}: these clients have no volume, though others of the tier have one: {', '.join(without)}",
            "give each of them a volume, or put them in a tier of their own: a tier's pods are all alike",
        )
    return not without
