"""A user's mistakes: the command says what is wrong, where, and what to do, exits with 1, and writes nothing."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import yaml

from ...perfit_components.running import files
from ..commands import Home

SEGMENT = "is not a safe name: use lower-case letters, digits and inner hyphens, 63 characters at most"


@dataclass(frozen=True)
class Mistake:
    """What is spoilt, and what the command says of it.

    In the problem, ``{at}`` stands for the directory, and ``{text}`` for the number of the line that begins so.
    """

    spoil: Callable[[Home], object]
    problem: str
    fix: str


def edit(old: str, new: str) -> Callable[[Home], None]:
    return lambda home: home.edit(old, new)


def append(client: str, line: str) -> Callable[[Home], int]:
    def spoil(home: Home) -> int:
        path = home.directory / f"data/{client}.jsonl"
        return path.write_text(path.read_text() + line + "\n")

    return spoil


MISTAKES = {
    "unknown key": Mistake(
        edit("rounds: 2", "round: 2"),
        "federation.yaml:{round}: round: unknown key; did you mean 'rounds'?",
        "correct this key",
    ),
    "mistyped value": Mistake(
        edit("rounds: 2", "rounds: two"),
        "federation.yaml:{rounds}: rounds: Input should be a valid integer, unable to parse string as an integer, "
        "but it is 'two'",
        "correct this key",
    ),
    "unsafe client id": Mistake(
        edit("- id: ann", "- id: ../ann"),
        f"federation.yaml:{{- id}}: clients.0.id: '../ann' {SEGMENT}",
        "correct this key",
    ),
    "duplicate ids": Mistake(
        edit("- id: ann", "- id: bob"),
        "federation.yaml:{- id: bob}: clients.1.id: 'bob' is used twice; give every client an id of its own",
        "correct this key",
    ),
    "rank above": Mistake(
        edit("  rank: 1", "  rank: 3"),
        "federation.yaml:{  rank: 3}: clients.1.rank: 3 is above lora.rank 2, the largest rank of a client; raise "
        "lora.rank or lower this",
        "correct this key",
    ),
    "missing data file": Mistake(
        lambda home: (home.directory / "data/ann.jsonl").unlink(),
        "client ann: {at}/data/ann.jsonl: no such file",
        "check the path",
    ),
    "record without a response": Mistake(
        append("bob", '{"instruction": "What is the sea?"}'),
        "client bob: {at}/data/bob.jsonl: 1 of 6 records cannot be used: line 6: no response",
        "repair them, or set data.bad_records: skip to leave them out",
    ),
    "empty client": Mistake(
        lambda home: (home.directory / "data/bob.jsonl").write_text(""),
        "client bob: {at}/data/bob.jsonl: contains no records",
        "give a client at least 2 records",
    ),
    "two mistakes at once": Mistake(
        lambda home: [(home.directory / f"data/{client}.jsonl").unlink() for client in ("ann", "bob")],
        "client ann: {at}/data/ann.jsonl: no such file\nclient bob: {at}/data/bob.jsonl: no such file",
        "check the path",
    ),
    "no file": Mistake(
        lambda home: home.file.unlink(),
        "federation.yaml cannot be read: [Errno 2] No such file or directory: 'federation.yaml'",
        "give a federation file; `perfit init FILE` writes a commented one",
    ),
}


def expected(mistake: Mistake, home: Home) -> str:
    """The message, with the numbers of the lines that begin so."""
    text = home.file.read_text().splitlines() if home.file.exists() else []

    def line(match: re.Match) -> str:
        found = [number for number, line in enumerate(text, start=1) if line.startswith(match[1])]
        return str(found[-1] if "twice" in mistake.problem else found[0])

    problem = mistake.problem.replace("{at}", str(home.directory))
    return f"error: {re.sub('{(.+?)}', line, problem)}\n  fix: {mistake.fix}\n"


@pytest.mark.parametrize("command", ["validate", "run"])
@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_the_federation_file_and_the_data(make, command, name):
    home, mistake = make(participation={"minimum_clients": 2}), MISTAKES[name]
    mistake.spoil(home)
    there = files(home.directory)
    store = [] if command == "validate" else ["--store", (home.directory / "store").as_uri()]
    result = home.perfit(command, "federation.yaml", *store)
    assert (result.code, result.err) == (1, expected(mistake, home))
    assert "is valid" not in result.out
    assert files(home.directory) == there


def test_a_target_module_that_the_model_does_not_have(home):
    home.edit("  alpha: 4.0", "  alpha: 4.0\n  target_modules: [q_porj]")
    result = home.stored("run", "federation.yaml")
    assert (result.code, result.err) == (
        1,
        "error: lora.target_modules: the model has no linear module 'q_porj'\n"
        "  fix: use all-linear, or some of: down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj\n",
    )
    assert files(home.site.root) == {}


def test_a_name_that_another_federation_has(finished, make):
    other = make(training={"seed": 1})
    there = files(finished.home.site.root)
    result = other.perfit("run", "federation.yaml", "--store", finished.home.site.store_uri)
    assert (result.code, result.err) == (
        1,
        f"error: the name 'tiny' is already used by another federation at {finished.home.site.uri}: training.seed is 1 "
        "here and 0 there\n"
        "  fix: choose another name, continue with the file that the federation was created with, or delete that "
        "federation: perfit delete tiny\n",
    )
    assert files(finished.home.site.root) == there


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_store_that_cannot_be_reached(home, command, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-of-this-test")
    arguments = ["federation.yaml"] if command == "run" else []
    result = home.perfit(command, *arguments, "--store", "s3://bucket/prefix")
    assert result.code == 1
    assert re.match(f"error: cannot (read|list) s3://bucket/prefix/federations\\S* at {endpoint}: ", result.err)
    assert result.err.endswith(
        "\n  fix: check AWS_ENDPOINT_URL, and that the store runs and can be reached from here\n"
    )
    everything = result.out + result.err + "".join(map(str, files(home.directory).values()))
    assert "secret-of-this-test" not in everything


@pytest.mark.parametrize(
    ("store", "problem"),
    [
        ("s4://bucket", "'s4://bucket' is not the URI of a store"),
        ("s3://key:secret@bucket", "the store URI holds credentials"),
        ("s3://key:sec/ret@bucket", "the store URI holds credentials"),
        ("s3://bucket?secret", "the store URI holds a query or fragment (? or #), which may be a secret"),
    ],
)
def test_a_store_of_another_kind(home, store, problem):
    result = home.perfit("status", "--store", store)
    assert (result.code, result.err.splitlines()[0]) == (1, f"error: {problem}")


@pytest.mark.parametrize(
    "command", [("run",), ("compile", "-o", "p.yaml"), ("deploy", "--overlay", "kind"), ("submit",), ("doctor",)]
)
def test_no_command_takes_a_secret_in_the_stores_uri(home, command):
    """Nor shows or writes it."""
    before = files(home.directory)
    result = home.perfit(command[0], home.file, *command[1:], "--store", "s3://key:pass/word@bucket")
    assert (result.code, result.err.splitlines()[0]) == (1, "error: the store URI holds credentials")
    assert "word" not in result.out + result.err
    assert files(home.directory) == before


def test_names_are_printed_as_they_are(home):
    """Also those that a terminal's markup or emoji codes would change."""
    result = home.perfit("validate", "a:train:[red].yaml")
    assert result.err.startswith("error: a:train:[red].yaml cannot be read")


def test_nothing_of_a_file_moves_the_terminal(home):
    spec = yaml.safe_load(home.file.read_text())
    spec["clients"][0]["data"] = "\x1b]0;title\x07\x1b[2J.jsonl"
    home.file.write_text(yaml.safe_dump(spec))
    result = home.perfit("validate", "federation.yaml")
    assert result.code == 1
    assert result.err.replace("\n", "").isprintable()
    assert "\\x1b]0;title\\x07" in result.err
