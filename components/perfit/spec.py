"""What a federation computes: model, method, LoRA, training, clients and their data. Where it runs: cluster_spec."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any, Literal, Self

import numpy as np
import yaml
from pydantic import Field, SerializeAsAny, field_validator, model_validator

from perfit.aggregation import Aggregation
from perfit.exchange import Exchange
from perfit.locations import PlainUri, RecordsUri
from perfit.methods import METHODS, Method, MethodOptions, Roles, Search
from perfit.methods.perfit import Options as PerFITOptions
from perfit.sections import Name, Section, key_error
from perfit.space import LoraSpace

DEFAULT_METHOD = "perfit"
DEFAULT_EXPANSION = 2

Precision = Literal["float32", "bfloat16"]
Quantization = Literal["int8", "nf4"]
"""How the frozen base model's linear modules are held: :mod:`perfit.quantization`."""


def method_name(value: Any) -> Any:
    """Return the name in the section ``method``, or of given options; it may be anything."""
    return value.get("name", DEFAULT_METHOD) if isinstance(value, dict) else getattr(value, "name", None)


class Lora(Section):
    """The LoRA: ``rank`` is that of the largest client, ``expansion`` widens the space of a search."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16, gt=0)
    target_modules: Literal["all-linear"] | tuple[str, ...] = ("q_proj", "v_proj")
    expansion: int | None = Field(default=None, ge=1)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _some_target(cls, value):
        if isinstance(value, str) and value != "all-linear":
            raise ValueError(f"{value!r} is not a list; write [{value}], or all-linear")
        if isinstance(value, list | tuple) and (not value or len(set(map(str, value))) != len(value)):
            raise ValueError("name at least one module, each once, or all-linear")
        return value


class Training(Section):
    """Local training, ``steps`` optimiser steps per round.

    In each round the optimiser starts anew; ``warmup_steps`` raise its rate from 0. Over the first ``decay_rounds``
    rounds the rate falls, by half a cosine, to a tenth of ``learning_rate``. ``quantization`` is that of the frozen
    model's linear modules, ``precision`` of all else and of the arithmetic. A client that was stopped goes on from its
    last checkpoint; there is one every ``checkpoint_steps`` steps, or none.
    """

    steps: int = Field(default=20, ge=1)
    batch_size: int = Field(default=4, ge=1)
    gradient_accumulation: int = Field(default=1, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0)
    warmup_steps: int = Field(default=0, ge=0)
    decay_rounds: int | None = Field(default=None, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    max_gradient_norm: float = Field(default=1.0, gt=0)
    sequence_length: int = Field(default=512, ge=8)
    precision: Precision = "float32"
    quantization: Quantization | None = None
    gradient_checkpointing: bool = False
    seed: int = Field(default=0, ge=0)
    checkpoint_steps: int | None = Field(default=50, ge=1)

    def of_round(self, round: int) -> Self:
        """Return the training with the learning rate of a round (from 1)."""
        if self.decay_rounds is None:
            return self
        passed = min((round - 1) / self.decay_rounds, 1)
        factor = 0.1 + 0.9 * (1 + math.cos(math.pi * passed)) / 2
        return self.model_copy(update={"learning_rate": self.learning_rate * factor})


class Data(Section):
    """How records are read and which are held out."""

    held_out_fraction: float = Field(default=0.2, gt=0, lt=1)
    bad_records: Literal["refuse", "skip"] = "refuse"


class Participation(Section):
    """Who takes part in a round, how many must deliver for it to count, and how long each may take."""

    fraction: float = Field(default=1.0, gt=0, le=1)
    minimum_clients: int = Field(default=1, ge=1)
    client_deadline_seconds: int | None = Field(default=None, ge=1)

    def of_tier(self, clients: int) -> int:
        """Return how many of a tier's clients a round samples."""
        return math.ceil(round(self.fraction * clients, 9))


class Client(Section):
    """An owner of private data; ``tier`` is its kind of machine: every tier is sampled at the same fraction."""

    id: Name
    data: RecordsUri | None = None
    held_out: RecordsUri | None = None
    tier: str = "default"
    rank: int | None = Field(default=None, ge=1)


class FederationSpec(Section):
    """What a federation computes."""

    name: Name
    model: PlainUri
    method: SerializeAsAny[MethodOptions] = PerFITOptions()
    lora: Lora = Lora()
    training: Training = Training()
    data: Data = Data()
    rounds: int = Field(default=3, ge=1)
    participation: Participation = Participation()
    aggregation: Aggregation = Aggregation()
    exchange: Exchange = Exchange()
    clients: tuple[Client, ...]

    @field_validator("method", mode="before")
    @classmethod
    def _options_of_method(cls, value: Any) -> MethodOptions:
        if isinstance(value, str):
            raise ValueError(f"{value!r} is not a section; write {{name: {value}}}")
        if not isinstance(value, dict | MethodOptions):
            raise ValueError(f"{value!r} is not a section; write the method's name as {{name: {DEFAULT_METHOD}}}")
        name = method_name(value)
        if not isinstance(name, str) or name not in METHODS:
            raise key_error(("name",), f"there is no method {name!r}; use one of {', '.join(METHODS)}")
        return METHODS[name].options.model_validate(value)

    @model_validator(mode="after")
    def _expansion_has_effect(self) -> Self:
        if self.search is None and (self.lora.expansion or 1) > 1:
            raise key_error(
                ("lora", "expansion"),
                f"{self.lora.expansion} has no effect on method {self.method.name}, whose clients do not search; "
                "leave it out",
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        warmup, steps = self.training.warmup_steps, self.training.steps
        if self.search:
            steps = min(steps, self.search.steps or steps)
        if warmup >= steps:
            raise key_error(
                ("training", "warmup_steps"), f"{warmup} of {steps} steps leave none at full rate; lower it"
            )
        return self

    @model_validator(mode="after")
    def _exchange_fits(self) -> Self:
        tiers = Counter(client.tier for client in self.clients)
        sampled = max(sum(map(self.participation.of_tier, tiers.values())), self.participation.minimum_clients)
        holders = self.exchange.holders
        if holders > sampled and (len(self.clients) > 1 or holders > 2):  # a client alone exchanges nothing anyway
            raise key_error(
                ("exchange", "holders"),
                f"{holders} is more than the {sampled} clients that take part in a round, which would exchange "
                "nothing; lower it, add clients, or raise participation.fraction",
            )
        if self.exchange.top < 1 and len(self.algorithm.uploads) > 1:
            raise key_error(
                ("exchange", "top"),
                f"{self.exchange.top:g} does not fit method {self.method.name}, whose clients also upload "
                f"{', '.join(self.algorithm.uploads[1:])}; leave it out",
            )
        return self

    @model_validator(mode="after")
    def _rule_fits(self) -> Self:
        if self.aggregation.rule != "mean" and not self.algorithm.by_position:
            raise key_error(
                ("aggregation", "rule"),
                f"{self.aggregation.rule} does not fit method {self.method.name}, whose rule sees whole matrices, "
                "not single values; leave it out",
            )
        return self

    @model_validator(mode="after")
    def _clients_fit(self) -> Self:
        ids = [client.id for client in self.clients]
        if self.participation.minimum_clients > len(ids):
            raise key_error(
                ("participation", "minimum_clients"),
                f"{self.participation.minimum_clients} is more than the {len(ids)} clients; lower it or add clients",
            )
        for position, client in enumerate(self.clients):
            where = ("clients", position)
            if client.data is None and not self.is_remote(client):
                raise key_error(where, "the key 'data' is missing")
            if client.id in ids[:position]:
                raise key_error((*where, "id"), f"{client.id!r} is used twice; give every client an id of its own")
            if client.rank and client.rank > self.lora.rank:
                raise key_error(
                    (*where, "rank"),
                    f"{client.rank} is above lora.rank {self.lora.rank}, the largest rank of a client; raise "
                    "lora.rank or lower this",
                )
        return self

    @property
    def algorithm(self) -> Method:
        """The method that the options in ``method`` are for."""
        return METHODS[self.method.name]

    @property
    def search(self) -> Search | None:
        """How clients search for their architectures, None if they do not."""
        return self.algorithm.search(self.method)

    def searches_after(self, round: int) -> bool:
        """Whether the clients of a round search again, for an architecture to have from the next round on."""
        return self.search is not None and self.search.every > 0 and round % self.search.every == 0

    @property
    def expansion(self) -> int:
        """Expanded rank divided by ``lora.rank``; 1 if clients do not search."""
        return 1 if self.search is None else self.lora.expansion or DEFAULT_EXPANSION

    @property
    def expanded_lora(self) -> Lora:
        """The LoRA of the expanded space, with the scaling alpha / rank of ``lora``."""
        wider = {"rank": self.lora.rank * self.expansion, "alpha": self.lora.alpha * self.expansion}
        return self.lora.model_copy(update=wider)

    def roles(self, space: LoraSpace, held: np.ndarray) -> Roles:
        """Return what a client that holds ``held`` (bool, shape (N,)) trains and shares."""
        return self.algorithm.roles(self.method, space, held)

    def client(self, client_id: str) -> Client:
        """Return a client by id.

        Raises:
            KeyError: There is none.
        """
        return self.clients_by_id[client_id]

    @property
    def clients_by_id(self) -> dict[str, Client]:
        """The clients by id."""  # not cached: model_copy would copy it too
        return {client.id: client for client in self.clients}

    def of_client(self, client: Client) -> Self:
        """Return the federation as a client trains in it."""
        return self

    def replace(self, **sections: Any) -> Self:
        """Return the federation with other values, which are checked as a file's are.

        >>> one = FederationSpec(name="demo", model="owner/model", clients=[{"id": "north", "data": "north.jsonl"}])
        >>> other = one.replace(method={"name": "fedit"}, training={"seed": 1}, rounds=5)
        >>> other.method.name, other.training.seed, other.training.steps, other.rounds
        ('fedit', 1, 20, 5)

        Args:
            sections: As in :meth:`other_tree`.

        Raises:
            pydantic.ValidationError: A value is wrong, or does not fit the others.
        """
        return type(self).model_validate(self.other_tree(**sections))

    def other_tree(self, **sections: Any) -> dict[str, Any]:
        """Return the federation as plain values, some of them other ones.

        Args:
            sections: By key. Those of keys that hold sections are merged into what is there, key by key; ``method``
                replaces the whole, with a method's default options where none are given.
        """
        tree = self.model_dump(mode="json")
        for key, value in sections.items():
            merges = isinstance(value, dict) and isinstance(tree.get(key), dict) and key != "method"
            tree[key] = {**tree[key], **value} if merges else value
        name = method_name(tree["method"])
        if name in METHODS and METHODS[name].search(METHODS[name].options()) is None:
            tree["lora"].pop("expansion", None)
        return tree

    def is_remote(self, client: Client) -> bool:
        """Whether a client runs elsewhere, where its owner says what its records are."""
        return False

    def rank_of(self, client: Client) -> int:
        """Return a client's own rank, which gives its budget."""
        return client.rank or self.lora.rank

    def to_yaml(self) -> str:
        """Return the whole file, defaults included, in the order of the fields."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def to_json(self) -> str:
        """Return what differs from the defaults, on one line that fits a text field of the UI."""
        tree = self.model_dump(mode="json", exclude_defaults=True)
        if "method" in tree:
            tree["method"] = {"name": self.method.name, **tree["method"]}
        return json.dumps(tree, separators=(",", ":"), ensure_ascii=False)

    def fixed(self) -> dict[str, Any]:
        """Return the sections that the values in the store depend on; they may not change while a federation exists."""
        sections = {"name", "model", "method", "lora", "training", "data", "exchange"}
        return self.model_dump(mode="json", include=sections, exclude={"training": {"checkpoint_steps"}})

    def difference(self, other: FederationSpec) -> str | None:
        """Name the first key in which two files describe different federations, or return None.

        Rounds, participation, checkpoints, limits of the aggregation, the set of clients, and where their data are and
        where they run may change while a federation exists. What the values in the store depend on may not: what
        :meth:`fixed` returns, and the rank of a client.
        """
        mine, theirs = self.fixed(), other.fixed()
        known = other.clients_by_id
        for client in self.clients:
            if client.id in known:
                mine[f"rank of client {client.id}"] = self.rank_of(client)
                theirs[f"rank of client {client.id}"] = other.rank_of(known[client.id])
        return first_difference(mine, theirs)


def first_difference(here: dict[str, Any], there: dict[str, Any]) -> str | None:
    """Name the first key in which two trees of sections differ, with both values; None if nothing of ``here`` does."""
    other = flatten(there)
    for key, value in flatten(here).items():
        if other.get(key) != value:
            return f"{key} is {value!r} here and {other.get(key)!r} there"
    return None


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
