"""Bench files and results for tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from perfit.bench.results import CellResult, RoundResult
from perfit.bench.spec import BenchSpec, Cell, Job

SECTIONS: dict[str, Any] = {
    "name": "tiny",
    "records": "all.jsonl",
    "split": {"scheme": "category", "clients": 2, "categories_per_client": 2},
    "methods": {"fedit": None, "local": {}},
    "rounds": 1,
    "threads": 1,
    "lora": {"rank": 2, "alpha": 4},
    "training": {"steps": 2, "batch_size": 2, "learning_rate": 0.01, "sequence_length": 64},
}


def write_bench(directory: Path, model: str, **sections: Any) -> Path:
    """Write a data set of 24 records (two topics, three authors) and a bench file; sections replace the usual ones."""
    words = ["Paris", "sea", "blue", "two", "five"]
    records = [
        {
            "instruction": f"What is {topic} {words[i % 5]}?",
            "response": f"{words[(i + len(topic)) % 5]}.",
            "category": topic,
            "author": ("ann", "bob", "eve")[min(i, 20) // 8],
        }
        for i, topic in enumerate(["tea", "rice"] * 12)
    ]
    (directory / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    file = directory / "bench.yaml"
    file.write_text(yaml.safe_dump({"model": model, **SECTIONS, **sections}, sort_keys=False))
    return file


def make_bench(**sections: Any) -> BenchSpec:
    return BenchSpec.model_validate({"model": "owner/model", **SECTIONS, **sections})


CLIENTS = ("a", "b")


def make_cell(label: str, seed: int = 0, point: Mapping[str, Any] | None = None) -> Cell:
    """A cell of two clients, whose job is told from others by its point."""
    tree = {"name": label, "model": "owner/model", "clients": [{"id": id, "data": f"{id}.jsonl"} for id in CLIENTS]}
    settings = {"records_sha256": json.dumps(point), "validation_fraction": 0.2, "answers": None, "threads": None}
    job = Job.model_validate({"spec": {**tree, "training": {"seed": seed}}, **settings})
    return Cell(label, dict(point or {}), seed, job)


def make_result(
    cell: Cell,
    personal: Sequence[Sequence[float]],
    validation: Sequence[float] = (10.0, 10.0),
    shared: Sequence[float] = (20.0, 20.0),
    **changes: Any,
) -> CellResult:
    """A result with the personal perplexities of a and b in each round; each sends 100 bytes and reads 50 a round."""
    rounds = tuple(
        RoundResult(
            personal=by_client(values),
            shared=by_client(shared),
            bytes_up=by_client([100, 100]),
            bytes_down=by_client([50, 50]),
            seconds=by_client([1.5, 1.5]),
        )
        for values in personal
    )
    fields = {
        "trainable": by_client([40, 20]),
        "start": by_client([30.0, 50.0]),
        "rounds": rounds,
        "validation": by_client(validation),
        "peak_memory": 1_000_000,
    }
    return CellResult(job=cell.job, environment="torch 0", **{**fields, **changes})


def by_client(values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(CLIENTS, values, strict=True))


def result_of(job: Job) -> dict[str, Any]:
    """A result as a run of the job may give it, as a tree."""
    clients = [client.id for client in job.spec.clients]
    by = dict.fromkeys
    one = {"personal": by(clients, 5.0), "shared": by(clients, 6.0), "bytes_up": by(clients, 9)}
    one |= {"bytes_down": by(clients, 8), "seconds": by(clients, 1.5)}
    counts = {"train": 8, "held_out": 2, "held_out_tokens": 9, "skipped": 0}
    measured = {"trainable": by(clients, 40), "start": by(clients, 30.0), "validation": by(clients, 10.0)}
    measured["records"] = {client: dict(counts) for client in clients}
    return {
        "job": job.model_dump(mode="json"),
        "environment": "torch 0",
        "rounds": [one] * job.spec.rounds,
        **measured,
    }
