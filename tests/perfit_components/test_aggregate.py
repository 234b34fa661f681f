"""The aggregator: what counts, what does not, and that a round is committed once or not at all."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from perfit.adapter import SparseAdapter
from perfit.adapter_file import load_dense, load_mask, load_values
from perfit.aggregation import Contribution, aggregate
from perfit.errors import PerfitError
from perfit.spec import Participation
from perfit_storage import CorruptObject, Head, ObjectNotFound

from .running import THREE, Site, files


def update_of(site: Site, client: str) -> tuple[SparseAdapter, int]:
    """A client's values in round 1 and the number of its samples."""
    stored = files(site.root)
    record = json.loads(stored[f"rounds/1/updates/{client}.json"])
    mask = load_mask(stored[f"masks/{client}-{record['mask_sha256']}"])[2]
    return load_values(stored[f"rounds/1/updates/{client}.safetensors"], mask)[1], record["samples"]


def mean_of(site: Site, *clients: str) -> np.ndarray:
    """The global values of round 1 if these clients alone count."""
    start = load_dense(files(site.root)["rounds/0/global.safetensors"])[1].values
    return aggregate(start, [Contribution(*update_of(site, client)) for client in clients])


def committed(site: Site) -> np.ndarray:
    """The values that the head names."""
    return load_dense(site.store.read_global(site.store.read_head()))[1].values


def test_a_round_is_the_mean_of_its_updates(trained):
    summary = trained.aggregate(1)
    head = trained.store.read_head()
    assert (head.round, head.key) == (1, "rounds/1/global.safetensors")
    assert (committed(trained) == mean_of(trained, "ann", "bob", "eve")).all()
    header, _ = load_dense(files(trained.root)[head.key])
    assert (header.federation, header.round, header.client, header.rank) == ("tiny", 1, None, 4)
    stored = files(trained.root)
    masks = [update_of(trained, client)[0].mask for client in ("ann", "bob", "eve")]
    assert json.loads(stored["rounds/1/summary.json"]) == summary
    assert summary == {
        "federation": "tiny",
        "method": "perfit",
        "round": 1,
        "base": json.loads(stored["rounds/1/plan.json"])["base"],
        "minimum_clients": 1,
        "positions": masks[0].size,
        "positions_held": np.count_nonzero(np.logical_or.reduce(masks)),
        "clients": [json.loads(stored[f"rounds/1/updates/{client}.json"]) for client in ("ann", "bob", "eve")],
    }


def test_methods_without_exchange_keep_the_global_values(make_site):
    site = make_site(method={"name": "local"}).prepare().search()
    summary = site.aggregate(1, site.train(1))
    assert [outcome["status"] for outcome in summary["clients"]] == ["trained", "trained"]
    assert site.store.read_head().round == 1
    stored = files(site.root)
    masks = [len(data) for key, data in stored.items() if key.startswith("masks/")]
    assert sorted(outcome["bytes_up"] for outcome in summary["clients"]) == sorted(masks)
    initial, after = (load_dense(stored[f"rounds/{round}/global.safetensors"])[1] for round in (0, 1))
    assert (initial.values == after.values).all()


# Failing clients


def test_a_client_that_failed_is_named_and_left_out(make_site):
    site = make_site(participation={"minimum_clients": 2}, **THREE).prepare().search()
    site.data("eve").unlink()
    summary = site.aggregate(1, site.train(1))
    assert summary["clients"][2] == {
        "client": "eve",
        "tier": "default",
        "rank": 2,
        "status": "failed",
        "reason": f"{site.data('eve')}: no such file\n  fix: check the path",
    }
    assert (committed(site) == mean_of(site, "ann", "bob")).all()


def test_a_round_without_its_quorum_is_finished_once_the_client_is_repaired(make_site, tmp_path):
    sections = {"participation": {"minimum_clients": 3}, **THREE}
    site = make_site(**sections).prepare().search()
    path = site.data("eve")
    records = path.read_text()
    path.write_text(records + '{"instruction": "What is the sea?"}\n')
    with pytest.raises(PerfitError) as caught:
        site.aggregate(1, site.train(1))
    assert caught.value.problem == (
        "round 1 is not committed: 2 of 3 clients delivered, participation.minimum_clients is 3. "
        "The head stays where it was. Without an update:\n"
        f"  eve (failed): {path}: 1 of 7 records cannot be used: line 7: no response\n"
        "  fix: repair them, or set data.bad_records: skip to leave them out"
    )
    assert caught.value.fix.startswith("repair these clients and run again (who delivered does not train again)")
    assert site.store.read_head().round == 0
    assert not [
        key for key in files(site.root) if key.startswith("rounds/1/") and "updates" not in key and "plan" not in key
    ]

    path.write_text(records)
    delivered = {path: path.stat().st_mtime_ns for path in site.root.rglob("*") if path.name.startswith(("ann", "bob"))}
    site.aggregate(1, site.train(1))
    assert {path: path.stat().st_mtime_ns for path in delivered} == delivered
    undisturbed = Site(site.spec, (tmp_path / "undisturbed").as_uri()).run()
    assert files(site.root) == files(undisturbed.root)


def test_a_planned_round_whose_client_is_gone_is_rescued_by_a_lower_minimum(make_site):
    site = make_site(**{"participation": {"minimum_clients": 3}, **THREE}).prepare().search()
    site.data("eve").unlink()
    with pytest.raises(PerfitError, match="2 of 3 clients delivered"):
        site.aggregate(1, site.train(1))
    staying = tuple(client for client in site.spec.clients if client.id != "eve")
    smaller = site.spec.model_copy(update={"clients": staying, "participation": Participation(minimum_clients=2)})
    site = Site(smaller, site.store_uri).prepare()
    assert site.planned(1) == ["ann", "bob"]
    summary = site.aggregate(1, site.train(1))
    assert [(outcome["client"], outcome["status"]) for outcome in summary["clients"]] == [
        ("ann", "trained"),
        ("bob", "trained"),
        ("eve", "failed"),
    ]
    assert (committed(site) == mean_of(site, "ann", "bob")).all()


def test_clients_without_a_record_are_missing_for_the_reason_that_their_tasks_gave(trained):
    for client in ("bob", "eve"):
        (trained.root / f"rounds/1/updates/{client}.json").unlink()
    statuses = [{"client": "bob", "status": "failed", "reason": "the store could not be written"}]
    summary = trained.aggregate(1, statuses)
    assert summary["clients"][1:] == [
        {
            "client": "bob",
            "tier": "default",
            "rank": 1,
            "status": "missing",
            "reason": "the store could not be written",
        },
        {"client": "eve", "tier": "default", "rank": 2, "status": "missing", "reason": "its task left no record"},
    ]
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


def meanwhile(action):
    """Statuses that an aggregator reads after the head and the plan: what happens then, happens in between."""
    action()
    yield from ()


def test_an_aggregator_whose_head_is_stale_agrees_with_the_one_that_was_first(trained):
    first = []
    second = trained.aggregate(1, meanwhile(lambda: first.append(trained.aggregate(1))))
    assert first == [second]
    assert trained.store.read_head().round == 1
    assert [key for key in files(trained.root) if key.startswith("rounds/1/global")] == ["rounds/1/global.safetensors"]


def test_an_aggregator_that_has_seen_another_update_does_not_commit_over_the_first(trained):
    record = trained.root / "rounds/1/updates/eve.json"
    late = record.rename(record.with_suffix(".late"))

    def another_run():
        trained.aggregate(1)
        late.rename(record)

    with pytest.raises(PerfitError, match="round 1 of 'tiny' was committed by another run with other values"):
        trained.aggregate(1, meanwhile(another_run))
    assert (committed(trained) == mean_of(trained, "ann", "bob")).all()
    assert trained.store.read_summary(1)["clients"][2]["status"] == "missing"


def test_a_head_whose_adapter_was_exchanged(trained):
    path = trained.root / "rounds/0/global.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CorruptObject, match=r"has sha256 .* but its record says"):
        trained.aggregate(1)
    assert trained.store.read_head() == Head(**json.loads(files(trained.root)["rounds/1/plan.json"])["base"])
