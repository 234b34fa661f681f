"""Reading a federation file, with errors that name its line and key."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from perfit.errors import PerfitError
from perfit.spec import Federation

DATA_SUFFIXES = (".jsonl", ".json", ".parquet")


def load_federation(path: str | Path) -> Federation:
    """Read and validate a federation file; relative data paths are taken from its directory.

    Raises:
        PerfitError: The file is missing or wrong; every problem is named with its line and key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PerfitError(
            f"{path} cannot be read: {error}", "give a federation file; `perfit init FILE` writes a commented one"
        ) from error
    return _absolute(parse_federation(text, str(path)), path.resolve().parent)


def parse_federation(text: str, source: str = "federation") -> Federation:
    """Validate the text of a federation file.

    Raises:
        PerfitError: Every problem, each with its line and key in ``source``.
    """
    try:
        tree = yaml.safe_load(text)
        lines = _lines(yaml.compose(text), source)
    except (yaml.YAMLError, RecursionError) as error:
        raise PerfitError(f"{source} is not YAML: {error}", "repair the syntax at the line named") from error
    if not isinstance(tree, dict):
        raise PerfitError(f"{source} holds no keys", "`perfit init FILE` writes a commented federation file")
    try:
        return Federation.model_validate(tree)
    except ValidationError as error:
        found = [_describe(problem, lines, source) for problem in error.errors()]
        raise PerfitError("\n".join(found), f"correct {'this key' if len(found) == 1 else 'these keys'}") from error


def is_local(uri: str) -> bool:
    """Whether a client's data URI is a path on this file system, not s3:// and not a hub id."""
    return "://" not in uri and uri.endswith(DATA_SUFFIXES)


def _absolute(federation: Federation, directory: Path) -> Federation:
    def resolve(uri: str | None) -> str | None:
        return str(directory / uri) if uri and is_local(uri) else uri

    clients = tuple(
        client.model_copy(update={"data": resolve(client.data), "held_out": resolve(client.held_out)})
        for client in federation.clients
    )
    return federation.model_copy(update={"clients": clients})


def _lines(node: yaml.Node | None, source: str, path: tuple = ()) -> dict[tuple, int]:
    """Map each key's path to its line, from 1; a key that stands twice is an error that YAML itself would hide."""
    lines: dict[tuple, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*path, key.value)
            if here in lines:
                raise PerfitError(
                    f"{source}:{key.start_mark.line + 1}: {_key(here)} stands twice (first in line {lines[here]})",
                    "remove one of the two",
                )
            lines |= {here: key.start_mark.line + 1, **_lines(value, source, here)}
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            here = (*path, index)
            lines |= {here: value.start_mark.line + 1, **_lines(value, source, here)}
    return lines


def _key(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def _describe(problem: dict[str, Any], lines: dict[tuple, int], source: str) -> str:
    # pydantic adds the names of union members to the path; only what stands in the file can be pointed at.
    path = problem.get("ctx", {}).get("path", problem["loc"])
    known = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in lines), ())
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"unknown key{_suggest(path)}"
    elif problem["type"] == "missing":
        message, known = f"the key {path[-1]!r} is missing", path[:-1]
    elif problem["type"] not in ("value_error", "federation"):
        message = f"{message}, but it is {problem['input']!r}"
    where = f"{source}:{lines[known]}" if known in lines else source
    named = known or (path if problem["type"] == "federation" else ())
    return f"{where}: {_key(named)}: {message}" if named else f"{where}: {message}"


def _suggest(path: tuple) -> str:
    model: Any = Federation
    for part in path[:-1]:
        is_model = isinstance(model, type) and issubclass(model, BaseModel)
        model = model.model_fields[part].annotation if is_model else _models(model)[0]
    names = list(_models(model)[0].model_fields)
    close = difflib.get_close_matches(str(path[-1]), names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(names)}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
