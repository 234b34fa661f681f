"""The published models of the KFP API, read strictly: what they do not allow is an error, as for the real server."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import kfp_server_api
from kfp_server_api import models

INT64 = {"max_concurrency", "interval_second", "execution_id"}
"""Fields that JSON may hold as a number or as a string (protobuf's mapping of int64)."""


class Invalid(ValueError):
    """A body that a model does not allow."""


def parse(body: Any, model: str) -> Any:
    """Return the model that a JSON body describes.

    Raises:
        Invalid: A field is unknown, or its value is not of its type.
    """
    kind = getattr(models, model)
    if hasattr(kind, "allowable_values"):
        if body not in kind.allowable_values:
            raise Invalid(f"{body!r} is not a value of {model}")
        return body
    if not isinstance(body, dict):
        raise Invalid(f"{model} must be an object, not {body!r}")
    fields = {key: attribute for attribute, key in kind.attribute_map.items()}
    if unknown := set(body) - set(fields):
        raise Invalid(f"{model} has no field {', '.join(sorted(unknown))}")
    values = {}
    for key, value in body.items():
        attribute = fields[key]
        values[attribute] = _value(value, kind.openapi_types[attribute], f"{model}.{key}")
    return kind(**values)


def serialise(model: Any) -> Any:
    """Return a model as JSON."""
    return kfp_server_api.ApiClient().sanitize_for_serialization(model)


def _value(value: Any, kind: str, where: str) -> Any:
    if kind == "object":
        return value
    if item := re.fullmatch(r"list\[(.*)\]", kind):
        return [_value(entry, item[1], where) for entry in _typed(value, list, where)]
    if entry := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return {key: _value(item, entry[1], where) for key, item in _typed(value, dict, where).items()}
    if kind == "datetime":
        return datetime.fromisoformat(_typed(value, str, where))
    if kind == "str" and where.rpartition(".")[2] in INT64:
        return str(int(value))
    if kind in ("str", "bool", "int"):
        return _typed(value, {"str": str, "bool": bool, "int": int}[kind], where)
    return parse(value, kind)


def _typed(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise Invalid(f"{where} must be {kind.__name__}, not {value!r}")
    return value
