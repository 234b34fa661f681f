"""The table of wrong inputs goes on: values of a federation file, what is in files, and options of commands."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from ..commands import Home
from .test_wrong_inputs import Row, both, change, check, everything, make, nothing

AT_LEAST = "Input should be greater than or equal to"
SAFE = "is not a safe name: use lower-case letters, digits and inner hyphens, 63 characters at most"
QUANTITY = "is not a Kubernetes quantity such as 2, 500m or 16Gi"
SCHEMAS = "use the keys of Alpaca (instruction, input, output), Dolly (instruction, context, response) or messages"
WHOLE = f"check that the file is whole and may be read; {SCHEMAS}"
WHERE = "give --store s3://bucket/prefix and --secret NAME"
NO_SECRETS = "leave them out: keys come from AWS_* variables, in a cluster from Secrets"

VALUES = {
    ("rounds", 0): f"{AT_LEAST} 1, but it is 0",
    ("rounds", True): "True is a boolean, which this key does not take",
    ("training.steps", 0): f"{AT_LEAST} 1, but it is 0",
    ("training.steps", 2.5): "Input should be a valid integer, got a number with a fractional part, but it is 2.5",
    ("training.learning_rate", float("nan")): "Input should be a finite number, but it is nan",
    ("training.learning_rate", -1): "Input should be greater than 0, but it is -1",
    ("training.optimizer", "adam"): "Input should be 'adamw' or 'sgd', but it is 'adam'",
    ("training.precision", "float16"): "Input should be 'float32' or 'bfloat16', but it is 'float16'",
    ("training.quantization", "int4"): "Input should be 'int8' or 'nf4', but it is 'int4'",
    ("training.sequence_length", 4): f"{AT_LEAST} 8, but it is 4",
    ("training.warmup_steps", 50): "50 of 2 steps leave none at full rate; lower it",
    ("training.seed", -1): f"{AT_LEAST} 0, but it is -1",
    ("lora.rank", 0): f"{AT_LEAST} 1, but it is 0",
    ("lora.target_modules", "q_proj"): "'q_proj' is not a list; write [q_proj], or all-linear",
    ("lora.target_modules", ()): "name at least one module, each once, or all-linear",
    ("method", "fedit"): "'fedit' is not a section; write {name: fedit}",
    ("method.name", "fedavg"): "there is no method 'fedavg'; use one of perfit, ",
    ("method.mu", 1): "method perfit has no option 'mu'; known keys: name, ",
    ("method.metric", "size"): "Input should be 'taylor', 'magnitude', 'gradient', 'random' or 'common'",
    ("exchange.dtype", "float8"): "Input should be 'float32', 'bfloat16', 'float16' or 'int8', but it is 'float8'",
    ("exchange.holders", 5): "5 is more than the 2 clients that take part in a round, which would exchange nothing",
    ("exchange.top", 2): "Input should be less than or equal to 1, but it is 2",
    ("aggregation.rule", "mode"): "Input should be 'mean', 'trimmed_mean' or 'median', but it is 'mode'",
    ("participation.fraction", 0): "Input should be greater than 0, but it is 0",
    ("participation.minimum_clients", 9): "9 is more than the 2 clients; lower it or add clients",
    ("data.held_out_fraction", 1): "Input should be less than 1, but it is 1",
    ("data.bad_records", "ignore"): "Input should be 'refuse' or 'skip', but it is 'ignore'",
    ("name", "Tiny"): f"'Tiny' {SAFE}",
    ("clients.0.tier", "huge"): "there is no tier 'huge'; use one of strong, weak, or add it to tiers",
    ("clients.0.id", "rounds"): "'rounds' is the name of a directory of the store; choose another id",
    ("clients.0.secret", "perfitserver-x"): "client 'ann' would share the Secret 'perfitserver-x' with a server",
    ("tiers.weak.memory", "16 GB"): f"'16 GB' {QUANTITY}",
    ("tiers.weak.cpu", "two"): f"'two' {QUANTITY}",
    ("tiers.weak.nodes", 2): "a runner pod has one process; set runner: trainjob, or leave it out",
    ("tiers.weak.queue_seconds", 600): "the tier has no queue; name Kueue's LocalQueue with the key `queue`",
    ("cluster.deadline_seconds", 5): f"{AT_LEAST} 60, but it is 5",
    ("model", "https://u:p@h/m"): f"holds credentials; {NO_SECRETS}",
}


@pytest.mark.parametrize(("key", "value"), VALUES)
def test_a_wrong_value(home, key, value):
    change(key, list(value) if value == () else value)(home)
    before = everything(home.directory)
    result = home.perfit("validate", "federation.yaml")
    line = re.match(r"error: federation\.yaml:(\d+): (.*)", result.err)
    assert line, result.err
    assert home.file.read_text().splitlines()[int(line[1]) - 1].lstrip(" -").startswith(key.rpartition(".")[2])
    assert line[2].startswith(f"{key}: {VALUES[key, value]}")
    assert (result.code, result.err.splitlines()[-1], result.out) == (1, "  fix: correct this key", "")
    assert everything(home.directory) == before


def text(content: str) -> Callable[[Home], object]:
    """Write another federation file."""
    return lambda home: home.file.write_text(content)


def records(content: str, name: str = "ann.jsonl") -> Callable[[Home], object]:
    """Write other records of the first client."""
    return both(
        lambda home: (home.directory / "data" / name).write_bytes(content.encode("latin-1")),
        change("clients.0.data", f"data/{name}"),
    )


VALIDATE = "validate federation.yaml"
COMMENTED = "`perfit init FILE` writes a commented federation file"
ANN = "client ann: {at}/data/ann"
SPLIT = "data partition data/ann.jsonl out"
ROWS = {
    "a batch that a job's processes cannot divide": Row(
        VALIDATE,
        both(
            change("cluster", {"allow_secret_readers": True}),
            change("tiers.weak", {"runner": "trainjob", "nodes": 3}),
        ),
        "federation.yaml:29: tiers.weak: its jobs have 3 processes, which cannot divide the 2 examples of a step",
        "correct this key",
    ),
    "a tab": Row(VALIDATE, text("name:\tx\n"), "federation.yaml is not YAML: ", "repair the syntax at the line named"),
    "a list": Row(VALIDATE, text("- a\n"), "federation.yaml holds no keys", COMMENTED),
    "nothing": Row(VALIDATE, text(""), "federation.yaml holds no keys", COMMENTED),
    "an alias": Row(
        VALIDATE,
        text("name: &n x\nmodel: *n\n"),
        "federation.yaml:1: anchors and aliases (&name, *name) are not read",
        "write the value in full wherever it is used",
    ),
    "a key twice": Row(
        VALIDATE,
        text("name: x\nname: y\n"),
        "federation.yaml:2: name is duplicated (first in line 1)",
        "remove one of the two",
    ),
    "no text": Row(
        VALIDATE,
        lambda home: home.file.write_bytes(b"\xff\xfe\x00"),
        "federation.yaml cannot be read: 'utf-8' codec can't decode byte 0xff",
        "give a federation file; `perfit init FILE` writes a commented one",
    ),
    "too long": Row(
        VALIDATE,
        text("#" * 1_000_001),
        "federation.yaml has more than 1,000,000 characters",
        "give a federation file with fewer clients",
    ),
    "a JSON array": Row(
        VALIDATE,
        records('[{"instruction": "a", "output": "b"}]'),
        f"{ANN}.jsonl: is a JSON array, not one JSON object a line",
        "convert it: jq -c '.[]' ann.jsonl > ann.lines.jsonl",
    ),
    "a CSV by another name": Row(
        VALIDATE,
        records("instruction,output\n"),
        f"{ANN}.jsonl: no usable record: line 1: not valid JSON (column 1: Expecting value)",
        SCHEMAS,
    ),
    "Latin-1": Row(
        VALIDATE,
        records('{"instruction": "\xff", "output": "x"}\n'),
        f"{ANN}.jsonl: no usable record: line 1: not valid JSON (column 18: not UTF-8)",
        SCHEMAS,
    ),
    "one record": Row(
        VALIDATE,
        records('{"instruction": "a", "output": "x"}\n'),
        f"{ANN}.jsonl: 1 record(s), all of the same messages: none can be held out",
        "give more records, or held_out records",
    ),
    "another schema": Row(
        VALIDATE,
        records('{"question": "a", "answer": "x"}\n'),
        f"{ANN}.jsonl: no usable record: line 1: unknown schema (keys: question, answer)",
        SCHEMAS,
    ),
    "no Parquet": Row(VALIDATE, records("PAR?", "ann.parquet"), f"{ANN}.parquet: is not a Parquet file", WHOLE),
    "the same records": Row(
        VALIDATE,
        change("clients.0.data", "data/bob.jsonl"),
        "federation.yaml:24: clients.1.data: client 'bob' would share the records '{at}/data/bob.jsonl' with client",
        "correct this key",
    ),
    "init over a file": Row(
        "init federation.yaml", nothing, "federation.yaml exists", "give another name, or --force to overwrite it"
    ),
    "--set without a value": Row(
        "run federation.yaml --set rounds",
        nothing,
        "--set rounds: is not KEY=VALUE",
        "write it like --set training.steps=5",
    ),
    "--set of an unknown key": Row(
        "run federation.yaml --set training.step=3",
        nothing,
        "--set training.step=3: training.step: unknown key; did you mean 'steps'?",
        "correct this key",
    ),
    "--set of nobody": Row(
        "run federation.yaml --set clients.zoe.rank=1",
        nothing,
        "--set clients.zoe.rank=1: names no item 'zoe'",
        "use one of: ann, bob",
    ),
    "compile without a store": Row(
        "compile federation.yaml -o p.yaml",
        nothing,
        "federation.yaml names no store",
        "add `store: s3://bucket/prefix`, or give --store",
    ),
    "submit without a store": Row(
        "submit federation.yaml",
        nothing,
        "federation 'tiny' names no store",
        "add `store: s3://bucket/prefix` to its file, or give --store",
    ),
    "split nothing": Row(
        "data partition none.jsonl out --clients 2", nothing, "none.jsonl: no such file", "check the path"
    ),
    "split among too many": Row(
        f"{SPLIT} --clients 20",
        nothing,
        "8 records: too few for 20 clients of at least 1 record(s)",
        "ask for at most 8 clients, or give more records",
    ),
    "split by what is not there": Row(
        f"{SPLIT} --clients 2 --scheme category --label topic",
        nothing,
        "data/ann.jsonl: 8 records have no text in the field 'topic', the first in line 1",
        "name the field that holds the category or the user as the label, or use the scheme iid",
    ),
    "split by no concentration": Row(
        f"{SPLIT} --clients 2 --scheme dirichlet --label instruction --alpha 0",
        nothing,
        "alpha 0.0: not a positive number",
        "give a concentration such as 0.5",
    ),
    "split among nobody": Row(SPLIT, nothing, "iid: no number of clients", "say how many clients there are"),
    "split by users of one record": Row(
        f"{SPLIT} --scheme user --label instruction",
        nothing,
        "0 of 8 users have at least 2 records, 1 are needed",
        "ask for fewer clients or fewer records each, or give more records",
    ),
    "split over other files": Row(
        f"{SPLIT} --clients 2",
        both(make("out"), make("out/client-1.train.jsonl", "mine")),
        "out: already holds client-1.train.jsonl",
        "choose another directory, or overwrite",
    ),
    "bench nothing": Row(
        "bench none.yaml",
        nothing,
        "none.yaml cannot be read: [Errno 2] No such file or directory",
        "give a bench file; docs/benchmarks.md shows one",
    ),
    "bench a federation": Row(
        "bench federation.yaml", nothing, "federation.yaml: the key 'records' is missing", "correct these keys"
    ),
    "bench on Kubeflow without a Secret": Row(
        "bench bench.yaml --store s3://bucket",
        nothing,
        "--secret is missing: runs on Kubeflow need a store, and a Secret with keys to it",
        WHERE,
    ),
    "bench on Kubeflow without a store": Row(
        "bench bench.yaml --endpoint http://kubeflow",
        nothing,
        "--host is given, but no store through which the runs and their results pass",
        WHERE,
    ),
    "bench on Kubeflow, in a directory": Row(
        "bench bench.yaml --store file:///srv --secret keys",
        nothing,
        "the store file:///srv is not one that the cluster's pods can reach",
        WHERE,
    ),
    "a log of no run": Row(
        "logs",
        nothing,
        "{at}/.perfit/federations has the log of no run",
        "run a federation first: perfit run FILE",
    ),
    "a schedule of five fields": Row(
        "schedule create federation.yaml --cron '0 2 * * *'",
        nothing,
        "--cron '0 2 * * *' has five fields, but Kubeflow reads six, with seconds first",
        "put a 0 before it: --cron '0 0 2 * * *'",
    ),
    "a schedule of no time": Row(
        "schedule create federation.yaml",
        nothing,
        "a schedule needs either --cron or --every",
        "give one, such as --every 24h or --cron '0 0 2 * * *'",
    ),
    "a schedule of no duration": Row(
        "schedule create federation.yaml --every soon",
        nothing,
        "--every 'soon' is not a duration",
        "give one such as --every 24h, 90m or 1h30m",
    ),
    "keys in an address": Row(
        "status --store s3://key:secret@bucket", nothing, "the store URI holds credentials", NO_SECRETS
    ),
    "no such overlay": Row(
        "deploy federation.yaml --overlay none",
        nothing,
        "there is no overlay 'none'",
        "use one of: existing-minio, gpu, kind, kubeflow-multiuser, seaweedfs, or a path",
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_wrong_input(home, name):
    assert check(ROWS[name], home) == ""
