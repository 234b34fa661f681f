"""Reading a federation file (what is computed, and where it runs), with errors that name a line and a key.

The same holds for other YAML files whose sections are pydantic models: :func:`load_tree`, then :func:`validated`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from os.path import normpath
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError, printable
from perfit.locations import hide_credentials, is_local, is_path
from perfit.methods import METHODS
from perfit.overrides import override
from perfit.spec import method_name

MAX_CHARACTERS = 1_000_000
"""Maximum length of a federation file: enough for several thousand clients."""
_MAX_SCALAR = 4096  # characters of one value
M = TypeVar("M", bound=BaseModel)
Lines = dict[tuple[str | int, ...], int | str]
"""The line of each key's path, from 1; of a key that is not from the file, the words that say where it is from."""


def load_federation(path: str | Path, settings: Sequence[str] = ()) -> ClusterSpec:
    """Read and validate a federation file; relative paths of the model and of data are taken from its directory.

    Args:
        path: Of the file.
        settings: As in :func:`parse_federation`.

    Raises:
        PerfitError: The file is missing or wrong; every problem is reported with its line and key.
    """
    text = read_text(path, "give a federation file; `perfit init FILE` writes a commented one")
    directory = Path(path).resolve().parent
    return _absolute(parse_federation(text, str(path), directory, settings), directory)


def parse_federation(
    text: str, source: str = "federation", directory: Path | None = None, settings: Sequence[str] = ()
) -> ClusterSpec:
    """Validate the text of a federation file.

    Args:
        text: Of the file.
        source: What errors call it.
        directory: Where relative paths start, to find two of one file; they stay as they are.
        settings: Keys that are other than in the file: ``training.steps=5``; see :func:`perfit.overrides.override`.

    Raises:
        PerfitError: Every problem, each with its line and key in ``source``.
    """
    tree, lines = load_tree(text, source)
    if not isinstance(tree, dict):
        raise PerfitError(f"{source} holds no keys", "`perfit init FILE` writes a commented federation file")
    override(tree, lines, settings)
    return validated(ClusterSpec, tree, lines, source, directory)


def read_text(path: str | Path, fix: str) -> str:
    """Return a file's text, or as much of it as shows that it is too long.

    Raises:
        PerfitError: The file is missing or is no text; with the ``fix`` given.
    """
    try:
        with Path(path).open(encoding="utf-8") as file:
            return file.read(MAX_CHARACTERS + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise PerfitError(f"{path} cannot be read: {error}", fix) from error


def validated(model: type[M], tree: Any, lines: Lines, source: str, context: Any = None) -> M:
    """Validate what :func:`load_tree` returned.

    Args:
        model: What the tree describes.
        tree: Of the file, or made from it.
        lines: Where the tree's keys are in the file.
        source: What errors call the file.
        context: For the model's validators.

    Raises:
        PerfitError: Every problem, each with its line and key.
    """
    try:
        return model.model_validate(tree, context=context)
    except ValidationError as error:
        problems = [_describe(problem, tree, lines, source, model) for problem in error.errors()]
        fix = f"correct {'this key' if len(problems) == 1 else 'these keys'}"
        raise PerfitError("\n".join(problems), fix) from None


class _Refused(yaml.YAMLError):
    """Why a file is not read, though it is YAML."""

    def __init__(self, mark: yaml.Mark, problem: str, fix: str):
        super().__init__(problem)
        self.line, self.problem, self.fix = mark.line + 1, problem, fix


class _Loader(yaml.SafeLoader):
    """YAML without aliases, with which a few lines could expand to billions of values."""

    def compose_node(self, parent, index):
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            fix = "write the value in full wherever it is used"
            raise _Refused(event.start_mark, "anchors and aliases (&name, *name) are not read", fix)
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MAX_SCALAR:
            fix = f"use at most {_MAX_SCALAR} characters"
            raise _Refused(event.start_mark, f"a value of {len(event.value):,} characters", fix)
        return super().compose_node(parent, index)


def load_tree(text: str, source: str) -> tuple[Any, Lines]:
    """Return the parsed text of a YAML file, and the line of each key's path.

    Raises:
        PerfitError: It is no YAML, has aliases or a duplicated key, or is too long.
    """
    if len(text) > MAX_CHARACTERS:
        raise PerfitError(
            f"{source} has more than {MAX_CHARACTERS:,} characters", "give a federation file with fewer clients"
        )
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        tree = None if node is None else loader.construct_document(node)
        return tree, _lines(node, source)
    except _Refused as error:
        raise PerfitError(f"{source}:{error.line}: {error.problem}", error.fix) from error
    except PerfitError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = hide_credentials(f"{source} is not YAML: {error}")
        raise PerfitError(problem, "repair the syntax at the line named") from None
    finally:
        loader.dispose()


def _absolute(spec: ClusterSpec, directory: Path) -> ClusterSpec:
    def resolve(uri: str | None) -> str | None:
        return str(directory / uri) if uri and (is_local(uri) or _exists(directory, uri)) else uri

    clients = tuple(
        client.model_copy(update={"data": resolve(client.data), "held_out": resolve(client.held_out)})
        for client in spec.clients
    )
    model = spec.model
    if is_path(model) or _exists(directory, model):
        model = normpath(directory / Path(model).expanduser())
    return spec.model_copy(update={"clients": clients, "model": model})


def _exists(directory: Path, name: str) -> bool:
    """Whether what may be a hub id is a path from this directory."""
    return "://" not in name and (directory / name).exists()


def _lines(node: yaml.Node | None, source: str, path: tuple = ()) -> Lines:
    """Map each key's path to its line, from 1. A duplicated key is an error here, though YAML would accept it."""
    lines: Lines = {}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            child = (*path, key.value)
            if child in lines:
                raise PerfitError(
                    f"{source}:{key.start_mark.line + 1}: {_key(child)} is duplicated (first in line {lines[child]})",
                    "remove one of the two",
                )
            lines |= {child: key.start_mark.line + 1, **_lines(value, source, child)}
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            child = (*path, index)
            lines |= {child: value.start_mark.line + 1, **_lines(value, source, child)}
    return lines


def _key(path: tuple) -> str:
    return ".".join(printable(str(part)) for part in path)


def _describe(problem: dict[str, Any], tree: Any, lines: Lines, source: str, model: type[BaseModel]) -> str:
    path = (*problem["loc"], *problem.get("ctx", {}).get("path", ()))
    known = next((path[:n] for n in range(len(path), 0, -1) if path[:n] in lines), ())
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = _unknown(path, model, tree)
    elif problem["type"] == "missing":
        message, known = f"the key {path[-1]!r} is missing", path[:-1]
    elif problem["type"] not in ("value_error", "federation"):
        message = hide_credentials(f"{message}, but it is {problem['input']!r}")
    line = lines.get(known)
    where = line if isinstance(line, str) else f"{source}:{line}" if line else source
    named = known or (path if problem["type"] == "federation" else ())
    return f"{where}: {_key(named)}: {message}" if named else f"{where}: {message}"


def _unknown(path: tuple, model: type[BaseModel], tree: Any) -> str:
    name = method_name(tree["method"]) if path[0] == "method" and len(path) > 1 else None
    options: Any = METHODS[name].options if name else model
    for part in path[1 if name else 0 : -1]:
        is_model = isinstance(options, type) and issubclass(options, BaseModel)
        options = options.model_fields[part].annotation if is_model else _models(options)[0]
    names = list(_models(options)[0].model_fields)
    close = difflib.get_close_matches(str(path[-1]), names, n=1)
    known = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(names)}"
    return f"method {name} has no option {path[-1]!r}; {known}" if name else f"unknown key; {known}"


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
