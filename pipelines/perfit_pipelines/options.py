"""Options and consoles that the commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

INTERRUPTED = 130
"""Exit code after Ctrl-C."""

out = Console(highlight=False, soft_wrap=True, emoji=False)
errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

File = Annotated[Path, typer.Argument(help="Federation file (YAML).", show_default=False)]

Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Another value than the file's, such as training.steps=5; may be repeated."
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def checked_store(uri: str | None) -> str | None:
    """Return the value of an option that is a store's URI, which must hold no credentials."""
    from perfit.locations import check_store_uri

    return uri and check_store_uri(uri)


PodStore = Annotated[
    str | None, typer.Option(help="s3://bucket/prefix that the pods use; else the file's.", callback=checked_store)
]
ClientImage = Annotated[str | None, typer.Option(help="Image of the clients' tasks.")]
ServerImage = Annotated[str | None, typer.Option(help="Image of the server's tasks.")]


class Pipeline(StrEnum):
    """The pipelines that can be compiled and submitted."""

    TUNING = "federated_tuning"
    ROUND = "federated_round"


PipelineOption = Annotated[Pipeline, typer.Option(help="All rounds, or one round from the head.")]
