"""What all sections of a federation file share: strictness, names, and errors that name a key."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, field_validator
from pydantic_core import PydanticCustomError

_NAME = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"


class Section(BaseModel):
    """A section of the federation file: unknown keys, booleans for numbers, and infinities are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool(cls, value, info):
        # pydantic would take `yes` for 1.
        if isinstance(value, bool) and cls.model_fields[info.field_name].annotation not in (bool, bool | None):
            raise ValueError(f"{value!r} is a boolean, which this key does not take")
        return value


def _safe_name(value: object) -> object:
    if isinstance(value, str) and not re.fullmatch(_NAME, value):
        raise ValueError(
            f"{value!r} is not a safe name: use lower-case letters, digits and inner hyphens, 63 characters at most"
        )
    return value


Name = Annotated[str, BeforeValidator(_safe_name)]
"""A DNS label: safe in keys of the store, in names of Kubernetes objects and in policies."""


def key_error(path: tuple[str | int, ...], message: str) -> PydanticCustomError:
    """Return the error of a check across keys; it names the key to change, as a check of one key would.

    Args:
        path: Of that key, from the section that is checked.
        message: What is wrong with it.
    """
    return PydanticCustomError("federation", "{message}", {"message": message, "path": path})
