"""The aggregator: what counts, what does not, and that a round is committed once or not at all."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from perfit.adapter_file import AdapterFile
from perfit.aggregation import Aggregation
from perfit.aggregation import aggregate as mean
from perfit.errors import PerfitError
from perfit.protocol import ClientStatus, parse_outcome
from perfit.spec import Participation
from perfit.updates import Update
from perfit_components.steps.aggregate import close_round
from perfit_components.steps.commit import commit_round
from perfit_components.steps.context import FederationContext
from perfit_storage import CorruptObject, ObjectNotFound

from .running import THREE, Site, files, interrupted


def update_of(site: Site, client: str) -> Update:
    """What a client shared in round 1."""
    stored = files(site.root)
    record = json.loads(stored[f"rounds/1/updates/{client}.json"])
    mask = site.mask_file(client).mask
    vectors = AdapterFile.parse(stored[f"rounds/1/updates/{client}.safetensors"]).vectors(mask, ["values"])
    return Update.at(mask, vectors, record["samples"])


def values_of(data: bytes) -> np.ndarray:
    """The global values in a file of the server."""
    file = AdapterFile.parse(data)
    return file.vectors(np.ones(file.space.size, dtype=bool), ["values"])["values"]


def mean_of(site: Site, *clients: str) -> np.ndarray:
    """The global values of round 1 if these clients alone count."""
    start = values_of(files(site.root)["rounds/0/global.safetensors"])
    return mean(start, [update_of(site, client) for client in clients], site.spec.exchange.holders)


def committed(site: Site) -> np.ndarray:
    """The values that the head names."""
    return values_of(site.store.read_blob(site.store.read_head().adapter))


def status(client: str, kind: str, reason: str, rank: int = 2) -> ClientStatus:
    return ClientStatus(client=client, tier="default", rank=rank, round=1, status=kind, reason=reason)


def test_a_round_is_the_mean_of_its_updates(trained):
    summary = trained.aggregate(1)
    head = trained.store.read_head()
    assert (head.round, head.adapter.key, head.state) == (1, "rounds/1/global.safetensors", None)
    assert (committed(trained) == mean_of(trained, "ann", "bob", "eve")).all()
    header = AdapterFile.parse(files(trained.root)[head.adapter.key]).header
    assert (header.federation, header.round, header.client, header.rank) == ("tiny", 1, None, 4)
    stored = files(trained.root)
    masks = {client: trained.mask_file(client) for client in ("ann", "bob", "eve")}
    holders = np.sum([file.mask for file in masks.values()], axis=0)
    assert stored["rounds/1/summary.json"] == summary.to_json()
    assert json.loads(summary.to_json()) == {
        "federation": "tiny",
        "method": "perfit",
        "round": 1,
        "base": json.loads(stored["rounds/1/plan.json"])["base"],
        "minimum_clients": 1,
        "positions": holders.size,
        "positions_held": np.count_nonzero(holders),
        "positions_shared": np.count_nonzero(holders > 1),
        "architectures": {client: file.header.mask_digest for client, file in masks.items()},
        "clients": [json.loads(stored[f"rounds/1/updates/{client}.json"]) for client in ("ann", "bob", "eve")],
        "rule": "mean",
        "positions_by_mean": np.count_nonzero(holders > 1),
        "change": summary.change,
        "changes": summary.changes,
        "limited": [],
    }


def test_local_keeps_the_global_values(make_site):
    site = make_site(method={"name": "local"}).prepare()
    summary = site.run_round(1)
    assert [record.client for record in summary.trained] == ["ann", "bob"]
    assert site.store.read_head().round == 1
    stored = files(site.root)
    masks = [len(data) for key, data in stored.items() if key.startswith("masks/")]
    assert sorted(record.bytes_up for record in summary.trained) == sorted(masks)
    assert {(record.bytes_down, record.shared, record.update) for record in summary.trained} == {(0, 0, None)}
    initial, after = (values_of(stored[f"rounds/{round}/global.safetensors"]) for round in (0, 1))
    assert (initial == after).all()
    assert not [key for key in stored if "updates/" in key and key.endswith(".safetensors")]


def test_moments_move_with_the_head(make_site):
    site = make_site(method={"name": "fedadam"}, rounds=2).run()
    head, stored = site.store.read_head(), files(site.root)
    assert head.state.key == "rounds/2/state.safetensors"
    file = AdapterFile.parse(stored[head.state.key])
    assert file.header.round == 2
    moments = file.named_vectors(np.ones(file.space.size, dtype=bool))
    assert np.abs(moments["first_moment"]).max() > 0
    record = parse_outcome(stored["rounds/2/updates/ann.json"])
    download = stored["rounds/2/ranks/2.safetensors"]
    assert {name.partition("/")[0] for name in AdapterFile.parse(download).tensors} == {"values", "positions"}
    assert record.bytes_down == len(download)


def test_a_round_is_closed_with_its_report_and_the_next_ones_participants(trained):
    closed = close_round(trained.uri, 1, ["default"])
    assert files(trained.root)["rounds/1/report.html"].decode() == closed.report.html
    assert closed.participants == [["perfit-tiny-ann", "perfit-tiny-bob", "perfit-tiny-eve"]]
    before = files(trained.root)
    assert close_round(trained.uri, 1, ["default"]) == closed
    assert files(trained.root) == before


# Failing clients


def test_a_client_that_failed_is_named_and_left_out(make_site):
    site = make_site(participation={"minimum_clients": 2}, **THREE).prepare()
    site.data("eve").unlink()
    summary = site.run_round(1)
    reason = f"{site.data('eve')}: no such file\n  fix: check the path"
    assert summary.clients[2] == status("eve", "failed", reason)
    assert (committed(site) == mean_of(site, "ann", "bob")).all()


def test_a_round_without_its_quorum_is_finished_once_the_client_is_repaired(make_site, tmp_path):
    sections = {"participation": {"minimum_clients": 3}, **THREE}
    site = make_site(**sections).prepare()
    path = site.data("eve")
    records = path.read_text()
    path.write_text(records + '{"instruction": "What is the sea?"}\n')
    with pytest.raises(PerfitError) as caught:
        site.run_round(1)
    assert caught.value.problem == (
        "round 1 is not committed: 2 of 3 clients delivered, participation.minimum_clients is 3. "
        "The head stays where it was. Without an update:\n"
        f"  eve (failed): {path}: 1 of 7 records cannot be used: line 7: no response\n"
        "  fix: repair them, or set data.bad_records: skip to leave them out"
    )
    assert caught.value.fix.startswith("repair these clients and run again (those that delivered do not train again)")
    assert site.store.read_head().round == 0
    assert not [
        key for key in files(site.root) if key.startswith("rounds/1/") and "updates" not in key and "plan" not in key
    ]

    path.write_text(records)
    delivered = {path: path.stat().st_mtime_ns for path in site.root.rglob("*") if path.name.startswith(("ann", "bob"))}
    site.run_round(1)
    assert {path: path.stat().st_mtime_ns for path in delivered} == delivered
    undisturbed = Site(site.spec, (tmp_path / "undisturbed").as_uri()).run()
    assert files(site.root) == files(undisturbed.root)


def test_a_planned_round_whose_client_is_gone_is_rescued_by_a_lower_minimum(make_site):
    site = make_site(**{"participation": {"minimum_clients": 3}, **THREE}).prepare()
    site.data("eve").unlink()
    with pytest.raises(PerfitError, match="2 of 3 clients delivered"):
        site.run_round(1)
    staying = tuple(client for client in site.spec.clients if client.id != "eve")
    smaller = site.spec.model_copy(update={"clients": staying, "participation": Participation(minimum_clients=2)})
    site = Site(smaller, site.store_uri).prepare()
    assert site.planned(1) == ["ann", "bob"]
    summary = site.run_round(1)
    assert [(outcome.client, outcome.status) for outcome in summary.clients] == [
        ("ann", "trained"),
        ("bob", "trained"),
        ("eve", "failed"),
    ]
    assert (committed(site) == mean_of(site, "ann", "bob")).all()


def test_clients_without_a_record_are_missing(trained):
    for client in ("bob", "eve"):
        (trained.root / f"rounds/1/updates/{client}.json").unlink()
    reason = "its task left no record: it did not start, or its pod died"
    assert trained.aggregate(1).clients[1:] == (
        status("bob", "missing", reason, rank=1),
        status("eve", "missing", reason),
    )
    assert (committed(trained) == mean_of(trained, "ann")).all()


def test_nobody_delivered(trained):
    shutil.rmtree(trained.root / "rounds/1/updates")
    with pytest.raises(PerfitError, match="0 of 3 clients delivered"):
        trained.aggregate(1)
    assert trained.store.read_head().round == 0


def test_a_round_that_was_never_planned(trained):
    with pytest.raises(ObjectNotFound, match="plan round 2 first"):
        trained.aggregate(2)


# Once or not at all


def test_a_second_aggregation_changes_no_byte(trained):
    summary = trained.aggregate(1)
    before = files(trained.root)
    assert trained.aggregate(1) == summary
    assert files(trained.root) == before


@pytest.mark.parametrize("lost", [["summary.json"], ["summary.json", "global.safetensors", "head"]])
def test_an_aggregation_that_was_cut_off_gives_the_same_bytes(trained, lost):
    planned = trained.store.read_head()
    trained.aggregate(1)
    before = files(trained.root)
    for name in lost:
        if name == "head":
            (trained.root / "head.json").unlink()
            trained.store.create_head(planned)
        else:
            (trained.root / "rounds/1" / name).unlink()
    trained.aggregate(1)
    assert files(trained.root) == before


@pytest.mark.parametrize("method", ["perfit", "fedadam"])
def test_what_a_round_starts_from_is_made_again_from_its_updates(make_site, method):
    site = make_site(method={"name": method}, rounds=2).prepare()
    site.run_round(1)
    before = files(site.root)
    for key in [key for key in before if key.startswith(("rounds/1/global", "rounds/1/state", "rounds/1/summary"))]:
        (site.root / key).unlink()
    site.planned(2)
    assert {key: data for key, data in files(site.root).items() if "rounds/2" not in key} == before


def test_who_delivered_too_late_does_not_count_when_it_is_made_again(make_site):
    site = make_site(rounds=2).prepare()
    site.train(1)
    record = site.root / "rounds/1/updates/bob.json"
    late = record.read_bytes()
    record.unlink()
    assert [status.client for status in site.aggregate(1).lost] == ["bob"]
    before = files(site.root)
    record.write_bytes(late)
    (site.root / "rounds/1/global.safetensors").unlink()
    site.planned(2)
    after = files(site.root)
    assert {key: after[key] for key in before} == before


def test_what_cannot_be_made_again_is_said(make_site):
    site = make_site(rounds=2).prepare()
    site.run_round(1)
    for name in ("global.safetensors", "updates/bob.json"):
        (site.root / "rounds/1" / name).unlink()
    before = files(site.root)
    with pytest.raises(PerfitError, match=r"is missing, and the updates of round 1 give other bytes.*\n.*backup"):
        site.planned(2)
    assert files(site.root) == before, "the place is left for what is restored"


def test_summaries_are_a_chain_from_the_head(make_site):
    site = make_site(rounds=3).run()
    assert [summary.round for summary in site.context.summaries()] == [1, 2, 3]
    assert [summary.round for summary in site.context.summaries(last=2)] == [1, 2]
    path = site.root / "rounds/2/summary.json"
    path.write_bytes(path.read_bytes().replace(b'"round": 2', b'"round": 3'))
    with pytest.raises(CorruptObject, match=r"rounds/2/summary\.json has digest"):
        site.context.summaries()


def test_a_summary_that_is_missing_is_written_also_after_later_rounds(make_site):
    site = make_site(rounds=2).run()
    before = files(site.root)
    (site.root / "rounds/1/summary.json").unlink()
    site.aggregate(1)
    assert files(site.root) == before


def test_four_aggregators_at_once_commit_once(trained):
    with ThreadPoolExecutor(4) as pool:
        summaries = list(pool.map(lambda _: trained.aggregate(1), range(4)))
    assert summaries == [summaries[0]] * 4
    assert trained.store.read_head().round == 1
    adapters = [key for key in files(trained.root) if key.startswith("rounds/1/global")]
    assert adapters == ["rounds/1/global.safetensors"]
    assert (committed(trained) == mean_of(trained, "ann", "bob", "eve")).all()


def test_an_aggregator_whose_head_is_stale_agrees_with_the_one_that_was_first(trained):
    first = []
    second = commit_round(interrupted(trained, lambda: first.append(trained.aggregate(1))), 1)
    assert first == [second]
    assert trained.store.read_head().round == 1
    assert [key for key in files(trained.root) if key.startswith("rounds/1/global")] == ["rounds/1/global.safetensors"]


def test_an_aggregator_that_later_rounds_have_overtaken_agrees_with_its_own(trained):
    def another_run():
        trained.aggregate(1)
        trained.run_round(2)

    assert commit_round(interrupted(trained, another_run), 1) == trained.summary(1)
    assert trained.store.read_head().round == 2


def test_an_aggregator_that_has_seen_another_update_does_not_commit_over_the_first(trained):
    record = trained.root / "rounds/1/updates/eve.json"
    late = record.rename(record.with_suffix(".late"))

    def another_run():
        trained.aggregate(1)
        late.rename(record)

    with pytest.raises(PerfitError, match="has moved since round 1 was planned: another run committed the round"):
        commit_round(interrupted(trained, another_run), 1)
    assert (committed(trained) == mean_of(trained, "ann", "bob")).all()
    assert trained.summary(1).clients[2].status == "missing"


def test_a_head_whose_adapter_was_replaced(trained):
    path = trained.root / "rounds/0/global.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptObject, match=r"has digest .* but its record says"):
        trained.aggregate(1)
    assert trained.store.read_head().round == 0


@pytest.mark.parametrize("rule", ["median", "trimmed_mean"])
def test_a_robust_rule_is_taken_where_three_clients_hold_a_position(trained, rule):
    spec = trained.spec.model_copy(update={"aggregation": Aggregation(rule=rule)})
    summary = commit_round(FederationContext(trained.store, spec), 1)
    updates = [update_of(trained, client) for client in ("ann", "bob", "eve")]
    holders = np.sum([update.positions for update in updates], axis=0)
    assert (summary.rule, summary.limited) == (rule, ())
    assert summary.positions_by_mean == np.count_nonzero(holders == 2) > 0
    dense = np.zeros((3, holders.size))
    for row, update in zip(dense, updates, strict=True):
        row[update.positions] = update.vectors["values"]
    expected = np.where(holders == 3, np.median(dense, axis=0), mean_of(trained, "ann", "bob", "eve"))
    assert (values_of(files(trained.root)["rounds/1/global.safetensors"]) == expected.astype(np.float32)).all()
