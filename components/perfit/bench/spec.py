"""What a bench file says, and what a cell is: a method at a point of its grid, with a seed.

A client's records are divided in three, by the cell's seed. The held-out ones are set aside when the data set is split,
the validation ones of what is left when a cell begins; the rest is trained on, alike in every cell of a seed. Points of
a grid are chosen by validation records alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, NonNegativeInt, field_validator, model_validator

from perfit.aggregation import Aggregation
from perfit.cluster_spec import Machine, RunSettings
from perfit.exchange import Exchange
from perfit.locations import PlainUri, RecordsUri
from perfit.sections import Name, Section, key_error
from perfit.spec import Data, FederationSpec, Lora, Participation, Training
from perfit.split import Split

GRID_SECTIONS = ("method", "lora", "training", "exchange", "aggregation", "participation")
"""What a grid may vary; data, rounds and seeds are the same for all methods."""


def _check_grid(grid: dict[str, tuple[JsonValue, ...]]) -> dict[str, tuple[JsonValue, ...]]:
    for key, values in grid.items():
        section, _, rest = key.partition(".")
        if section not in GRID_SECTIONS or not rest or "." in rest or key == "training.seed":
            raise ValueError(f"{key!r} cannot vary; use keys of {', '.join(GRID_SECTIONS)}, as in training.steps")
        if not values:
            raise ValueError(f"{key} has no values; give at least one")
        if any(values.count(value) > 1 for value in values):
            raise ValueError(f"{key} has a value twice; use each once")
    return grid


def _listed(value: Any) -> Any:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{value!r} is not a list; write [{value}]")
    return value


Values = Annotated[tuple[JsonValue, ...], BeforeValidator(_listed)]
Grid = Annotated[dict[str, Values], AfterValidator(_check_grid)]
"""Values by the key of a federation file, with dots: ``training.learning_rate``, ``method.mu``."""


def _check_labels(key: tuple[str, ...], labels: Iterable[str], known: Iterable[str]) -> None:
    for label in labels:
        if label not in known:
            raise key_error(key, f"{label!r} is not among the methods {', '.join(known)}")


class BenchSplit(Split):
    """How the data set is split among clients, again for each seed.

    Args:
        labels: Only records with one of these labels are used; None for all.
        records: Of a client, held-out ones included, at most; drawn by the seed.
    """

    minimum: int = Field(default=10, ge=3)
    labels: tuple[str, ...] | None = None
    records: int | None = Field(default=None, ge=3)

    @property
    def keeps_clients(self) -> bool:
        """Whether a client is the same in all seeds: a user, or the owner of certain categories."""
        return self.scheme in ("category", "user")


class Generation(Section):
    """Greedy answers to held-out records: to the first ``records`` of each client, of at most ``tokens`` tokens."""

    records: int = Field(default=20, ge=1)
    tokens: int = Field(default=64, ge=1)


class Entry(Section):
    """A method: its section of the federation file (``name`` is the entry's own if left out), and a grid.

    ``search_steps_of`` is the label of a method whose clients search: this one's train so many steps more, divided
    evenly among the rounds and rounded up, as that one's clients spend on their searches if they take part in each.
    """

    search_steps_of: str | None = None
    method: dict[str, JsonValue] = Field(default_factory=dict)
    grid: Grid = Field(default_factory=dict)


class Pods(Machine, RunSettings):
    """The section ``pods`` of a bench file: what the pods need that each run a cell of it.

    Args:
        image: That they run; None for the clients' of this version.
    """

    image: str | None = Field(default=None, min_length=1)
    model_cache: Name | None = None

    @model_validator(mode="after")
    def _no_batch_is_divided(self) -> Self:
        if self.accelerator and self.accelerator.divide == "batch":
            raise key_error(("accelerator", "divide"), "a pod of a bench has one process; leave it out")
        return self


class BenchSpec(Section):
    """A bench file. ``lora`` to ``exchange`` are the sections of a federation file, for all methods.

    ``pods`` has an effect on Kubeflow alone, and on no result.
    """

    name: Name
    model: PlainUri
    records: RecordsUri
    split: BenchSplit
    methods: dict[Name, Entry] = Field(min_length=1)
    grid: Grid = Field(default_factory=dict)
    seeds: tuple[NonNegativeInt, ...] = Field(default=(0,), min_length=1)
    rounds: int = Field(default=3, ge=1)
    validation_fraction: float = Field(default=0.2, gt=0, lt=1)
    baselines: tuple[str, ...] = ()
    targets: tuple[Annotated[float, Field(gt=1)], ...] = ()
    answers: Generation | None = None
    threads: int | None = Field(default=None, ge=1)
    lora: Lora = Lora()
    training: Training = Training()
    data: Data = Data()
    participation: Participation = Participation()
    aggregation: Aggregation = Aggregation()
    exchange: Exchange = Exchange()
    pods: Pods = Pods()

    @field_validator("methods", mode="before")
    @classmethod
    def _entries_may_be_empty(cls, value: Any) -> Any:
        return {key: entry or {} for key, entry in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _seeds_and_baselines_fit(self) -> Self:
        if "seed" in self.training.model_fields_set:
            raise key_error(("training", "seed"), "has no effect here; list the seeds under `seeds`")
        if len(set(self.seeds)) < len(self.seeds):
            raise key_error(("seeds",), f"{list(self.seeds)} has a seed twice; use each once")
        longer = {label: entry.search_steps_of for label, entry in self.methods.items() if entry.search_steps_of}
        own = [label for label in self.methods if label not in longer]
        _check_labels(("baselines",), self.baselines, self.methods)
        for label, searching in longer.items():
            _check_labels(("methods", label, "search_steps_of"), [searching], own)
        return self

    def points(self, label: str) -> Iterator[dict[str, JsonValue]]:
        """Yield the points of a method's grid; its own keys replace those of the grid for all methods."""
        grid = {**self.grid, **self.methods[label].grid}
        for values in product(*grid.values()):
            yield dict(zip(grid, values, strict=True))


class Job(Section):
    """All that a cell's results depend on; equal jobs need not run twice.

    Args:
        spec: The federation.
        records_sha256: Hash of the files of its clients.
        validation_fraction: Of each client's records that are not held out.
        answers: What to generate at the end, if anything.
        threads: CPU threads; None for torch's own choice.
    """

    spec: FederationSpec
    records_sha256: str
    validation_fraction: float
    answers: Generation | None
    threads: int | None

    @property
    def sha256(self) -> str:
        """Hash of everything but where the clients' files are."""
        paths = {"spec": {"clients": {"__all__": {"data", "held_out"}}}}
        return hashlib.sha256(self.model_dump_json(exclude=paths).encode()).hexdigest()

    @property
    def short_hash(self) -> str:
        """The first 16 digits of the hash, in the names of cells."""
        return self.sha256[:16]


@dataclass(frozen=True)
class Cell:
    """A run of a bench: a method, a point of its grid, a seed."""

    label: str
    point: dict[str, JsonValue]
    seed: int
    job: Job

    @property
    def name(self) -> str:
        """What tells it from all other cells: ends with :attr:`Job.short_hash`."""
        return f"{self.label}.seed-{self.seed}.{self.job.short_hash}"

    @property
    def file(self) -> str:
        """Name of the file with its results."""
        return f"{self.name}.json"

    @property
    def title(self) -> str:
        """What a person calls it."""
        return ", ".join([self.label, *(f"{key}={value}" for key, value in self.point.items()), f"seed {self.seed}"])
