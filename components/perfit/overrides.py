"""Keys of a federation file set elsewhere: ``training.steps=5`` on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from perfit.errors import PerfitError, printable


def override(tree: dict[str, Any], lines: dict[tuple[str | int, ...], int | str], settings: Sequence[str]) -> None:
    """Set keys in the tree of a federation file; in ``lines``, the setting takes the place of the key's line.

    >>> tree, lines = {"rounds": 3, "clients": [{"id": "ann"}]}, {("rounds",): 1}
    >>> override(tree, lines, ["rounds=5", "training.steps=2", "clients.ann.rank=4"])
    >>> tree
    {'rounds': 5, 'clients': [{'id': 'ann', 'rank': 4}], 'training': {'steps': 2}}
    >>> lines["rounds",]
    '--set rounds=5'

    Args:
        tree: Of the file, as ``load_tree`` returns it; changed.
        lines: Of its keys; changed.
        settings: ``key=value``: section and key joined by dots, a client by its id; the value is YAML.

    Raises:
        PerfitError: A setting is not of this form, names no client or a key inside a value, or its value is no YAML.
    """
    for setting in settings:
        key, equals, text = setting.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise _error(setting, "is not KEY=VALUE", "write it like --set training.steps=5")
        path, place = _find(tree, parts, setting)
        place[path[-1]] = _value(text, setting)
        for stale in [known for known in lines if known[: len(path)] == path]:
            del lines[stale]
        lines |= {path[:n]: f"--set {printable(setting)}" for n in range(1, len(path) + 1) if path[:n] not in lines}


def _find(tree: Any, parts: Sequence[str], setting: str) -> tuple[tuple[str | int, ...], Any]:
    """The path of a key, and the section or list that holds it; missing sections are made."""
    path: list[str | int] = []
    for part in parts:
        if isinstance(tree, list):
            ids = [item.get("id") if isinstance(item, dict) else None for item in tree]
            if part not in ids:
                raise _error(setting, f"names no item {part!r}", f"use one of: {', '.join(filter(None, ids))}")
            path.append(ids.index(part))
        elif isinstance(tree, dict):
            path.append(part)
        else:
            raise _error(setting, f"{'.'.join(map(str, path))} holds a value, not keys", "name the key of a value")
        if len(path) < len(parts):
            tree = tree[path[-1]] if isinstance(tree, list) else _section(tree, part)
    return tuple(path), tree


def _section(tree: dict[str, Any], key: str) -> Any:
    if tree.get(key) is None:
        tree[key] = {}
    return tree[key]


def _value(text: str, setting: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _error(setting, "the value is not YAML", "quote it: --set 'KEY=\"VALUE\"'") from error


def _error(setting: str, problem: str, fix: str) -> PerfitError:
    return PerfitError(f"--set {printable(setting)}: {problem}", fix)
