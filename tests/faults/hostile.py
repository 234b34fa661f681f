"""All that one client can write in a round, as Hypothesis strategies, and what of it may be accepted.

``decode`` shares no code with perfit's readers: it says which mask and values a client's objects decode to, if they
follow the plan.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
from blake3 import blake3
from hypothesis import strategies as st

from perfit.cluster_spec import ClusterSpec
from perfit.space import LoraSpace

Objects = dict[str, bytes]
"""What a client's keys hold, by key."""
MAX_RECORD_BYTES = 2**22
WIRE_DTYPES = {"F32": np.float32}
DTYPES = {
    **WIRE_DTYPES,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I8": np.int8,
    "U8": np.uint8,
    "F64": np.float64,
}


@dataclass(frozen=True)
class Client:
    """A client of a round.

    Args:
        spec: The federation file.
        name: The client's id.
        base: Hash of what the round starts from.
        space: The expanded space of N positions.
    """

    spec: ClusterSpec = field(repr=False)
    name: str
    base: str
    space: LoraSpace = field(repr=False)

    @property
    def rank(self) -> int:
        return self.spec.rank_of(self.spec.client(self.name))

    @property
    def budget(self) -> int:
        return self.space.budget(self.rank)

    @property
    def record_key(self) -> str:
        return f"rounds/1/updates/{self.name}.json"

    @property
    def update_key(self) -> str:
        return f"rounds/1/updates/{self.name}.safetensors"

    @property
    def mask_key(self) -> str:
        return f"masks/{self.name}/{self.record['mask_digest']}"

    @cached_property
    def record(self) -> dict[str, Any]:
        return json.loads(self.honest[self.record_key])

    @cached_property
    def honest(self) -> Objects:
        """Objects that follow the plan."""
        mask = np.zeros(self.space.size, bool)
        mask[: self.budget] = True
        return self.delivery(mask, np.linspace(-0.01, 0.01, self.budget, dtype=np.float32))

    def delivery(self, mask: np.ndarray, values: np.ndarray, suffix: str = "", **changes: Any) -> Objects:
        """Return the objects of an architecture and its values; the record is otherwise as told."""
        digest, count = mask_hash(self.space, mask), int(mask.sum())
        fields = {"federation": self.spec.name, "client": self.name, "base_model": self.spec.model, "round": 1}
        fields |= {"rank": self.rank, "expansion": self.spec.expansion, "budget": count, "mask_digest": digest}
        fields |= {"matrices": self.space.to_list(), "format_version": 3}
        update = tensors({"values": values}, fields | {"base_digest": self.base, "matrices": None})
        key = f"{self.update_key.removesuffix('.safetensors')}{suffix}.safetensors"
        record = {"client": self.name, "tier": "default", "rank": self.rank, "round": 1, "status": "trained"}
        record |= {"budget": count, "shared": count, "samples": 8, "held_out_records": 2, "mask_digest": digest}
        record |= {"skipped_records": 0, "truncated_records": 0, "bytes_up": 1, "bytes_down": 1, "losses": [2.5, 2.0]}
        record |= {"perplexity": {"round_0": 9.0, "before": 8.0, "after": 7.5}}
        record |= {"update": {"key": key, "digest": blake3(update).hexdigest()}, **changes}
        return {
            f"masks/{self.name}/{digest}": tensors({"mask": np.packbits(mask)}, fields),
            key: update,
            self.record_key: json.dumps(record).encode(),
        }

    def with_update(self, update: bytes) -> Objects:
        """Return the honest objects with another update, and a record that has its hash."""
        blob = {**self.record["update"], "digest": blake3(update).hexdigest()}
        record = json.dumps(self.record | {"update": blob}).encode()
        return self.honest | {self.update_key: update, self.record_key: record}


def mask_hash(space: LoraSpace, mask: np.ndarray) -> str:
    digest = blake3(json.dumps(space.to_list()).encode())
    digest.update(np.packbits(mask).tobytes())
    return digest.hexdigest()


def tensors(values: Mapping[str, np.ndarray], metadata: dict[str, Any]) -> bytes:
    """Return a file of tensors."""
    header, payload = {"__metadata__": {"perfit": json.dumps(metadata)}}, bytearray()
    for name, value in values.items():
        dtype = next(name for name, dtype in DTYPES.items() if value.dtype == dtype)
        offsets = [len(payload), len(payload) + value.nbytes]
        header[name] = {"dtype": dtype, "shape": value.shape, "data_offsets": offsets}
        payload += value.tobytes()
    return join(header, bytes(payload))


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a file of tensors, and what follows it."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def join(header: Any, payload: bytes, length: int | None = None) -> bytes:
    """Return the file of a header, which may claim another length, and what follows it."""
    text = json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


# What may be accepted


def decode(client: Client, objects: Mapping[str, bytes]) -> tuple[np.ndarray, np.ndarray, int] | None:
    """Return the mask, the values and the samples in objects that follow the plan; None if they do not."""
    try:
        record = _decoded_record(client, objects[client.record_key])
        mask = _decoded_mask(client, objects[f"masks/{client.name}/{record['mask_digest']}"], record["mask_digest"])
        update = objects[record["update"]["key"]]
        assert blake3(update).hexdigest() == record["update"]["digest"]
        return mask, _decoded_values(client, update, mask), record["samples"]
    except (AssertionError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return None


def _decoded_record(client: Client, data: bytes) -> dict[str, Any]:
    assert len(data) <= MAX_RECORD_BYTES
    record, honest = json.loads(data.decode(), parse_constant=float), client.record
    assert set(record) - {"status"} == set(honest) - {"status"}
    for name in ("client", "tier", "rank", "round", "status", "budget", "shared"):
        assert type(record[name]) is type(honest[name])
        assert record[name] == honest[name]
    counts = {"samples": (1, 10**9), "held_out_records": (1, 2**53), "skipped_records": (0, 2**53)}
    counts |= dict.fromkeys(["truncated_records", "bytes_up", "bytes_down"], (0, 2**53))
    for name, (least, most) in counts.items():
        assert type(record[name]) is int
        assert least <= record[name] <= most
    assert type(record["losses"]) is list
    assert 1 <= len(record["losses"]) <= 100_000
    assert set(record["perplexity"]) == {"round_0", "before", "after"}
    for number in [*record["losses"], *record["perplexity"].values()]:
        assert type(number) in (int, float)
        assert math.isfinite(float(number))
    assert all(number >= 1 for number in record["perplexity"].values())
    assert set(record["update"]) == {"key", "digest"}
    assert re.fullmatch(rf"rounds/1/updates/{client.name}(\.[0-9a-f]{{64}})?\.safetensors", record["update"]["key"])
    return record


def _decoded_mask(client: Client, data: bytes, digest: str) -> np.ndarray:
    header, payload = split(data)
    fields = _check_metadata(client, header, mask_digest=digest, base_digest="")
    matrices = [[str(name), int(rows), int(columns)] for name, rows, columns in fields["matrices"]]
    assert matrices == client.space.to_list()
    packed = _tensor(header, payload, "mask", {"U8": np.uint8})
    assert packed.shape == (-(-client.space.size // 8),)
    mask = np.unpackbits(packed)[: client.space.size].astype(bool)
    assert mask.sum() == client.budget
    assert mask_hash(client.space, mask) == digest
    return mask


def _decoded_values(client: Client, data: bytes, mask: np.ndarray) -> np.ndarray:
    header, payload = split(data)
    planned = {"mask_digest": mask_hash(client.space, mask), "base_digest": client.base, "round": 1}
    assert _check_metadata(client, header, **planned)["matrices"] is None
    assert set(header) == {"__metadata__", "values"}
    values = _tensor(header, payload, "values", WIRE_DTYPES)
    assert values.shape == (mask.sum(),)
    assert np.isfinite(values).all()
    return values


def _check_metadata(client: Client, header: dict, **planned: Any) -> dict[str, Any]:
    fields = {"base_digest": ""} | json.loads(header["__metadata__"]["perfit"])
    planned |= {"federation": client.spec.name, "client": client.name, "base_model": client.spec.model}
    planned |= {"rank": client.rank, "expansion": client.spec.expansion, "budget": client.budget, "format_version": 3}
    assert set(fields) == {*planned, "matrices", "round"}
    assert all(fields[name] == value for name, value in planned.items())
    return fields


def _tensor(header: dict, payload: bytes, name: str, dtypes: Mapping[str, Any]) -> np.ndarray:
    entry = header[name]
    start, end = entry["data_offsets"]
    assert 0 <= start <= end <= len(payload)
    return np.frombuffer(payload[start:end], dtypes[entry["dtype"]]).reshape(entry["shape"])


# What is tried

VALUES: list[Any] = [None, True, False, -1, 0, 0.5, 1e308, math.nan, math.inf, 2**63, 10**400]
VALUES += ["", "5", "../../x", "\x1b[31m", "\0", "\ud800", "x" * 5000, "trained", "failed", "0" * 64]
VALUES += [[], {}, [[[]]], {"a": {"b": 1}}, ["low"]]
TEXTS = [b"", b"{", b"null", b"[]", b"NaN", b"\xff\xfe", b"[" * 100_000, b" " * 5_000_000]
TEXTS += [b'{"status": "failed", "reason": "\\ud800"}', b'{"status": "trained", "status": "failed"}']
CROWDS = [b"0", b'""', b"[]", b"{}", b"1e9", b'"\xc3\xa9"', b'"0123456789abcdef0123456789"']
"""Values of which a record can have a million."""
ENTRIES: list[Any] = [None, 3, [], {}, "F32"]
ENTRIES += [
    {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}
    for dtype, shape, end in [("F32", [0, 2**62], 0), ("F99", [1], 4), ("F32", [2**40], 2**42), ("U8", [], 1)]
]
METADATA = ["", "null", "[]", '{"format_version": 3}', "[" * 50_000, f"[{'{},' * 20_000}0]"]
FLOATS = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45, -0.0, 1e30]
BOMB = gzip.compress(gzip.compress(bytes(2**26)) * 32)
"""Two gibibytes of zeros, compressed twice; gzip allows members in a row."""
OWN_KEY = {
    "x-amz-server-side-encryption-customer-algorithm": "AES256",
    "x-amz-server-side-encryption-customer-key": base64.b64encode(b"k" * 32).decode(),
    "x-amz-server-side-encryption-customer-key-md5": base64.b64encode(hashlib.md5(b"k" * 32).digest()).decode(),
}
"""Encryption under a key that the writer keeps."""
ENCODINGS = ["gzip", "gzip, gzip", "deflate", "zstd", "br", "nonsense"]
HEADERS: list[dict[str, str]] = [
    *({"Content-Encoding": encoding} for encoding in ENCODINGS),
    OWN_KEY,
    {f"x-amz-meta-{number}": "v" for number in range(150)},
    {"x-amz-meta-long": "v" * 70_000},
    {"Content-Type": "text/html", "Cache-Control": "no-store"},
]


@dataclass(frozen=True)
class Attack:
    """Objects, and the headers with which they are written through S3's own interface."""

    objects: Objects
    headers: dict[str, dict[str, str]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Attack({ {key: data[:200] for key, data in self.objects.items()} }, {str(self.headers)[:200]})"


def crowd(value: bytes, number: int = MAX_RECORD_BYTES) -> bytes:
    """Return a record of very many losses."""
    number = min(number, (MAX_RECORD_BYTES - 100) // (len(value) + 1))
    return b'{"status": "trained", "losses": [' + b",".join([value] * number) + b"]}"


def crowd_of_keys(number: int) -> bytes:
    """Return a record of very many keys."""
    keys = b",".join(b'"%x": 0' % key for key in range(number))
    return b'{"status": "trained", %b, "perplexity": {%b}}' % (keys, keys)


def _record(data: bytes) -> Callable[[Client], Attack]:
    return lambda client: Attack({client.record_key: data})


def _update(change: Callable[[bytes], bytes]) -> Callable[[Client], Attack]:
    return lambda client: Attack(client.with_update(change(client.honest[client.update_key])))


def _mask(change: Callable[[bytes], bytes]) -> Callable[[Client], Attack]:
    return lambda client: Attack(client.honest | {client.mask_key: change(client.honest[client.mask_key])})


def _bomb(key: str) -> Callable[[Client], Attack]:
    headers = {"Content-Encoding": "gzip, gzip"}
    return lambda client: Attack(client.honest | {getattr(client, key): BOMB}, {getattr(client, key): headers})


def _header_of_objects(data: bytes) -> bytes:
    header = b'{"a": [%b]}' % b",".join([b"{}"] * ((len(data) - 20) // 3))
    return len(header).to_bytes(8, "little") + header


def _metadata_of_objects(data: bytes) -> bytes:
    header, payload = split(data)
    return join(header | {"__metadata__": {"perfit": METADATA[-1]}}, payload)


WORST = {
    **{f"record: crowd of {value}": _record(crowd(value)) for value in CROWDS},
    **{f"record: 2^17 of {value}": _record(crowd(value, 2**17)) for value in CROWDS},
    "record: many keys": _record(crowd_of_keys(180_000)),
    "record: some keys": _record(crowd_of_keys(4_000)),
    "record: one string": _record(b'{"status": "trained", "client": "%b"}' % (b"\\u00e9" * 2**19)),
    "record: losses": _record(crowd(b"0.12345678901234567890123456789", 100_000)),
    **{
        f"{what}: {change.__name__.strip('_')}": write(change)
        for what, write in {"update": _update, "mask": _mask}.items()
        for change in (_header_of_objects, _metadata_of_objects)
    },
    "update: noise": _update(lambda data: np.random.default_rng(0).bytes(len(data))),
    "update: twice": _update(lambda data: data * 2),
    "mask: twice": _mask(lambda data: data * 2),
    **{f"bomb: {key}": _bomb(key) for key in ("record_key", "update_key", "mask_key")},
}
"""What takes the most memory to refuse."""


def attacks(client: Client) -> st.SearchStrategy[Attack]:
    """What a client can write as objects."""
    honest = client.honest
    records = st.one_of(
        _records(client),
        _statuses(client),
        _mangled(honest[client.record_key]),
        st.sampled_from(TEXTS),
        st.builds(crowd, st.sampled_from(CROWDS), st.sampled_from([100, 8_000, 130_000, MAX_RECORD_BYTES])),
        st.builds(crowd_of_keys, st.sampled_from([50, 2_000, 100_000])),
    )
    update, mask = honest[client.update_key], honest[client.mask_key]
    updates = _tensor_files(update) | _mangled(update) | st.just(mask)
    masks = _tensor_files(mask) | _mangled(mask) | st.just(update)
    return st.one_of(
        records.map(lambda data: honest | {client.record_key: data}),
        updates.map(client.with_update),
        updates.map(lambda data: honest | {client.update_key: data}),
        masks.map(lambda data: honest | {client.mask_key: data}),
        _deliveries(client),
    ).map(Attack)


@st.composite
def encoded_attacks(draw: Callable, client: Client) -> Attack:
    """What a client can write through S3's own interface."""
    objects = draw(attacks(client)).objects
    key, headers = draw(st.sampled_from(sorted(objects))), draw(st.sampled_from(HEADERS))
    data = objects[key]
    encoded = [data, data, gzip.compress(data), gzip.compress(gzip.compress(data)), BOMB]
    return Attack(objects | {key: draw(st.sampled_from(encoded))}, {key: headers})


_trees = st.recursive(
    st.sampled_from(VALUES) | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@st.composite
def _mangled(draw: Callable, data: bytes) -> bytes:
    """Bytes with a part cut off, taken out, exchanged, repeated or flipped."""
    start, end = sorted(draw(st.tuples(*[st.integers(0, len(data))] * 2)))
    noise = draw(st.binary(max_size=64))
    flipped = bytearray(data)
    for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
        flipped[place] ^= 1 << draw(st.integers(0, 7))
    others = [data[:end], data[:start] + noise + data[end:], data[:end] + noise + data[start:], bytes(flipped), noise]
    return draw(st.sampled_from(others))


@st.composite
def _records(draw: Callable, client: Client) -> bytes:
    """A record with other values or keys."""
    record = json.loads(client.honest[client.record_key])
    for _ in range(draw(st.integers(1, 3))):
        holder = draw(st.sampled_from([tree for tree in (record, *record.values()) if isinstance(tree, dict)]))
        key = draw(st.sampled_from([*holder, "note"]))
        if draw(st.booleans()):
            holder[key] = draw(_trees)
        else:
            holder.pop(key, None)
    return json.dumps(record).encode()


@st.composite
def _statuses(draw: Callable, client: Client) -> bytes:
    """What a client can say that did not deliver."""
    status = {key: client.record[key] for key in ("client", "tier", "rank", "round")}
    status["status"] = draw(st.sampled_from(["failed", "missing", "refused", "trained", "lost"]))
    status["reason"] = draw(st.text(max_size=50) | st.sampled_from(["<script>", "\u202e", "x" * 2000, "[{:," * 500]))
    return json.dumps(status).encode()


@st.composite
def _tensor_files(draw: Callable, data: bytes) -> bytes:
    """A file of tensors with other parts."""
    header, payload = split(data)
    names, length = [name for name in header if name != "__metadata__"], None
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names))
        match draw(st.integers(0, 7)):
            case 0:
                header[draw(st.sampled_from([name, "surplus", "values/"]))] = draw(st.sampled_from(ENTRIES))
            case 1:
                header.pop(name, None)
            case 2:
                header["__metadata__"] = {"perfit": draw(st.sampled_from(METADATA))}
            case 3:
                header["__metadata__"] = {"perfit": json.dumps(draw(_other_fields(data)))}
            case 4:
                key = draw(st.sampled_from(["dtype", "shape", "data_offsets", "x"]))
                entry = header[name] if isinstance(header.get(name), dict) else {}
                header[name] = {**entry, key: draw(_trees | st.sampled_from(list(DTYPES)))}
            case 5:
                values = np.frombuffer(payload[: len(payload) // 4 * 4], np.float32).copy()
                values[draw(st.integers(0, values.size)) :][:1] = draw(st.sampled_from(FLOATS))
                payload = values.tobytes()
            case 6:
                length = draw(st.sampled_from([0, 1, 2**20, 2**62, 2**64 - 1]))
            case 7:
                payload = draw(_mangled(payload + b"x"))
    return join(header, payload, length)


@st.composite
def _other_fields(draw: Callable, data: bytes) -> Any:
    fields = json.loads(split(data)[0]["__metadata__"]["perfit"])
    key = draw(st.sampled_from([*fields, "note"]))
    match draw(st.integers(0, 2)):
        case 0:
            fields[key] = draw(_trees)
        case 1:
            fields.pop(key, None)
        case 2 if fields["matrices"] is None:
            fields["matrices"] = draw(st.sampled_from([[], [["q.lora_A.weight", 2, 3], ["q.lora_B.weight", 5, 2]]]))
        case 2:
            matrix = draw(st.sampled_from(fields["matrices"]))
            matrix[draw(st.integers(0, 2))] = draw(st.sampled_from([0, -1, 2**40, 10**300, "4", None, 4.0]))
    return fields


@st.composite
def _deliveries(draw: Callable, client: Client) -> Objects:
    """Another architecture of about the client's budget, and values that fit: often to be accepted."""
    chance = np.random.default_rng(draw(st.integers(0, 2**32)))
    mask = np.zeros(client.space.size, bool)
    mask[chance.permutation(mask.size)[: client.budget + draw(st.sampled_from([0, 0, 0, 0, -1, 1]))]] = True
    scale, dtype = draw(st.sampled_from([0, 1e-3, 1, 1e30, np.nan])), draw(st.sampled_from(list(DTYPES.values())))
    with np.errstate(over="ignore", invalid="ignore"):
        values = (scale * chance.normal(size=mask.sum())).astype(dtype)
    perplexity = dict.fromkeys(["round_0", "before", "after"], draw(st.floats(1, 1.7e308)))
    return client.delivery(
        mask,
        values,
        suffix=draw(st.sampled_from(["", f".{'0' * 64}", ".x"])),
        samples=draw(st.integers(1, 10**9)),
        losses=draw(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5)),
        perplexity=perplexity,
    )
