"""The federation file: what is tuned, by which method, with whom and where."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

_SEGMENT = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_QUANTITY = r"\d+(\.\d+)?([EPTGM]i?|Ki|k|m)?"


def _safe_segment(value: str) -> str:
    if not re.fullmatch(_SEGMENT, value):
        raise ValueError(
            f"{value!r} is not a safe name: use lower-case letters, digits and inner hyphens, 63 characters at most"
        )
    return value


def _quantity(value: Any) -> Any:
    text = str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value
    if isinstance(text, str) and not re.fullmatch(_QUANTITY, text):
        raise ValueError(f"{value!r} is not a Kubernetes quantity such as 2, 500m or 16Gi")
    return text


Name = Annotated[str, BeforeValidator(lambda v: _safe_segment(v) if isinstance(v, str) else v)]
Quantity = Annotated[str, BeforeValidator(_quantity)]


def quantity_bytes(quantity: str) -> int:
    """Return a Kubernetes quantity such as ``16Gi`` or ``500M`` as a number of bytes."""
    number, prefix, binary = re.fullmatch(r"([\d.]+)([EPTGMKkm]?)(i?)", quantity).groups()
    power = "kMGTPE".index(prefix.replace("K", "k")) + 1 if prefix not in ("", "m") else 0
    unit = (1024 if binary else 1000) ** power if prefix != "m" else 0.001
    return int(float(number) * unit)


def _at(path: tuple[str | int, ...], message: str) -> PydanticCustomError:
    """An error of a check across keys that names the key to change, as a check of one key would."""
    return PydanticCustomError("federation", "{message}", {"message": message, "path": path})


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool(cls, value, info):
        # pydantic would take `yes` for 1.
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation is not bool:
            raise ValueError(f"{value!r} is a truth value, not what this key takes")
        return value


class Method(_Section):
    """How clients find their architecture and what they exchange.

    ``perfit`` searches a personal sparse LoRA and averages parameter by parameter; ``fedit`` (arXiv 2305.05644)
    averages one plain LoRA; ``local`` exchanges nothing. The options after ``name`` steer the search and have no effect
    on methods that do not search.
    """

    name: Literal["perfit", "fedit", "local"] = "perfit"
    metric: Literal["taylor", "magnitude", "gradient", "random"] = "taylor"
    scope: Literal["layer", "global"] = "layer"
    search_steps: int = Field(default=20, ge=1)
    warmup_steps: int = Field(default=5, ge=0)
    pruning_iterations: int = Field(default=5, ge=1)

    @model_validator(mode="after")
    def _room_to_prune(self) -> Method:
        room = self.search_steps - self.warmup_steps
        if self.pruning_iterations > room:
            raise ValueError(
                f"{self.pruning_iterations} pruning iterations do not fit in the {room} of {self.search_steps} search "
                "steps that follow the warm-up: raise search_steps or lower pruning_iterations or warmup_steps"
            )
        return self

    @property
    def searches(self) -> bool:
        """Whether clients search a personal architecture in an expanded space."""
        return self.name == "perfit"

    @property
    def exchanges(self) -> bool:
        """Whether clients' values are averaged."""
        return self.name != "local"


class Lora(_Section):
    """The LoRA: ``rank`` is that of the largest client, ``expansion`` widens the space of the search."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = ("q_proj", "v_proj")
    expansion: int = Field(default=2, ge=1)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _some_target(cls, value):
        if isinstance(value, str) and value != "all-linear":
            raise ValueError(f"{value!r} is one word; write a list, [{value}], or all-linear")
        if isinstance(value, list | tuple) and (not value or len(set(map(str, value))) != len(value)):
            raise ValueError("name at least one module, each once, or all-linear")
        return value


class Training(_Section):
    """Local training: AdamW at a constant rate, ``steps`` optimiser steps a round."""

    steps: int = Field(default=20, ge=1)
    batch_size: int = Field(default=4, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    sequence_length: int = Field(default=512, ge=8)
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    seed: int = Field(default=0, ge=0)


class Data(_Section):
    """How records are read and which are held out."""

    held_out_fraction: float = Field(default=0.2, gt=0, lt=1)
    bad_records: Literal["refuse", "skip"] = "refuse"


class Participation(_Section):
    """Who takes part in a round, and how many must deliver for it to count."""

    fraction: float = Field(default=1.0, gt=0, le=1)
    minimum_clients: int = Field(default=1, ge=1)


class Accelerator(_Section):
    """Accelerators of a tier, by the nodes' name for the resource; ``memory`` is that of each, for a pre-flight."""

    type: str = "nvidia.com/gpu"
    count: int = Field(default=1, ge=1)
    memory: Quantity | None = None


class Toleration(_Section):
    """A taint that a tier's pods tolerate, in Kubernetes' own words."""

    key: str | None = None
    operator: Literal["Exists", "Equal"] = "Equal"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None


class Tier(_Section):
    """Resources of the pods of a group of clients. ``cpu`` also sets the number of CPU threads of a training."""

    cpu: Annotated[Quantity, Field(pattern=r"^\d+(\.\d+)?m?$")] = "1"
    memory: Quantity = "8Gi"
    accelerator: Accelerator | None = None
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = ()
    parallelism: int = Field(default=0, ge=0, description="clients that train at once; 0 for all")

    @property
    def threads(self) -> int:
        """CPU threads, at least one."""
        return max(1, int(float(self.cpu[:-1]) / 1000 if self.cpu.endswith("m") else float(self.cpu)))


class Cluster(_Section):
    """How runs live in a cluster; a local run ignores it.

    Args:
        model_cache: Volume claim that clients' pods keep models in; None for a scratch volume a pod.
        shared_memory: Size of /dev/shm.
        deadline_seconds: A run that takes longer is ended; None for never. Kubeflow Pipelines 2.16 knows no other.
        keep_seconds: A finished run's workflow is removed after this; None for never. Likewise.
    """

    model_cache: str | None = "perfit-model-cache"
    shared_memory: Quantity = "1Gi"
    deadline_seconds: int | None = Field(default=86_400, ge=60)
    keep_seconds: int | None = Field(default=604_800, ge=0)


class Client(_Section):
    """An owner of private data."""

    id: Name
    data: str
    held_out: str | None = None
    tier: str = "default"
    rank: int | None = Field(default=None, ge=1)
    secret: str | None = None
    volume: str | None = None


class Federation(_Section):
    """A validated federation file."""

    name: Name
    model: str
    method: Method = Method()
    lora: Lora = Lora()
    training: Training = Training()
    data: Data = Data()
    rounds: int = Field(default=3, ge=1)
    participation: Participation = Participation()
    wire_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    tiers: dict[Name, Tier] = {"default": Tier()}
    cluster: Cluster = Cluster()
    clients: tuple[Client, ...]
    store: str | None = None

    @model_validator(mode="after")
    def _clients_fit(self) -> Federation:
        ids = [client.id for client in self.clients]
        if self.participation.minimum_clients > len(ids):
            raise _at(
                ("participation", "minimum_clients"),
                f"{self.participation.minimum_clients} is more than the {len(ids)} clients; lower it or add clients",
            )
        for position, client in enumerate(self.clients):
            where = ("clients", position)
            if client.id in ids[:position]:
                raise _at((*where, "id"), f"{client.id!r} is used twice; give every client an id of its own")
            if client.tier not in self.tiers:
                raise _at(
                    (*where, "tier"),
                    f"there is no tier {client.tier!r}; use one of {', '.join(self.tiers)}, or add it under tiers",
                )
            if client.rank and client.rank > self.lora.rank:
                raise _at(
                    (*where, "rank"),
                    f"{client.rank} is above lora.rank {self.lora.rank}, the rank of the largest client, whose "
                    f"expanded space of rank {self.expanded_rank} all share; raise lora.rank or lower this",
                )
        return self

    @property
    def expanded_rank(self) -> int:
        """Rank of the space that all masks live in."""
        return self.lora.rank * self.expansion

    @property
    def expansion(self) -> int:
        """The expansion in force: 1 for methods that do not search."""
        return self.lora.expansion if self.method.searches else 1

    @property
    def expanded_alpha(self) -> float:
        """PEFT's lora_alpha for the expanded rank: keeps the one scaling alpha / rank of the federation."""
        return self.lora.alpha * self.expansion

    def client(self, client_id: str) -> Client:
        """Return a client by id.

        Raises:
            KeyError: There is none.
        """
        return self._by_id[client_id]

    @property
    def _by_id(self) -> dict[str, Client]:
        return {client.id: client for client in self.clients}

    def rank_of(self, client: Client) -> int:
        """Return a client's own rank, which gives its budget."""
        return client.rank or self.lora.rank

    def tiers_in_use(self) -> list[str]:
        """Return the tiers that have clients, in the order of the file."""
        used = {client.tier for client in self.clients}
        return [tier for tier in self.tiers if tier in used]

    def to_yaml(self) -> str:
        """Return the whole file, defaults included, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def to_json(self) -> str:
        """Return what differs from the defaults on one line, which a text field of the UI takes."""
        return json.dumps(
            self.model_dump(mode="json", exclude_defaults=True), separators=(",", ":"), ensure_ascii=False
        )

    def difference(self, other: Federation) -> str | None:
        """Name the first key in which two files describe different federations, or None.

        Rounds, participation, tiers, the cluster, the store, the set of clients and where their data lie may change
        during the life of a federation. What the values in the store depend on may not: name, model, method, LoRA,
        training, data, the type on the wire, and the rank of a client.
        """
        mutable = {"rounds", "participation", "tiers", "cluster", "store", "clients"}
        mine, theirs = _flatten(self.model_dump(exclude=mutable)), _flatten(other.model_dump(exclude=mutable))
        known = other._by_id
        for client in self.clients:
            if client.id in known:
                mine[f"rank of client {client.id}"] = self.rank_of(client)
                theirs[f"rank of client {client.id}"] = other.rank_of(known[client.id])
        for key, value in mine.items():
            if theirs[key] != value:
                return f"{key} is {value!r} here and {theirs[key]!r} there"
        return None


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
