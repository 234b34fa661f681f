"""Where a federation runs: machines by tier, Secrets, volumes, limits of a run. The method reads none of this."""

from __future__ import annotations

import re
from collections.abc import Callable
from os.path import normpath
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from perfit.locations import StoreUri, federation_file_problem, is_local, place_of
from perfit.sections import Name, Section, key_error
from perfit.spec import Client, FederationSpec, Precision, Quantization

_QUANTITY = r"[0-9]+(\.[0-9]+)?([EPTGM]i?|Ki|k|m)?"
MAX_TIERS = 8
"""The outputs of a KFP component are fixed in its source; prepare and aggregate have one for each tier."""
HUB_SECRET = "perfit-hub"
"""The Secret with the token for the model hub."""
DATA_MOUNT = "/data"
"""Where a client's pod mounts the volume with its records."""
CA_FILE = "ca.crt"
"""The key of the ConfigMap with the authorities that signed the store's certificate."""
_SERVERS = "perfitserver-"
"""How the name of a server's Secret begins. A client's default begins with ``perfit-``: it is never one of these."""
_MAX_NAME = 63
_OF_PODS = ("cpu", "memory", "accelerator", "node_selector", "tolerations", "parallelism", "queue", "runtime")
_OF_REMOTE = ("deadline_seconds",)
"""Keys of a tier that have an effect with one of the runners alone."""
_STORE_DIRECTORIES = ("clients", "masks", "rounds")
"""Names that a store's policies could not tell from a client's."""


def _quantity(value: Any) -> Any:
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(text, str) and not re.fullmatch(_QUANTITY, text):
        raise ValueError(f"{value!r} is not a Kubernetes quantity such as 2, 500m or 16Gi")
    return text


Quantity = Annotated[str, BeforeValidator(_quantity)]


def quantity_bytes(quantity: str) -> int:
    """Return a Kubernetes quantity such as ``16Gi`` or ``500M`` as a number of bytes."""
    number, prefix, binary = re.fullmatch(r"([\d.]+)([EPTGMKkm]?)(i?)", quantity).groups()
    power = "kMGTPE".index(prefix.replace("K", "k")) + 1 if prefix not in ("", "m") else 0
    unit = (1024 if binary else 1000) ** power if prefix != "m" else 0.001
    return int(float(number) * unit)


class Accelerator(Section):
    """A pod's accelerators: ``type`` is the nodes' resource, ``memory`` that of each one, for the memory check.

    Several divide the model's layers, which work one after the other: they are for models that one cannot hold. In a
    TrainJob they may divide the batch instead: each holds the whole model, and has a process of its own.
    """

    type: str = "nvidia.com/gpu"
    count: int = Field(default=1, ge=1)
    memory: Quantity | None = None
    divide: Literal["layers", "batch"] = "layers"


class Toleration(Section):
    """A taint that a tier's pods tolerate, with the keys that Kubernetes uses."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class TierTraining(Section):
    """What the trainings of a tier do otherwise than the section ``training`` says, for machines of unequal strength.

    None of it changes what the values in the store mean, so it may change while a federation exists.
    """

    batch_size: int | None = Field(default=None, ge=1)
    gradient_accumulation: int | None = Field(default=None, ge=1)
    precision: Precision | None = None
    quantization: Quantization | None = None
    gradient_checkpointing: bool | None = None


class Machine(Section):
    """What pods need. ``cpu`` also sets the number of CPU threads of a training."""

    cpu: Annotated[Quantity, Field(pattern=r"^[0-9]+(\.[0-9]+)?m?$")] = "1"
    memory: Quantity = "8Gi"
    accelerator: Accelerator | None = None
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[Toleration, ...] = ()
    parallelism: int = Field(default=0, ge=0, description="pods that train at once; 0 for all")

    @property
    def threads(self) -> int:
        """CPU threads, at least one."""
        return max(1, int(float(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu)))


class Tier(Machine):
    """A group of clients, and the resources of their pods.

    With the runner ``remote`` there are no pods: each client is a process of its owner's (``perfit client``), which has
    ``deadline_seconds`` in each round. With ``trainjob`` each is a TrainJob of Kubeflow Trainer that a pod follows.

    Args:
        runtime: The ClusterTrainingRuntime of TrainJobs.
        nodes: How many pods a client's TrainJob has, which divide its batches.
        queue: Kueue's LocalQueue that admits the pods or jobs, each by itself; None for no queue.
        queue_priority: Kueue's WorkloadPriorityClass of them.
        queue_seconds: What was not admitted after this time is ended, and its client absent from the round.
    """

    runner: Literal["pod", "trainjob", "remote"] = "pod"
    runtime: Name = "torch-distributed"
    nodes: int = Field(default=1, ge=1)
    deadline_seconds: int = Field(default=21_600, ge=1)
    training: TierTraining = TierTraining()
    queue: Name | None = None
    queue_priority: Name | None = None
    queue_seconds: int | None = Field(default=None, ge=60)

    @model_validator(mode="after")
    def _queue_is_named(self) -> Self:
        for key in ("queue_priority", "queue_seconds"):
            if getattr(self, key) is not None and self.queue is None:
                raise key_error((key,), "the tier has no queue; name Kueue's LocalQueue with the key `queue`")
        return self

    @model_validator(mode="after")
    def _batches_are_divided_by_jobs(self) -> Self:
        several = self.accelerator is not None and self.accelerator.count > 1
        if self.nodes > 1 and several and not self._divides_batches:
            raise key_error(
                ("accelerator", "divide"),
                "nodes divide the batch, and so must the accelerators of each: set divide: batch, or count: 1",
            )
        if not self.is_job and (self.nodes > 1 or self._divides_batches):
            key = ("nodes",) if self.nodes > 1 else ("accelerator", "divide")
            raise key_error(key, f"a runner {self.runner} has one process; set runner: trainjob, or leave it out")
        return self

    @property
    def _divides_batches(self) -> bool:
        return self.accelerator is not None and self.accelerator.divide == "batch"

    @property
    def processes_per_node(self) -> int:
        """How many processes of a client's training each of its pods has."""
        return self.accelerator.count if self._divides_batches else 1

    @property
    def processes(self) -> int:
        """How many processes divide the batches of a client's training."""
        return self.nodes * self.processes_per_node

    @property
    def is_remote(self) -> bool:
        """Whether its clients are processes of their owners, not pods."""
        return self.runner == "remote"

    @property
    def is_job(self) -> bool:
        """Whether its clients are TrainJobs."""
        return self.runner == "trainjob"


class RunSettings(Section):
    """Settings of a run in a cluster and of all its pods.

    Args:
        model_cache: Claim of the volume with models; None for a scratch volume per pod.
        shared_memory: Size of /dev/shm.
        store_ca: ConfigMap with the authorities (PEM, key ``ca.crt``) that signed the store's certificate; None for
            public ones.
        deadline_seconds: A run that takes longer is ended; None for never, as Kubeflow Pipelines 2.16 requires.
        keep_seconds: A finished run's workflow is removed after this time; None for the cluster's default, likewise.
    """

    model_cache: Name | None = "perfit-model-cache"
    shared_memory: Quantity = "1Gi"
    store_ca: Name | None = None
    deadline_seconds: int | None = Field(default=86_400, ge=60)
    keep_seconds: int | None = Field(default=86_400, ge=1)

    def without_limits(self) -> Self:
        """Return settings of a run that has no deadline and whose workflow stays."""
        return self.model_copy(update={"deadline_seconds": None, "keep_seconds": None})


class Cluster(RunSettings):
    """Settings of runs in a cluster; a local run ignores them. Prepare fills the volume ``model_cache``.

    Args:
        server_memory: Limit of Prepare and of Aggregate, each.
        allow_secret_readers: Whether runs may act as a service account that may read every client's key.
    """

    server_memory: Quantity = "4Gi"
    allow_secret_readers: bool = False


class ClusterClient(Client):
    """A client, with the Secret that holds its keys to the store and the claim of the volume with its records."""

    secret: Name | None = None
    volume: Name | None = None

    def on_volume(self, uri: str) -> bool:
        """Whether records are on the client's own volume, which only its pod sees."""
        return self.volume is not None and is_local(uri) and normpath(uri).startswith(f"{DATA_MOUNT}/")


class ClusterSpec(FederationSpec):
    """A whole federation file: what is computed, and where."""

    tiers: dict[Name, Tier] = Field(default={"default": Tier()}, max_length=MAX_TIERS)
    cluster: Cluster = Cluster()
    clients: tuple[ClusterClient, ...]
    store: StoreUri | None = None

    @model_validator(mode="after")
    def _tiers_exist(self) -> Self:
        for position, client in enumerate(self.clients):
            if client.tier not in self.tiers:
                raise key_error(
                    ("clients", position, "tier"),
                    f"there is no tier {client.tier!r}; use one of {', '.join(self.tiers)}, or add it to tiers",
                )
        return self

    @model_validator(mode="after")
    def _jobs_are_possible(self) -> Self:
        problem = None
        if not self.cluster.allow_secret_readers:
            problem = (
                "who may create TrainJobs may give their pods any Secret of the namespace, and here each client's pod "
                "may: use it where owners trust each other, and say so (cluster.allow_secret_readers: true)"
            )
        elif self.cluster.store_ca:
            problem = "KFP gives what follows a TrainJob no volume, and so no authority (cluster.store_ca); use pod"
        for name, tier in self.tiers.items():
            if problem and tier.is_job:
                raise key_error(("tiers", name, "runner"), problem)
        return self

    @model_validator(mode="after")
    def _batches_are_divisible(self) -> Self:
        for name, tier in self.tiers.items():
            training = self.of_tier(name).training
            examples = training.batch_size * training.gradient_accumulation
            if examples % tier.processes:
                raise key_error(
                    ("tiers", name),
                    f"its jobs have {tier.processes} processes, which cannot divide the {examples} examples of a step "
                    "evenly: make training.batch_size x gradient_accumulation a multiple, or change nodes or count",
                )
        return self

    @model_validator(mode="after")
    def _queues_end_before_the_run(self) -> Self:
        limit = self.cluster.deadline_seconds
        for name, tier in self.tiers.items():
            if limit and tier.queue_seconds and tier.queue_seconds >= limit:
                raise key_error(
                    ("tiers", name, "queue_seconds"),
                    f"the run ends before: lower it, or raise cluster.deadline_seconds ({limit:,})",
                )
        return self

    @model_validator(mode="after")
    def _tiers_fit_their_runners(self) -> Self:
        limit = self.cluster.deadline_seconds
        for name, tier in self.tiers.items():
            pods = "is of pods, whose clients have participation.client_deadline_seconds"
            why = "has no pods" if tier.is_remote else pods
            for key in _OF_PODS if tier.is_remote else _OF_REMOTE:
                if getattr(tier, key) != Tier.model_fields[key].get_default(call_default_factory=True):
                    raise key_error(("tiers", name, key), f"tier {name!r} {why}; leave it out")
            if tier.is_remote and limit is not None and tier.deadline_seconds >= limit:
                raise key_error(
                    ("tiers", name, "deadline_seconds"),
                    f"{tier.deadline_seconds} is not below cluster.deadline_seconds ({limit}), at which a run that "
                    "still waits is ended; lower it, or raise that",
                )
        return self

    @model_validator(mode="after")
    def _remote_clients_have_machines_of_their_own(self) -> Self:
        """What is on an owner's machine, only the owner says."""
        for position, client in enumerate(self.clients):
            for key in ("data", "held_out", "secret", "volume"):
                if self.is_remote(client) and getattr(client, key) is not None:
                    raise key_error(
                        ("clients", position, key),
                        f"client {client.id!r} is of the remote tier {client.tier!r}: its owner names its records and "
                        "its key where it runs (perfit client); leave it out",
                    )
        return self

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        """A Secret's name is also that of a loop's item and, by default, of a claim and so of a volume."""
        if len(self.server_secret) > _MAX_NAME:
            raise key_error(
                ("name",),
                f"{self.name!r} makes {self.server_secret!r}, the server's Secret, longer than {_MAX_NAME} characters; "
                f"shorten it to {_MAX_NAME - len(_SERVERS)}",
            )
        for position, client in enumerate(self.clients):
            where, secret = ("clients", position, "id"), self.secret_of(client)
            if client.id in _STORE_DIRECTORIES:
                raise key_error(where, f"{client.id!r} is the name of a directory of the store; choose another id")
            if len(secret) > _MAX_NAME:
                raise key_error(
                    where,
                    f"{client.id!r} makes {secret!r}, its Secret, longer than {_MAX_NAME} characters; shorten it by "
                    f"{len(secret) - _MAX_NAME}, or name a Secret with the key `secret`",
                )
        return self

    @model_validator(mode="after")
    def _owners_share_nothing(self, info: ValidationInfo) -> Self:
        """Deploying opens what a client's entry names to that client's pods: it must not be another owner's."""
        secrets = {self.server_secret: "the server", HUB_SECRET: "the model hub"}
        volumes = {self.cluster.model_cache: "the model cache"}
        records: dict[str, str] = {}
        for position, client in enumerate(self.clients):
            where, owner = ("clients", position), f"client {client.id!r}"
            key, secret = "secret" if client.secret else "id", self.secret_of(client)
            other = "a server" if secret.startswith(_SERVERS) else secrets.setdefault(secret, owner)
            if other != owner:
                raise _shared((*where, key), owner, other, f"the Secret {secret!r}", "secret")
            if client.volume and volumes.setdefault(client.volume, owner) != owner:
                other = volumes[client.volume]
                raise _shared((*where, "volume"), owner, other, f"the volume claim {client.volume!r}", "volume")
            for key, place in _places(client, info.context):
                if self.store and (problem := federation_file_problem(place, self.store)):
                    raise key_error((*where, key), problem)
                if records.setdefault(place, owner) != owner:
                    raise _shared((*where, key), owner, records[place], f"the records {place!r}", key)
        return self

    def of_client(self, client: Client) -> Self:
        """Return the federation as a client trains in it: ``training`` has the values of its tier."""
        return self.of_tier(client.tier)

    def of_tier(self, tier: str) -> Self:
        """Return the federation as the clients of a tier train in it."""
        own = self.tiers[tier].training.model_dump(exclude_none=True)
        return self.model_copy(update={"training": self.training.model_copy(update=own)})

    def tiers_in_use(self) -> list[str]:
        """Return the tiers that have clients, in the order of the file."""
        used = {client.tier for client in self.clients}
        return [tier for tier in self.tiers if tier in used]

    def tiers_where(self, wanted: Callable[[Tier], object]) -> dict[str, Tier]:
        """Return those of the tiers that have clients that are ``wanted``, by name, in the order of the file."""
        return {name: self.tiers[name] for name in self.tiers_in_use() if wanted(self.tiers[name])}

    def pod_tiers(self) -> list[str]:
        """Return the tiers that have clients in pods, in the order of the file."""
        return list(self.tiers_where(lambda tier: not tier.is_remote))

    def remote_tiers(self) -> list[str]:
        """Return the tiers whose clients are processes of their owners, in the order of the file."""
        return list(self.tiers_where(lambda tier: tier.is_remote))

    def is_remote(self, client: Client) -> bool:
        """Whether a client is a process of its owner's, not a pod."""
        return client.tier in self.tiers and self.tiers[client.tier].is_remote

    def secret_of(self, client: ClusterClient) -> str:
        """Return the name of the Secret with a client's keys, which is also the client's name in the cluster."""
        return client.secret or f"perfit-{self.name}-{client.id}"

    @property
    def server_secret(self) -> str:
        """The name of the Secret with the server's keys, for the tasks that read and write the whole federation."""
        return f"{_SERVERS}{self.name}"

    def has_volumes(self, tier: str) -> bool:
        """Whether the pods of a tier mount volumes with their clients' records."""
        return any(client.volume for client in self.clients if client.tier == tier)

    def names_claims(self, tier: str) -> bool:
        """Whether a client of the tier has a volume claim whose name differs from its Secret's."""
        return any(c.volume not in (None, self.secret_of(c)) for c in self.clients if c.tier == tier)


def _places(client: ClusterClient, directory: Path | None) -> list[tuple[str, str]]:
    """Where a client's records are, by key, but for those on its own volume."""
    places = []
    for key in ("data", "held_out"):
        uri = getattr(client, key)
        if uri and not client.on_volume(uri):
            places.append((key, place_of(uri, directory)))
    return places


def _shared(path: tuple[str | int, ...], owner: str, other: str, what: str, key: str) -> PydanticCustomError:
    return key_error(path, f"{owner} would share {what} with {other}; give it {key} of its own")
