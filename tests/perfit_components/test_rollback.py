"""A rollback: the head moves back, no file changes, and what follows is as if the later rounds had never been."""

from __future__ import annotations

import io
import re
import uuid
from collections.abc import Callable
from contextlib import redirect_stdout

import pytest

from perfit.errors import PerfitError
from perfit.protocol import parse_outcome
from perfit_components.steps.aggregate import close_round
from perfit_components.steps.commit import commit_round
from perfit_components.steps.rollback import plan_rollback, roll_back
from perfit_storage import Branch, CorruptObject, ObjectNotFound, RoundPlace, open_store

from ..perfit.tiny import write_records
from .running import RECORDS, Site, files, interrupted


def objects(site: Site) -> dict[str, bytes]:
    """Every object of a federation, in a store of either kind."""
    store = open_store(site.uri)
    return {key: store.get(key).data for key in store.list("")}


def lasting(site: Site) -> dict[str, bytes]:
    """The objects that may never change: all but the head, and what a client's next training replaces."""
    passing = re.compile(r"head\.json|clients/[^/]+/(adapter/.+|baseline\.json)")
    return {key: data for key, data in objects(site).items() if not passing.fullmatch(key)}


def results(site: Site) -> dict[str, bytes]:
    """What the current history of a federation computed, called as on branch 0; without messages, which name places."""
    rounds = {str(site.store.read_head().place(number)): str(number) for number in range(4)}
    found = {}
    for key, data in objects(site).items():
        match = re.fullmatch(r"(.*/)?(rounds/|state/)([\d.]+?)(/.+|\.safetensors)", key)
        if match and match[3] not in rounds:
            continue
        if key.startswith(("masks/", "clients/")) or key.endswith(".safetensors"):
            found[f"{match[1] or ''}{match[2]}{rounds[match[3]]}{match[4]}" if match else key] = data
    return found


@pytest.fixture(params=["file", "s3"])
def store_uri(request, tmp_path, monkeypatch) -> str:
    """An empty store."""
    if request.param == "file":
        return (tmp_path / "poisoned").as_uri()
    server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{server.store_uri}/{uuid.uuid4()}"


@pytest.mark.parametrize("method", ["perfit", "fedsa-lora", "scaffold", "fedadam"])
def test_what_follows_is_as_if_the_later_rounds_had_never_been(make_site, store_uri, method):
    """Also what clients keep (fedsa-lora's B, SCAFFOLD's variates) and the server's moments (FedAdam) go back."""
    clean = make_site(method={"name": method}, rounds=3).run()
    site = Site(clean.spec, store_uri).prepare()
    site.run_round(1)
    write_records(site.data("bob"), "poison", RECORDS["bob"])
    site.run_round(2)
    site.run_round(3)
    assert results(site) != results(clean)
    before, everything = lasting(site), objects(site)
    site.roll_back(1)
    now = objects(site)
    assert {key for key in now if now[key] != everything.get(key)} == {"head.json"}
    assert site.store.read_head().branches == (Branch(1, 2),)
    assert [summary.round for summary in site.context.summaries()] == [1]

    write_records(site.data("bob"), "bob", RECORDS["bob"])
    site.run_round(2)
    site.run_round(3)
    assert results(site) == results(clean)
    now = lasting(site)
    assert {key: now.get(key) for key in before} == before
    assert {key.split("/")[1] for key in now.keys() - before.keys() if key.startswith("rounds/")} == {"2.1", "3.1"}
    counted, expected = (each.context.summaries() for each in (site, clean))
    assert [[record.losses for record in summary.trained] for summary in counted] == [
        [record.losses for record in summary.trained] for summary in expected
    ]


def test_rolled_back_again_and_to_the_founding(make_site):
    site = make_site(rounds=2).run()
    first = results(site)
    for back_to, branches in (
        (1, [(1, 2)]),
        (1, [(2, 2)]),
        (0, [(3, 1)]),
        (1, [(3, 1), (4, 2)]),
    ):
        before = lasting(site)
        site.roll_back(back_to)
        head = site.store.read_head()
        assert (head.round, head.branches) == (back_to, tuple(Branch(*branch) for branch in branches))
        for round in range(back_to + 1, 3):
            site.run_round(round)
        assert results(site) == first
        assert {key: lasting(site).get(key) for key in before} == before
        assert [summary.round for summary in site.context.summaries()] == [1, 2]
    directories = {key.split("/")[1] for key in objects(site) if key.startswith("rounds/")}
    assert directories == {"0", "1", "2", "2.1", "2.2", "1.3", "2.3", "2.4"}
    assert site.store.read_head().adapter.key == "rounds/2.4/global.safetensors"
    assert site.summary(1).clients[0].update.key == "rounds/1.3/updates/ann.safetensors"


def test_a_rounds_report_shows_the_rounds_that_count(make_site):
    site = make_site(rounds=2).prepare()
    for round in (1, 2):
        site.train(round)
        close_round(site.uri, round)
    before = files(site.root)
    site.roll_back(1)
    assert close_round(site.uri, 1).report.html.encode() == before["rounds/1/report.html"]
    site.train(2)
    html = close_round(site.uri, 2).report.html
    after = files(site.root)
    assert after["rounds/2.1/report.html"].decode() == html
    assert "rolled back to round 1 (branch 1)" in html
    assert [after[f"rounds/{n}/report.html"] for n in (1, 2)] == [before[f"rounds/{n}/report.html"] for n in (1, 2)]


# What runs while the head is moved back


def test_an_aggregator_that_began_before_does_not_commit(make_site):
    site = make_site(rounds=2).prepare()
    site.run_round(1)
    site.train(2)
    with pytest.raises(
        PerfitError, match=r"'tiny' has moved since round 2 was planned: .*, or the federation was rolled"
    ):
        commit_round(interrupted(site, lambda: site.roll_back(0)), 2)
    head = site.store.read_head()
    assert (head.round, head.branches) == (0, (Branch(1, 1),))
    assert "rounds/2/global.safetensors" in files(site.root), "kept, but nothing names it"
    with pytest.raises(ObjectNotFound, match=r"there is no .*/rounds/2\.1/plan\.json"):
        site.aggregate(2)
    site.run_round(1)
    site.run_round(2)
    assert site.store.read_head().adapter.key == "rounds/2.1/global.safetensors"


def test_a_report_is_not_drawn_of_a_round_that_was_rolled_back_meanwhile(make_site):
    site = make_site(rounds=2).run()
    context, before = site.context, files(site.root)
    site.roll_back(1)
    with pytest.raises(PerfitError, match="round 2 of 'tiny' is not committed"):
        context.summaries(last=2)
    with pytest.raises(ObjectNotFound, match=r"there is no .*/rounds/2\.1/plan\.json"):
        close_round(site.uri, 2)
    assert {key: data for key, data in files(site.root).items() if key != "head.json"} == {
        key: data for key, data in before.items() if key != "head.json"
    }


def test_a_head_that_moves_meanwhile_is_left_there(make_site):
    site = make_site(rounds=2).prepare()
    site.run_round(1)
    planned = plan_rollback(site.context, 0)
    site.run_round(2)
    before = files(site.root)
    with pytest.raises(PerfitError, match="the head of 'tiny' has moved meanwhile, and was left where it is"):
        roll_back(site.context, planned)
    assert files(site.root) == before


class Meanwhile(io.StringIO):
    """A client's log; something happens when it says this."""

    def __init__(self, words: str, action: Callable[[], object]):
        super().__init__()
        self.words, self.action = words, action

    def write(self, text: str) -> int:
        if self.action and self.words in text:
            action, self.action = self.action, None
            action()
        return super().write(text)


def test_a_client_that_began_before_delivers_where_nobody_looks(make_site):
    site = make_site(method={"name": "fedsa-lora"}, rounds=2).run()
    undisturbed = results(site)
    site.roll_back(1)
    site.planned(2)
    with redirect_stdout(Meanwhile("round=2 client=ann step=1", lambda: site.roll_back(0))) as log:
        assert site.train_client("ann", 2)["status"] == "trained"
    assert log.action is None
    assert parse_outcome(site.store.read_record(RoundPlace(2, 1), "ann")).status == "trained"
    assert site.store.read_record(RoundPlace(2, 2), "ann") is None
    assert "clients/ann/state/2.1.safetensors" in files(site.root)
    site.run_round(1)
    site.run_round(2)
    assert results(site) == undisturbed


def test_an_update_of_a_round_that_no_longer_counts_is_refused(make_site):
    site = make_site().prepare()
    site.run_round(1)
    site.roll_back(0)
    site.train(1)
    old, new = (site.root / f"rounds/{place}/updates/ann.json" for place in ("1", "1.1"))
    new.write_bytes(old.read_bytes())
    refused, delivered = site.aggregate(1).clients
    assert (refused.status, delivered.status) == ("refused", "trained")
    assert refused.reason == "its record names 'rounds/1/updates/ann.safetensors' as its update"


# What a rollback needs


def test_only_to_an_earlier_round(make_site):
    site = make_site().prepare()
    with pytest.raises(PerfitError, match=r"its head is at round 0\n.*no round is committed yet"):
        site.roll_back(0)
    site.run_round(1)
    for round in (1, 2):
        with pytest.raises(PerfitError) as caught:
            site.roll_back(round)
        assert caught.value.problem == f"'tiny' cannot be rolled back to round {round}: its head is at round 1"
        assert caught.value.fix == "give an earlier round than the head's"


def test_what_the_earlier_head_names_is_made_again_if_it_is_missing(make_site):
    site = make_site(method={"name": "fedadam"}, rounds=3).run()
    before = files(site.root)
    for name in ("global.safetensors", "state.safetensors", "summary.json"):
        (site.root / "rounds/1" / name).unlink()
        site.roll_back(1)
        assert {key for key, data in files(site.root).items() if before.get(key) != data} == {"head.json"}
        (site.root / "head.json").write_bytes(before["head.json"])


@pytest.mark.parametrize("name", ["global.safetensors", "state.safetensors", "summary.json"])
def test_a_head_is_not_moved_to_damaged_files(make_site, name):
    site = make_site(method={"name": "fedadam"}, rounds=2).run()
    path = site.root / "rounds/1" / name
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = files(site.root)
    with pytest.raises(CorruptObject, match=f"rounds/1/{name} has digest"):
        site.roll_back(1)
    assert files(site.root) == before


def test_a_head_is_not_moved_to_what_cannot_be_made_again(make_site):
    site = make_site(rounds=2).run()
    for name in ("global.safetensors", "updates/bob.safetensors"):
        (site.root / "rounds/1" / name).unlink()
    before = files(site.root)
    with pytest.raises(PerfitError, match="is missing, and the updates of round 1 give other bytes"):
        site.roll_back(1)
    assert files(site.root) == before
