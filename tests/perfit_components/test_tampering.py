"""Tampered updates are refused, reported in the summary, and left out of the mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
from blake3 import blake3

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterFile, AdapterHeader, dump_mask, dump_transfer
from perfit.aggregation import aggregate
from perfit.exchange import Packed, Transfer
from perfit.space import LoraSpace
from perfit_components.steps.aggregate import close_round
from perfit_components.steps.commit import commit_round
from perfit_components.steps.context import FederationContext
from perfit_storage import FederationStore, StoreUnreachable

from .running import Site, files
from .test_aggregate import committed, update_of, values_of


class Eve:
    """What a client, eve unless another is named, left in round 1, and how she may change it."""

    def __init__(self, site: Site, name: str = "eve"):
        self.root, self.spec = site.root, site.spec
        self.key = f"rounds/1/updates/{name}.safetensors"
        self.record_path = self.root / f"rounds/1/updates/{name}.json"
        self.update_path = self.root / self.key
        self.record: dict[str, Any] = json.loads(self.record_path.read_text())
        self.space, self.mask = site.mask_file(name).space, site.mask_file(name).mask
        file = AdapterFile.parse(self.update_path.read_bytes())
        self.header, self.values = file.header, file.vectors(self.mask, ["values"])["values"]

    def says(self, **fields: Any) -> None:
        """Write another record."""
        self.record_path.write_text(json.dumps(self.record | fields))

    def sends(self, header: AdapterHeader, values: np.ndarray, **fields: Any) -> None:
        """Write a whole update of other content, with a record that fits its bytes."""
        self.sends_bytes(dump_transfer(header, self.mask, Transfer(self.mask, {"values": Packed(values)})), **fields)

    def sends_bytes(self, data: bytes, **fields: Any) -> None:
        self.update_path.write_bytes(data)
        blob = {"key": self.key, "digest": blake3(data).hexdigest()}
        self.says(update=blob, **fields)

    def names(self, key: str | None) -> None:
        """Write a record that names another object as its update."""
        self.says(update=key if key is None else {**self.record["update"], "key": key})

    def adopts(self, mask: np.ndarray, values: np.ndarray) -> None:
        """Write another mask, and an update and a record that fit it."""
        self.mask, digest, count = mask, mask_hash(self.space, mask), int(np.count_nonzero(mask))
        header = replace(self.header, budget=count, mask_digest=digest)
        (self.root / f"masks/eve/{digest}").write_bytes(dump_mask(header, self.space, mask))
        self.sends(header, values, mask_digest=digest, budget=count, shared=count)


def flip_a_byte(eve: Eve) -> None:
    data = bytearray(eve.update_path.read_bytes())
    data[-1] ^= 1
    eve.update_path.write_bytes(data)


def cut_off(eve: Eve) -> None:
    eve.update_path.write_bytes(eve.update_path.read_bytes()[:-4])


def no_update(eve: Eve) -> None:
    eve.update_path.unlink()


def other_bytes(eve: Eve) -> None:
    eve.sends_bytes(b"not an adapter")


def other_header(**fields: Any) -> Callable[[Eve], None]:
    return lambda eve: eve.sends(replace(eve.header, **fields), eve.values)


def one_value(value: float) -> Callable[[Eve], None]:
    def tamper(eve: Eve) -> None:
        values = eve.values.copy()
        values[7] = value
        eve.sends(eve.header, values)

    return tamper


def update_of_bob(eve: Eve) -> None:
    eve.sends_bytes((eve.root / "rounds/1/updates/bob.safetensors").read_bytes())


def record_of_bob(eve: Eve) -> None:
    shutil.copy(eve.root / "rounds/1/updates/bob.json", eve.record_path)


def architecture_of_bob(eve: Eve) -> None:
    """Bob's mask, which is of a smaller budget, and an update that fits it."""
    bob = json.loads((eve.root / "rounds/1/updates/bob.json").read_text())
    mask = AdapterFile.parse((eve.root / f"masks/bob/{bob['mask_digest']}").read_bytes()).mask
    eve.adopts(mask, eve.values[: np.count_nonzero(mask)])


def all_positions(eve: Eve) -> None:
    """A mask above the budget, and an update that fits it."""
    eve.adopts(np.ones(eve.space.size, dtype=bool), np.zeros(eve.space.size, dtype=np.float32))


def another_space(eve: Eve) -> None:
    a, b = eve.space.matrices[:2]
    eve.space = LoraSpace(eve.space.rank, (a, b))
    mask = eve.space.plain_mask(2)
    eve.adopts(mask, np.zeros(np.count_nonzero(mask), dtype=np.float32))


def surplus_tensor(eve: Eve) -> None:
    """A second vector beside the values, which the method does not have."""
    vectors = dict.fromkeys(("values", "control"), Packed(eve.values))
    eve.sends_bytes(dump_transfer(eve.header, eve.mask, Transfer(eve.mask, vectors)))


def without(key: str) -> Callable[[Eve], None]:
    def tamper(eve: Eve) -> None:
        del eve.record[key]
        eve.says()

    return tamper


def text(content: str) -> Callable[[Eve], None]:
    return lambda eve: eve.record_path.write_text(content)


def names(key: str | None) -> Callable[[Eve], None]:
    return lambda eve: eve.names(key)


def says(**fields: Any) -> Callable[[Eve], None]:
    return lambda eve: eve.says(**fields)


CASES = {
    "flipped byte": (flip_a_byte, "but its record says"),
    "cut off": (cut_off, "but its record says"),
    "no update": (no_update, "there is no"),
    "not an adapter": (other_bytes, "not an adapter file"),
    "other round": (other_header(round=2), "its update says round 2, the plan 1"),
    "other client": (other_header(client="ann"), "its update says client 'ann', the plan 'eve'"),
    "other federation": (other_header(federation="big"), "its update says federation 'big', the plan 'tiny'"),
    "other model": (other_header(base_model="some/model"), "its update says base_model 'some/model', the plan"),
    "other rank": (other_header(rank=1), "its update says rank 1, the plan 2"),
    "other expansion": (other_header(expansion=4), "its update says expansion 4, the plan 2"),
    "nan": (one_value(np.nan), "values are not finite"),
    "infinite": (one_value(np.inf), "values are not finite"),
    "huge": (one_value(-1.1e6), "its values reach 1.1e+06, more than 1e+06: no LoRA does"),
    "surplus tensor": (surplus_tensor, "it holds 1 tensors besides values"),
    "bob's update": (update_of_bob, "its update says client 'bob', the plan 'eve'"),
    "bob's record": (record_of_bob, "its record says client 'bob', the plan 'eve'"),
    "below the budget": (architecture_of_bob, "its mask says budget 224, the plan 448"),
    "above the budget": (all_positions, "its mask says budget 896, the plan 448"),
    "other shapes": (another_space, "its mask belongs to another space"),
    "unknown mask": (says(mask_digest="0" * 64), "run the search of client 'eve' again"),
    "mask that is a path": (says(mask_digest="../" * 21 + "x"), "trained.mask_digest: String should match"),
    "mask that is null": (says(mask_digest=None), "trained.mask_digest: Input should be a valid string"),
    "no samples": (says(samples=0), "trained.samples: Input should be greater than or equal to 1"),
    "negative samples": (says(samples=-3), "trained.samples: Input should be greater than or equal to 1"),
    "samples beyond all bounds": (says(samples=10**400), "trained.samples: Input should be less than or equal to"),
    "samples that outweigh all": (says(samples=10**308), "trained.samples: Input should be less than or equal to"),
    "loss as text": (says(losses=["low"]), "trained.losses.0: Input should be a valid number"),
    "losses beyond a float": (text('{"status": "trained", "losses": [1e999]}'), "trained."),
    "bytes as text": (says(bytes_up="5"), "trained.bytes_up: Input should be a valid integer"),
    "unknown key": (says(note="hello"), "trained.note: Extra inputs are not permitted"),
    "no perplexity": (without("perplexity"), "trained.perplexity: Field required"),
    "record of bob's words": (says(client="bob"), "its record"),
    "record of another round": (says(round=2), "its record"),
    "record of another rank": (says(rank=1), "its record"),
    "record of another budget": (says(budget=1), "its record says budget 1, the plan and its mask 448"),
    "record that shares less": (says(shared=1), "its record says shared 1, the plan and its mask 448"),
    "record of another tier": (says(tier="gpu"), "its record"),
    "key above the federation": (names("../big/rounds/1/updates/eve.safetensors"), "its record names"),
    "key of the client's own part": (names("clients/eve/adapter/adapter_model.safetensors"), "its record names"),
    "key of bob's update": (names("rounds/1/updates/bob.safetensors"), "its record names"),
    "key with an empty segment": (names("rounds/1/updates/eve.//x.safetensors"), "its record names"),
    "key with a control character": (names("rounds/1/updates/eve.\u0000.safetensors"), "its record names"),
    "empty key": (names(""), "its record names"),
    "no update named": (names(None), "its record names"),
    "no JSON": (text("{"), "Invalid JSON"),
    "nested without end": (text("[" * 100_000), "more values than any record"),
    "a lone surrogate": (text('{"status": "failed", "reason": "\\ud800"}'), "Invalid JSON"),
    "no UTF-8": (lambda eve: eve.record_path.write_bytes(b'{"a": "\xff"}'), "Invalid JSON"),
    "too large": (text('{"reason": "' + "x" * 2**22 + '"}'), "it has more than 4,194,304 bytes"),
    "no object": (text("[]"), "Input should be"),
    "no record": (text("{}"), "Unable to extract tag"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tampered_update_is_refused_named_and_left_out(trained, case):
    tamper, reason = CASES[case]
    tamper(Eve(trained))
    others = [record.client for record in trained.aggregate(1).trained]
    outcome = trained.summary(1).clients[2]
    assert (outcome.client, outcome.rank, outcome.tier) == ("eve", 2, "default")
    assert outcome.status == "refused"
    assert reason in outcome.reason
    assert others == ["ann", "bob"]
    start = values_of(files(trained.root)["rounds/0/global.safetensors"])
    mean = aggregate(start, [update_of(trained, client) for client in ("ann", "bob")], min_holders=2)
    assert (committed(trained) == mean).all()


@pytest.mark.parametrize("method", ["fedit", "local"])
def test_a_record_of_another_round_or_client_is_refused_where_all_masks_are_alike(make_site, method):
    site = make_site(method={"name": method}, clients={"ann": {}, "bob": {}}, rounds=2).prepare()
    site.run_round(1)
    site.train(2)
    updates = site.root / "rounds/2/updates"
    for number, source in enumerate([site.root / "rounds/1/updates/bob.json", updates / "ann.json"]):
        copy = Site(site.spec, (site.root.parents[2] / f"copy-{number}").as_uri())
        shutil.copytree(site.root, copy.root)
        shutil.copy(source, copy.root / "rounds/2/updates/bob.json")
        outcome = copy.aggregate(2).clients[1]
        assert (outcome.client, outcome.status) == ("bob", "refused")


def test_an_update_tuned_from_another_base_is_refused(make_site):
    site = make_site(clients={"ann": {}, "bob": {}}).prepare()
    site.train(1)
    eve = Eve(site, "bob")
    eve.sends(replace(eve.header, base_digest="0" * 64), eve.values)
    outcome = site.aggregate(1).clients[1]
    assert (outcome.client, outcome.status) == ("bob", "refused")
    assert "its update says base_digest" in outcome.reason


# Values that are well formed and harmful


def committed_by(site: Site, *clients: str) -> np.ndarray:
    """The global values if these clients alone had counted."""
    start = values_of(files(site.root)["rounds/0/global.safetensors"])
    return aggregate(start, [update_of(site, client) for client in clients], min_holders=2)


def test_values_out_of_all_proportion_are_cut_and_named(trained, capsys):
    eve = Eve(trained)
    eve.sends(eve.header, np.full_like(eve.values, 1e6))
    close_round(trained.uri, 1)
    (limited,) = trained.summary(1).limited
    assert (limited.client, limited.weight, limited.samples) == ("eve", eve.record["samples"], eve.record["samples"])
    assert 0 < limited.factors["values"] < 1e-4
    log = capsys.readouterr().out
    assert "eve counts as" in log
    assert "the update of eve by 1e+06" in log
    assert max(trained.summary(1).changes.values()) == trained.summary(1).changes["eve"] == pytest.approx(1e6, rel=1e-3)
    start, honest = values_of(files(trained.root)["rounds/0/global.safetensors"]), committed_by(trained, "ann", "bob")
    assert np.abs(committed(trained) - start).max() < 10 * np.abs(honest - start).max()


def test_a_client_that_claims_all_samples_has_half_the_weight(trained):
    Eve(trained).says(samples=10**9)
    summary = trained.aggregate(1)
    samples = {record.client: record.samples for record in summary.trained}
    (limited,) = summary.limited
    assert (limited.client, limited.weight, limited.factors) == ("eve", samples["ann"] + samples["bob"], {})
    honest = update_of(trained, "eve")
    updates = [*(update_of(trained, client) for client in ("ann", "bob")), replace(honest, samples=limited.weight)]
    start = values_of(files(trained.root)["rounds/0/global.safetensors"])
    assert (committed(trained) == aggregate(start, updates, min_holders=2)).all()


def test_honest_updates_are_averaged_in_one_pass_as_they_are(trained):
    assert trained.aggregate(1).limited == ()
    assert (committed(trained) == committed_by(trained, "ann", "bob", "eve")).all()


class Watched(FederationStore):
    """A store that notes how updates are read."""

    how: ClassVar[list[str]] = []

    def note(self, way, blob):
        self.how += [(way, blob.key)] if "updates" in blob.key else []

    def read_blob(self, blob):
        self.note("read", blob)
        return super().read_blob(blob)

    def copy_blob(self, blob, write, limit):
        self.note("copied", blob)
        return super().copy_blob(blob, write, limit)

    def stream_blob(self, blob, limit):
        self.note("streamed", blob)
        return super().stream_blob(blob, limit)


@pytest.mark.parametrize(("scale", "ways"), [(1, ["streamed"]), (1e6, ["streamed", "copied"])])
def test_an_update_is_read_once_or_once_more_if_one_is_limited(trained, monkeypatch, scale, ways):
    eve = Eve(trained)
    eve.sends(eve.header, scale * eve.values)
    monkeypatch.setattr(Watched, "how", [])
    context = FederationContext(Watched.open(trained.store_uri, trained.spec.name), trained.spec)
    assert bool(commit_round(context, 1).limited) == (len(ways) > 1)
    assert [way for way, _ in Watched.how] == [way for way in ways for _ in range(3)]
    updates = [f"rounds/1/updates/{client}.safetensors" for client in ("ann", "bob", "eve")]
    assert sorted(Watched.how) == sorted((way, key) for way in ways for key in updates)


def test_values_that_change_while_they_are_read_do_not_count(trained):
    eve = Eve(trained)
    honest = eve.update_path.read_bytes()

    class Changing(FederationStore):
        """A store in which eve's values are others than at any other time while they are read side by side."""

        @contextmanager
        def stream_blob(self, blob, limit):
            if blob.key == eve.key:
                eve.update_path.write_bytes(honest[:-4] + np.float32(0.001).tobytes())
            try:
                with super().stream_blob(blob, limit) as stream:
                    yield stream
            finally:
                eve.update_path.write_bytes(honest)

    context = FederationContext(Changing.open(trained.store_uri, trained.spec.name), trained.spec)
    assert [record.client for record in commit_round(context, 1).trained] == ["ann", "bob", "eve"]
    assert (committed(trained) == committed_by(trained, "ann", "bob", "eve")).all()


def test_an_answer_that_breaks_off_is_no_clients_fault(trained):
    class Breaking(FederationStore):
        """A store that goes away while an update is read beside others."""

        @contextmanager
        def stream_blob(self, blob, limit):
            with super().stream_blob(blob, limit) as stream:
                yield stream
                raise StoreUnreachable("it broke off", "wait")

    context = FederationContext(Breaking.open(trained.store_uri, trained.spec.name), trained.spec)
    assert len(commit_round(context, 1).trained) == 3
    assert (committed(trained) == committed_by(trained, "ann", "bob", "eve")).all()


@pytest.mark.parametrize("mask", [None, b"", b"not an adapter", b"\0" * 2**20], ids=["gone", "empty", "other", "large"])
def test_a_mask_that_changes_once_it_counted_is_left_out_of_the_report(trained, mask):
    full = close_round(trained.uri, 1).report.html
    path = next((trained.root / "masks/eve").iterdir())
    path.unlink()
    if mask is not None:
        path.write_bytes(mask)
    assert "eve" in close_round(trained.uri, 1).report.html != full
