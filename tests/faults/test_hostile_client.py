"""Whatever one client writes, the others' round is committed: random malformed records, updates and masks.

CI tries a few hundred; longer, with other cases each time: ``PERFIT_FUZZ_CASES=20000 PERFIT_FUZZ_SEED=$RANDOM``.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tracemalloc
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from perfit.protocol import ClientStatus
from perfit_components.steps.commit import commit_round
from perfit_components.steps.contribution import Contribution, read_contribution
from perfit_storage import RoundPlace

from ..perfit_components.running import THREE, Site, files

CASES = int(os.environ.get("PERFIT_FUZZ_CASES", "600"))
SEED = int(os.environ.get("PERFIT_FUZZ_SEED", "0"))
VALUES: list[Any] = [
    None,
    True,
    False,
    -1,
    0,
    2**63,
    10**400,
    1e308,
    0.5,
    "",
    "5",
    "../../x",
    "\x1b[31m",
    "\u0000",
    "x" * 5000,
]
VALUES += [[], {}, [[[]]], {"a": {"b": 1}}, ["low"], "trained", "failed", "0" * 64]
TEXTS = [b"", b"{", b"null", b"[]", b"NaN", b"\xff\xfe", b"[" * 100_000, b" " * 5_000_000]
TEXTS += [b'{"status": "failed", "reason": "\\ud800"}']
HEADERS: list[Any] = [None, 3, [], {}, "F32"]
HEADERS += [
    {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    for dtype, shape, end in [("F32", [0, 2**62], 0), ("F99", [1], 4), ("F32", [2**40], 2**42)]
]
METADATA = ["", "null", "[]", '{"format_version": 2}', "[" * 50_000]


class Eve:
    """A client that may write its record, its update and its mask as it likes."""

    def __init__(self, site: Site):
        self.site, self.random = site, random.Random(SEED)
        self.paths = {
            "record": site.root / "rounds/1/updates/eve.json",
            "update": site.root / "rounds/1/updates/eve.safetensors",
            "mask": next((site.root / "masks/eve").iterdir()),
        }
        self.honest = {name: path.read_bytes() for name, path in self.paths.items()}

    def restore(self) -> None:
        for name, path in self.paths.items():
            path.write_bytes(self.honest[name])

    def write_record(self, tree: Any) -> None:
        self.paths["record"].write_text(json.dumps(tree))

    def write_update(self, data: bytes) -> None:
        """Write an update, and a record that has its hash."""
        self.paths["update"].write_bytes(data)
        record = json.loads(self.honest["record"])
        record["update"]["sha256"] = hashlib.sha256(data).hexdigest()
        self.write_record(record)

    def mangled(self, data: bytes) -> bytes:
        """A file with a part cut off, exchanged, repeated or flipped."""
        start, end = sorted(self.random.randrange(len(data) + 1) for _ in range(2))
        noise = self.random.randbytes(self.random.randrange(1, 64))
        flipped = bytearray(data)
        for _ in range(self.random.randrange(1, 8)):
            flipped[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
        return self.random.choice(
            [data[:end], data[:start] + data[end:], data[:start] + noise + data[start:], bytes(flipped), noise]
        )


def other_value(eve: Eve) -> None:
    record = json.loads(eve.honest["record"])
    holder = eve.random.choice([record, record["perplexity"], record["update"]])
    holder[eve.random.choice([*holder, "note"])] = eve.random.choice(VALUES)
    eve.write_record(record)


def missing_key(eve: Eve) -> None:
    record = json.loads(eve.honest["record"])
    holder = eve.random.choice([record, record["perplexity"], record["update"]])
    del holder[eve.random.choice(list(holder))]
    eve.write_record(record)


def other_text(eve: Eve) -> None:
    eve.paths["record"].write_bytes(eve.random.choice(TEXTS))


def mangled_record(eve: Eve) -> None:
    eve.paths["record"].write_bytes(eve.mangled(eve.honest["record"]))


def mangled_update(eve: Eve) -> None:
    eve.write_update(eve.mangled(eve.honest["update"]))


def other_header(eve: Eve) -> None:
    data = eve.honest["update"]
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    key = eve.random.choice([*header, "surplus"])
    header[key] = eve.random.choice(HEADERS)
    if eve.random.random() < 0.3:
        header["__metadata__"] = {
            "perfit": eve.random.choice(["", "null", "[]", '{"format_version": 2}', "[" * 50_000])
        }
    text = json.dumps(header).encode()
    size = eve.random.choice([len(text), len(text), 2**62, 0])
    eve.write_update(size.to_bytes(8, "little") + text + data[8 + length :])


def mangled_mask(eve: Eve) -> None:
    eve.paths["mask"].write_bytes(eve.mangled(eve.honest["mask"]))


MUTATIONS: list[Callable[[Eve], None]] = [
    other_value,
    missing_key,
    other_text,
    mangled_record,
    mangled_update,
    other_header,
    mangled_mask,
]


def is_sound(contribution: Contribution, eve: Eve) -> bool:
    """Whether what was accepted is well formed: finite values at exactly the positions of the honest mask."""
    vectors = contribution.update.vectors
    honest = eve.site.mask_file("eve").mask
    return (
        set(vectors) == {"values"}
        and bool(np.isfinite(vectors["values"]).all())
        and bool((contribution.update.positions == honest).all())
        and 1 <= contribution.record.samples <= 10**9
    )


@pytest.fixture
def site(make_site) -> Site:
    site = make_site(**THREE).prepare()
    assert [status["status"] for status in site.train(1)] == ["trained"] * 3
    return site


def peak(action: Callable[[], Any]) -> int:
    """The most memory, in bytes, that an action allocates through Python and numpy."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_random_objects_of_one_client_are_refused_or_sound(site):
    eve, context, counts, peaks = Eve(site), site.context, Counter(), []
    plan = context.plan(RoundPlace(1))
    space, participant = context.downloads(plan.base).space, plan.participants[2]
    assert participant.client == "eve"

    def read() -> Contribution | ClientStatus:
        return read_contribution(context, plan, participant, space)

    honest = peak(read)
    for number in range(CASES):
        mutation = eve.random.choice(MUTATIONS)
        mutation(eve)
        results = []
        peaks.append(peak(lambda: results.append(read())))  # noqa: B023
        changed = any(path.read_bytes() != eve.honest[name] for name, path in eve.paths.items())
        if isinstance(results[0], Contribution):
            counts["accepted" if changed else "unchanged"] += 1
            assert is_sound(results[0], eve), (number, mutation.__name__)
        else:
            counts[results[0].status] += 1
            assert len(results[0].to_json()) < 20_000
        eve.restore()
    print(f"{CASES} cases: {dict(counts)}; peak {max(peaks) / 2**20:.1f} MiB, honest {honest / 2**20:.1f} MiB")
    assert counts["refused"] > CASES / 2
    assert max(peaks) < 2 * honest + 2**24, "a record is 4 MiB at most, an update and a mask what the space allows"


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.__name__)
def test_the_round_is_committed_without_it(site, tmp_path, mutation):
    for number in range(3):
        copy = Site(site.spec, (tmp_path / f"copy-{number}").as_uri())
        shutil.copytree(site.root, copy.root)
        eve = Eve(copy)
        eve.random.seed(SEED + number)
        mutation(eve)
        summary = commit_round(copy.context, 1)
        assert [record.client for record in summary.trained][:2] == ["ann", "bob"]
        assert copy.store.read_head().round == 1
        assert commit_round(copy.context, 1) == summary
        assert "rounds/1/summary.json" in files(copy.root)
