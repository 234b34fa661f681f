"""The head of a federation: the last committed round, and the objects that the next round starts from."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from perfit_storage.errors import CorruptObject, StoreError

HEAD_FORMAT = 2
"""Format of head.json and of the objects that it names; perfit 0.1 wrote no format."""


@dataclass(frozen=True)
class Blob:
    """An object that is never overwritten.

    Attributes:
        key: Its key, relative to the federation's directory.
        sha256: SHA-256 of its bytes, in hexadecimal.
    """

    key: str
    sha256: str


@dataclass(frozen=True)
class Head:
    """The state of a federation.

    Attributes:
        round: The last committed round; 0 before the first.
        adapter: The vectors that clients read.
        state: The server's own vectors, None if the method has none.
        summary: The round's summary, None before the first round. It names what the round started from, and with it
            the summary of the round before.
    """

    round: int
    adapter: Blob
    state: Blob | None = None
    summary: Blob | None = None


def dump_head(head: Head) -> bytes:
    """Returns the text of a head. A head has exactly one text, so that a step that runs twice writes the same bytes."""
    return (json.dumps({"format": HEAD_FORMAT, **asdict(head)}, sort_keys=True, indent=1) + "\n").encode()


def parse_head(where: str, data: bytes) -> Head:
    """Returns the head in a text; errors call it ``where``. Raises ``StoreError``."""
    try:
        fields = json.loads(data)
        if "format" not in fields and {"round", "key", "sha256"} <= set(fields):
            raise StoreError(
                f"{where} belongs to a federation created by perfit 0.1, whose files this version cannot read",
                "give the federation another name to start again, or continue with perfit 0.1; its adapters are PEFT "
                "directories under clients/<id>/adapter and load without perfit",
            )
        if fields.pop("format") != HEAD_FORMAT:
            raise StoreError(f"{where} was written by a later version of perfit", "upgrade perfit")
        round, adapter = fields.pop("round"), fields.pop("adapter")
        state, summary = fields.pop("state"), fields.pop("summary")
        if fields or type(round) is not int or round < 0:
            raise ValueError(f"round {round!r}, surplus keys {sorted(fields)}")
        return Head(round, Blob(**adapter), state and Blob(**state), summary and Blob(**summary))
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptObject(f"{where} is not a head: {error}", "restore it from a backup") from error
