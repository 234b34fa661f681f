"""Options of the commands for a cluster: how to reach it, and durations and cron expressions as people write them."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from perfit.errors import PerfitError
from perfit_pipelines.cluster.connection import Endpoint

CREDENTIALS = (
    "Credentials come from the environment: PERFIT_KFP_TOKEN (a bearer token) or PERFIT_KFP_COOKIES (cookies of a "
    "browser session that is logged in). Without --host, a pod uses its service account, other machines a kubeconfig."
)
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
_FIELDS = (
    ("second", 0, 59, ()),
    ("minute", 0, 59, ()),
    ("hour", 0, 23, ()),
    ("day of the month", 1, 31, ()),
    ("month", 1, 12, _MONTHS),
    ("day of the week", 0, 6, _DAYS),
)
_EXAMPLE = "--cron '0 0 2 * * *' is every day at 2:00"


def _endpoint(
    host: Annotated[
        str | None,
        typer.Option(
            "--host", "--endpoint", envvar="KF_PIPELINES_ENDPOINT", help="URL of Kubeflow Pipelines' UI or API."
        ),
    ] = None,
    namespace: Annotated[
        str | None,
        typer.Option(envvar="PERFIT_KFP_NAMESPACE", help="Of your profile, where Kubeflow serves several users."),
    ] = None,
    ui_host: Annotated[
        str | None,
        typer.Option(envvar="KF_PIPELINES_UI_ENDPOINT", help="URL of the UI for links, where --host is the bare API."),
    ] = None,
    ca_cert: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Certificate of the authority that signed the server's."),
    ] = None,
    verify_ssl: Annotated[bool, typer.Option(help="Check the server's certificate.")] = True,
) -> Endpoint:
    token, cookies = os.environ.get("PERFIT_KFP_TOKEN"), os.environ.get("PERFIT_KFP_COOKIES")
    return Endpoint(host, namespace, token or None, cookies or None, ui_host, ca_cert, verify_ssl)


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of the connection, in place of its parameter ``endpoint``."""
    options = inspect.signature(_endpoint, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters

    @functools.wraps(command)
    def with_options(**given: Any) -> None:
        connection = {name: given.pop(name) for name in options}
        command(endpoint=_endpoint(**connection), **given)

    parameters = [parameter for name, parameter in own.items() if name != "endpoint"] + list(options.values())
    # Typer reads the signature and, beside it, the annotations.
    with_options.__signature__ = inspect.Signature(
        [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    )
    with_options.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def parse_duration(text: str, option: str) -> int:
    """Return the seconds of a duration such as ``24h``, ``90m`` or ``1h30m``.

    Args:
        text: The user's input.
        option: Name of the option, for the error.

    Raises:
        PerfitError: It is not a duration, or below a second.
    """
    from durationpy import DurationError, from_str

    try:
        seconds = int(from_str(text).total_seconds())
    except (DurationError, OverflowError):
        seconds = 0
    if seconds < 1:
        raise PerfitError(f"{option} {text!r} is not a duration", f"give one such as {option} 24h, 90m or 1h30m")
    return seconds


def parse_interval(text: str) -> int:
    """Return the seconds between two rounds.

    Raises:
        PerfitError: It is not a duration, or under a minute.
    """
    seconds = parse_duration(text, "--every")
    if seconds < 60:
        raise PerfitError(f"--every {text} is shorter than any round takes", "give at least a minute, such as 24h")
    return seconds


def check_cron(expression: str) -> str:
    """Return a cron expression that Kubeflow reads as it was meant: six fields, seconds first.

    Each field is ``*``, ``?``, a value, a range, any of these with a step, or a list of them. Five fields, as Unix
    writes them, would be accepted by Kubeflow and read shifted by one.

    Raises:
        PerfitError: It has another number of fields, or a field is out of its range.
    """
    fields = expression.split()
    if expression.strip().startswith("@"):
        raise PerfitError(f"--cron {expression!r} is a short name", f"write six fields, or use --every; {_EXAMPLE}")
    if len(fields) == 5:
        raise PerfitError(
            f"--cron {expression!r} has five fields, but Kubeflow reads six, with seconds first",
            f"put a 0 before it: --cron '0 {' '.join(fields)}'",
        )
    if len(fields) != 6:
        raise PerfitError(
            f"--cron {expression!r} has {len(fields)} fields, but Kubeflow reads six: "
            "second minute hour day-of-month month day-of-week",
            _EXAMPLE,
        )
    for text, field in zip(fields, _FIELDS, strict=True):
        for part in text.split(","):
            _check_part(part, field, expression)
    return " ".join(fields)


def _check_part(part: str, field: tuple, expression: str) -> None:
    name, low, high, names = field

    def refuse(why: str) -> PerfitError:
        allowed = f"{low}-{high}" + (f" or {names[0]}-{names[-1]}" if names else "")
        return PerfitError(f"--cron {expression!r}: {name} {part!r} {why}", f"use {allowed}, * or */STEP; {_EXAMPLE}")

    span, slash, step = part.partition("/")
    if slash and not (step.isascii() and step.isdigit() and int(step) > 0):
        raise refuse("has a step that is not a positive number")
    if span in ("*", "?"):
        return
    bounds = [_value(text, low, names) for text in span.split("-")]
    if None in bounds or len(bounds) > 2:
        raise refuse("is not a value or a range")
    if not all(low <= bound <= high for bound in bounds):
        raise refuse(f"is not within {low}-{high}")
    if bounds[0] > bounds[-1]:
        raise refuse("ends before it begins")


def _value(text: str, low: int, names: tuple[str, ...]) -> int | None:
    if text.isascii() and text.isdigit():
        return int(text)
    return names.index(text.upper()) + low if text.upper() in names else None
