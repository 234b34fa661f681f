"""Instruction records: reading them from a file or the hub, and checking them against three schemas.

A record is Alpaca (`instruction`, `input`, `output`), Dolly (`instruction`, `context`, `response`, `category`) or chat
(`messages`). Unusable records are refused or skipped, as the user chooses, and reported by line.

Records are private: they are streamed, never cached on disk, and the reason for a refusal quotes keys and roles, never
content. A library's own message may contain values and file names, so it only goes to the log. Of a Parquet file and a
hub data set only the columns in `TEXT_COLUMNS` are read: whatever else a schema declares (images, for example), no path
is opened and no URL requested.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from perfit.errors import PerfitError, log_error, printable
from perfit.locations import HUB_ID, RECORD_FILES
from perfit.parquet import Unreadable, read_columns

BadRecords = Literal["refuse", "skip"]
Message = dict[str, str]
T = TypeVar("T")

TEXT_COLUMNS = ("instruction", "input", "output", "context", "response", "category", "messages")
"""The columns of all three schemas."""

_SOURCES = "give a .jsonl or .parquet file, or a hub data set as owner/name or owner/name:split"
_SCHEMAS = "use the keys of Alpaca (instruction, input, output), Dolly (instruction, context, response) or messages"
_HUB_REASONS = {
    "DatasetNotFoundError": "the hub shows no such data set, or not to this user",
    "ConnectionError": "the hub cannot be reached",
    "TransportError": "the hub cannot be reached",
    "HTTPError": "the hub refuses it",
}
_NAMED_RECORDS = 5  # how many bad records an error message lists


class BadRecord(ValueError):
    """Why one record cannot be used: a short reason without the record's content."""


@dataclass(frozen=True)
class Record:
    """One record of a source.

    Args:
        line: Its line in the file, or its row, from 1.
        fields: Its content; empty if it cannot be parsed.
        problem: Why it cannot be parsed; None if it can.
    """

    line: int
    fields: dict[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class RecordReport:
    """The records of one source, divided into usable and skipped ones.

    Args:
        source: Where the records come from.
        usable: The records that `to_messages` accepts, in the order of the source.
        skipped: (line, reason) of every other record.
    """

    source: str
    usable: tuple[Record, ...]
    skipped: tuple[tuple[int, str], ...]


def read_records(source: str, also: Collection[str] = (), name: str | None = None) -> list[Record]:
    """Read every record of a source; blank lines are ignored.

    Args:
        source: Path of a JSON lines (.jsonl, .json) or Parquet (.parquet) file, or a hub data set as
            `owner/name[:split]` (split `train` if not named).
        also: Columns to read of a Parquet file or a hub data set besides `TEXT_COLUMNS`.
        name: What errors call the source, where that is not its path: the URI of which a file is a copy.

    Returns:
        The records in order. A line that is not a JSON object is a record with a `problem`.

    Raises:
        PerfitError: The source cannot be read, is of an unknown type, or contains no records.
    """
    name = name or source
    read, fix = _reader(source, (*TEXT_COLUMNS, *also), name)
    try:
        records = list(read())
    except PermissionError as error:
        raise PerfitError(f"{name}: this user may not read it", fix) from error
    except (Unreadable, OSError) as error:
        if cause := error.__cause__ or (error if isinstance(error, OSError) else None):
            log_error(name, cause)
        raise PerfitError(f"{name}: {error if isinstance(error, Unreadable) else 'cannot be read'}", fix) from error
    if not records:
        raise PerfitError(f"{name}: contains no records", "give a client at least 2 records")
    return records


def _reader(source: str, columns: Sequence[str], name: str) -> tuple[Callable[[], Iterator[Record]], str]:
    """Return a function that reads a source, and the fix if reading fails; errors call the source by this name."""
    path = Path(source)
    if source.startswith("s3://"):
        raise PerfitError(f"{name}: is not a local file", "let the pipeline fetch it, or download it first")
    if path.is_dir():
        raise PerfitError(f"{name}: is a directory", _SOURCES)
    if path.suffix in RECORD_FILES:
        if not path.exists():
            raise PerfitError(f"{name}: no such file", "check the path")
        fix = "check that the file is whole and may be read"
        if path.suffix == ".parquet":
            return lambda: _number(read_columns(path, columns)), f"{fix}; {_SCHEMAS}"
        return lambda: _read_lines(path, name), fix
    if path.exists():
        raise PerfitError(f"{name}: unknown file type {path.suffix!r}", _SOURCES)
    if hub := HUB_ID.fullmatch(source):
        fix = "check the name, the split, the network and, if it is private, HF_TOKEN; or give a file"
        return lambda: _number(_read_hub(hub["name"], hub["split"] or "train", columns)), fix
    raise PerfitError(f"{name}: neither a file nor a hub data set", _SOURCES)


def _read_lines(path: Path, name: str) -> Iterator[Record]:
    # Invalid bytes become \\xNN, which JSON rejects: only their line is bad, not the whole file.
    with open(path, encoding="utf-8-sig", errors="backslashreplace") as file:
        for line, text in enumerate(file, start=1):
            if line == 1 and text.startswith("["):
                fix = f"convert it: jq -c '.[]' {path.name} > {path.stem}.lines.jsonl"
                raise PerfitError(f"{name}: is a JSON array, not one JSON object a line", fix)
            if text.strip():
                yield _parse(line, text.removesuffix("\n"))


def _parse(line: int, text: str) -> Record:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        return Record(line, {}, f"not valid JSON (column {error.colno}: {_json_reason(text, error)})")
    except (ValueError, RecursionError):
        return Record(line, {}, "not valid JSON (a number is too long, or values are nested too deeply)")
    return Record(line, fields) if isinstance(fields, dict) else Record(line, {}, "not a JSON object")


def _json_reason(text: str, error: json.JSONDecodeError) -> str:
    """Return the parser's message without the character that it may quote."""
    if re.compile(r"\\x[0-9a-f]{2}").match(text, error.pos):
        return "not UTF-8"
    return error.msg.split(": '")[0]


def _read_hub(name: str, split: str, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    from datasets import load_dataset

    try:
        # Even when it only streams, the library keeps lock files in its cache, so give it a temporary one.
        with tempfile.TemporaryDirectory() as cache:
            rows = load_dataset(name, split=split, streaming=True, cache_dir=cache).decode(False)
            if rows.column_names:
                rows = rows.select_columns([column for column in rows.column_names if column in columns])
            yield from ({column: row[column] for column in columns if column in row} for row in rows)
    except Exception as error:  # of a dozen libraries
        kinds = {kind.__name__ for kind in type(error).__mro__}
        reason = next((reason for name, reason in _HUB_REASONS.items() if name in kinds), "see the log")
        raise Unreadable(f"cannot be read: {reason}") from error


def _number(rows: Iterable[dict[str, Any]]) -> Iterator[Record]:
    return (Record(line, row) for line, row in enumerate(rows, start=1))


def to_messages(fields: Mapping[str, Any]) -> list[Message]:
    """Convert a record of any of the three schemas to chat messages; a null field counts as absent.

    Args:
        fields: The record. Its keys decide the schema.

    Returns:
        Messages `{"role", "content"}`: an optional system message, then user and assistant turns, the last one the
        assistant's. Instruction and context form one user message, with a blank line between them.

    Raises:
        BadRecord: The record fits no schema or lacks what its schema needs.
    """
    present = {key: value for key, value in fields.items() if value is not None}
    if "messages" in present:
        return _chat(present["messages"])
    if "instruction" in present:
        return _single_turn(present)
    keys = ", ".join(printable(key[:20]) for key in list(fields)[:8])
    raise BadRecord(f"unknown schema (keys: {keys or 'none'})")


def _single_turn(fields: Mapping[str, Any]) -> list[Message]:
    answers = [key for key in ("response", "output") if key in fields]
    if len(answers) != 1:
        raise BadRecord("both response and output" if answers else "no response")
    contexts = [_text(fields[key], key) for key in ("context", "input") if key in fields]
    question = [_non_empty(fields["instruction"], "instruction"), *filter(str.strip, contexts)]
    return [
        {"role": "user", "content": "\n\n".join(question)},
        {"role": "assistant", "content": _non_empty(fields[answers[0]], "response")},
    ]


def _chat(messages: Any) -> list[Message]:
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise BadRecord("messages is not a list of objects with role and content")
    roles = [message.get("role") for message in messages]
    _check_roles(roles)
    names = ["response" if role == "assistant" else f"{role} message" for role in roles]
    contents = [_non_empty(message.get("content"), name) for message, name in zip(messages, names, strict=True)]
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]


def _check_roles(roles: Sequence[Any]) -> None:
    for position, role in enumerate(roles, start=1):
        if not isinstance(role, str):
            raise BadRecord(f"no role in message {position}")
        if role not in ("system", "user", "assistant"):
            raise BadRecord(f"unknown role '{printable(role[:20])}' in message {position}")
    if "assistant" not in roles:
        raise BadRecord("no response")
    if roles[-1] != "assistant":
        raise BadRecord("chat does not end with the assistant")
    turns = roles[1:] if roles[0] == "system" else roles
    if "system" in turns:
        raise BadRecord("system message is not the first")
    if turns[0] != "user":
        raise BadRecord("chat does not begin with the user")


def _non_empty(value: Any, name: str) -> str:
    text = _text(value, name)
    if not text.strip():
        raise BadRecord(f"empty {name}")
    return text


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadRecord(f"{name} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise BadRecord(f"{name} holds half of a surrogate pair") from None
    return value


def check_records(source: str, bad_records: BadRecords = "refuse", also: Collection[str] = ()) -> RecordReport:
    """Read a source and check every record against the schemas, without a tokenizer.

    Args:
        source: As in `read_records`.
        bad_records: Raise on any bad record, or list it in the report.
        also: As in `read_records`.

    Raises:
        PerfitError: As `read_records`; a bad record under `refuse`; no usable record.
    """
    kept, skipped = screen_records(source, bad_records, to_messages, also)
    return RecordReport(source, tuple(record for record, _ in kept), skipped)


def screen_records(
    source: str,
    bad_records: BadRecords,
    convert: Callable[[dict[str, Any]], T],
    also: Collection[str] = (),
    name: str | None = None,
) -> tuple[list[tuple[Record, T]], tuple[tuple[int, str], ...]]:
    """Read a source and convert its usable records.

    Args:
        source: As in `read_records`.
        bad_records: Raise on any bad record, or list it.
        convert: Converts a record's fields; raises `BadRecord`.
        also: As in `read_records`.
        name: As in `read_records`.

    Returns:
        (record, result of the conversion) of each usable record, and (line, reason) of every other one.

    Raises:
        PerfitError: As `read_records`; a bad record under `refuse`; no usable record.
    """
    name, kept, skipped = name or source, [], []
    for record in read_records(source, also, name):
        try:
            if record.problem:
                raise BadRecord(record.problem)
            kept.append((record, convert(record.fields)))
        except BadRecord as reason:
            skipped.append((record.line, str(reason)))
    if not kept:
        raise PerfitError(f"{name}: no usable record: {_list_reasons(skipped)}", _SCHEMAS)
    if skipped and bad_records == "refuse":
        bad, total = len(skipped), len(skipped) + len(kept)
        problem = f"{name}: {bad} of {total} records cannot be used: {_list_reasons(skipped)}"
        raise PerfitError(problem, "repair them, or set data.bad_records: skip to leave them out")
    return kept, tuple(skipped)


def _list_reasons(skipped: Sequence[tuple[int, str]]) -> str:
    named = [f"line {line}: {reason}" for line, reason in skipped[:_NAMED_RECORDS]]
    more = len(skipped) - len(named)
    return "; ".join([*named, f"and {more} more"] if more else named)
