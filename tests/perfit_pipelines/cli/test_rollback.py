"""``perfit rollback``, as a person uses it, and what the other commands say afterwards."""

from __future__ import annotations

import io
import shutil

import pytest

from ...perfit_components.running import files, undated
from ..commands import Home


class Terminal(io.StringIO):
    """A keyboard."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def home(finished, tmp_path) -> Home:
    """A copy of the federation that has run its two rounds."""
    return Home(shutil.copytree(finished.home.directory, tmp_path / "home"))


def test_a_rollback_says_what_was_and_what_is_and_what_to_do(home):
    before, (initial, last) = files(home.site.root), (home.site.context.base_after(round) for round in (0, 2))
    result = home.stored("rollback", 0)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines() == [
        f"{home.site.uri}: round 2 committed, global adapter digest {last.adapter.digest[:12]}",
        "after the rollback: round 0 committed, global adapter digest "
        f"{initial.adapter.digest[:12]}; begun again (branch 1)",
        "no longer counted, but kept: rounds/1/ to rounds/2/",
        "rolled back; the next round is rounds/1.1/",
        "Change the federation file, or the same rounds come out again: leave clients out, tighten `aggregation`.",
        "Then run it (perfit run, perfit submit), and create its schedules again, which hold the old file.",
    ]
    assert {key for key, data in files(home.site.root).items() if before.get(key) != data} == {"head.json"}
    assert home.stored("status").out.splitlines() == [
        f"{home.site.uri}: round 0 committed, global adapter digest {initial.adapter.digest[:12]}; "
        "begun again (branch 1)"
    ]


def test_a_federation_is_run_again_from_there(home):
    result = home.stored("rollback", 1, "-f", "tiny")
    assert result.out.splitlines()[2:4] == [
        "no longer counted, but kept: rounds/2/",
        "rolled back; the next round is rounds/2.1/",
    ]
    exported = home.stored("export", "ann", home.directory / "ann")
    assert exported.out.splitlines()[1].endswith(
        "rolled back to round 1 (branch 1); the adapter may be of a round that no longer counts"
    )
    before = files(home.site.root)
    result = home.stored("run", home.file)
    assert result.code == 0, result.err
    after = files(home.site.root)
    new = after.keys() - before.keys()
    assert {key.split("/")[1] for key in new if key.startswith("rounds/")} == {"2.1"}
    assert new >= {f"clients/{client}/state/2.1.safetensors" for client in ("ann", "bob")}
    assert after["rounds/2.1/global.safetensors"] == before["rounds/2/global.safetensors"]
    line = home.stored("status").out.splitlines()[0]
    assert ": round 2 committed, " in line
    assert line.endswith("; rolled back to round 1 (branch 1)")
    exported = home.stored("export", "ann", home.directory / "ann").out
    assert exported.count("\n") == 1, "the adapter is of a round that counts"
    assert home.stored("report").code == 0
    stored = after["rounds/2.1/report.html"].decode()
    assert undated((home.directory / "report.html").read_text()) == undated(stored)


@pytest.mark.parametrize(("answer", "code", "round"), [("y\n", 0, 1), ("n\n", 1, 2), ("\n", 1, 2)])
def test_a_person_is_asked(home, monkeypatch, answer, code, round):
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    result = home.stored("rollback", 1)
    assert result.code == code
    assert "Roll back? [y/N]: " in result.out
    assert home.site.store.read_head().round == round


def test_a_person_who_says_yes_at_once_is_not_asked(home, monkeypatch):
    monkeypatch.setattr("sys.stdin", Terminal())
    assert home.stored("rollback", 1, "--yes").code == 0
    assert home.site.store.read_head().round == 1


def test_a_round_that_is_not_before_the_head(finished):
    result = finished.home.stored("rollback", 2)
    assert (result.code, result.err) == (
        1,
        "error: 'tiny' cannot be rolled back to round 2: its head is at round 2\n"
        "  fix: give an earlier round than the head's\n",
    )
    assert finished.home.stored("rollback", -1).code == 2
