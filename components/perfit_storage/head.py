"""The head of a federation: the last committed round, and the objects that the next round starts from."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple, dataclass, replace
from itertools import pairwise

from perfit_storage.errors import CorruptObject, StoreError

HEAD_FORMAT = 3
"""Format of head.json and of the objects that it names; perfit 0.1 wrote none, 2 had SHA-256 in place of BLAKE3."""


@dataclass(frozen=True)
class Blob:
    """An object that is never overwritten.

    Attributes:
        key: Its key, relative to the federation's directory.
        digest: BLAKE3 of its bytes, in hexadecimal.
    """

    key: str
    digest: str


@dataclass(frozen=True)
class Branch:
    """The rounds that are run after a rollback; those before the first one are branch 0.

    Attributes:
        number: From 1: every rollback of a federation opens the next branch.
        first_round: The round after the one that the head was moved back to.
    """

    number: int
    first_round: int


@dataclass(frozen=True)
class RoundPlace:
    """Where a round's files are: in ``rounds/<number>/``, or on a later branch in ``rounds/<number>.<branch>/``."""

    number: int
    branch: int = 0

    def __str__(self) -> str:
        return f"{self.number}.{self.branch}" if self.branch else f"{self.number}"


@dataclass(frozen=True)
class Head:
    """The state of a federation.

    Attributes:
        round: The last committed round; 0 before the first.
        adapter: The vectors that clients read.
        state: The server's own vectors, None if the method has none.
        summary: The round's summary, None before the first round. It names what the round started from, and with it
            the summary of the round before.
        branches: On which branch a round is, committed or next: the last one that begins at or before it. Numbers and
            first rounds increase, and the last number is that of the last rollback.
    """

    round: int
    adapter: Blob
    state: Blob | None = None
    summary: Blob | None = None
    branches: tuple[Branch, ...] = ()

    def place(self, round: int) -> RoundPlace:
        """Returns where the files of a round are, committed or next."""
        return RoundPlace(round, max((b.number for b in self.branches if b.first_round <= round), default=0))

    def rolled_back_to(self, earlier: Head) -> Head:
        """Returns the head that replaces this one in a rollback to an earlier round's head: on the next branch."""
        kept = tuple(branch for branch in self.branches if branch.first_round <= earlier.round)
        number = self.branches[-1].number + 1 if self.branches else 1
        return replace(earlier, branches=(*kept, Branch(number, earlier.round + 1)))


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
            raise StoreError(
                f"{where} was written by another version of perfit, whose files this version cannot read",
                "use that version, or give the federation another name in its file to start again",
            )
        round, adapter = fields.pop("round"), fields.pop("adapter")
        state, summary = fields.pop("state"), fields.pop("summary")
        branches = tuple(Branch(**branch) for branch in fields.pop("branches"))
        if fields or type(round) is not int or round < 0 or not _in_order(branches):
            raise ValueError(f"round {round!r}, branches {branches}, surplus keys {sorted(fields)}")
        return Head(round, Blob(**adapter), state and Blob(**state), summary and Blob(**summary), branches)
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptObject(f"{where} is not a head: {error}", "restore it from a backup") from error


def _in_order(branches: tuple[Branch, ...]) -> bool:
    pairs = [(0, 0), *map(astuple, branches)]
    whole = all(type(number) is int for pair in pairs for number in pair)
    return whole and all(a < c and b < d for (a, b), (c, d) in pairwise(pairs))
