"""What a person sees of a local run."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from perfit_pipelines.cli.display import RunDisplay, Work, time_left

from ...perfit_components.running import TWO_TIERS, make_spec

WORK = Work(first=1, rounds=2, clients=2, steps=10, searching=2, search_steps=30)
TASK = "21:40:02.101 - INFO - Executing task \x1b[96m'{}'\x1b[0m"


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def run(display: RunDisplay, clock: Clock, *events: str | float) -> None:
    """Give a display lines, or let time pass until a second."""
    for event in events:
        if isinstance(event, str):
            display.on_line(event)
        else:
            clock.now = event


def bars(display: RunDisplay) -> list[tuple[str, float, float | None, str]]:
    """Description, steps done, steps in all and detail of each bar, the run's first."""
    return [(task.description, task.completed, task.total, task.fields["detail"]) for task in display.progress.tasks]


def test_the_work_of_a_run(tmp_path):
    def spec(**sections):
        return make_spec("owner/model", tmp_path, **{**TWO_TIERS, **sections})

    two = spec(rounds=3)  # two clients in two tiers, a search of 3 steps, a tuning of 2
    assert Work.of(two, first=1, known=0) == Work(1, 3, 2, 2, 2, 3)
    assert Work.of(two, first=1, known=0).total == 3 * 2 * 2 + 2 * 3
    assert Work.of(two, first=3, known=2).total == 2 * 2
    half = spec(rounds=1, participation={"fraction": 0.5}, clients={f"c{i}": {"tier": "weak"} for i in range(8)})
    assert Work.of(half, first=1, known=0) == Work(1, 1, 4, 2, 4, 3)
    plain = spec(rounds=2, method={"name": "fedit"}, lora={"rank": 2})
    assert Work.of(plain, first=1, known=0).total == 2 * 2 * 2
    assert str(Work.of(two, 2, 2)) == "would run rounds 2 to 3: 2 clients a round, 2 steps each"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((10, 0, 100), ""),
        ((60, 10, 40), "about 3 min left"),
        ((60, 90, 100), "less than a minute left"),
        ((3600, 10, 35), "about 2 h 30 min left"),
        ((60, 110, 100), "less than a minute left"),
    ],
)
def test_the_time_that_is_left(arguments, text):
    assert time_left(*arguments) == text


def test_a_line_for_each_stage_without_a_terminal():
    out, clock = io.StringIO(), Clock()
    with RunDisplay(WORK, Console(file=out, width=200), clock) as display:
        run(display, clock, TASK.format("prepare"), TASK.format("client-strong-2"))
        run(display, clock, *(f"[perfit] round=1 client=ann phase={name}" for name in ("loading", "searching")))
        run(display, clock, "[perfit] round=0 client=ann step=1/30 loss=2.7000", 60)
        run(display, clock, "[perfit] round=0 client=ann step=30/30 loss=2.5000")
        run(display, clock, "[perfit] round=1 client=ann phase=evaluating")
        run(display, clock, "[perfit] round=1 client=ann step=9/10 loss=1.2000", 80)
        run(
            display,
            clock,
            "[perfit] round=1 client=ann step=10/10 loss=1.0000",
            "[perfit] round=1 client=ann phase=done",
        )
        run(display, clock, TASK.format("aggregate-2"))
        run(display, clock, "    client eve has no result: [/data/eve.jsonl]: no such file", "anything else")
    assert out.getvalue().splitlines() == [
        "preparing the federation (the first time, the model is converted)",
        "round 1/2  ann  searched, 30 steps, loss 2.500, about 2 min left",
        "round 1/2  ann  trained, 10 steps, loss 1.000, about 2 min left",
        "round 1/2  averaging the updates and drawing the report",
        "client eve has no result: [/data/eve.jsonl]: no such file",
    ]


def test_a_bar_for_each_client_that_works_and_one_for_the_run():
    out, clock = io.StringIO(), Clock()
    with RunDisplay(WORK, Console(file=out, width=120, force_terminal=True), clock) as display:
        assert bars(display) == [("preparing the federation", 0, 100, "")]
        run(display, clock, "[perfit] round=1 client=ann phase=loading", "[perfit] round=1 client=bob phase=loading")
        assert [bar[0] for bar in bars(display)] == ["round 1/2", "  ann  loading", "  bob  loading"]
        run(display, clock, 30, "[perfit] round=0 client=ann step=20/30 loss=2.5000")
        assert bars(display)[:2] == [
            ("round 1/2", 20, 100, "about 2 min left"),
            ("  ann  searching", 20, 30, "step 20/30  loss 2.500"),
        ]
        run(display, clock, "[perfit] round=1 client=ann step=3/10 loss=2.5000")
        assert bars(display)[1] == ("  ann  training", 3, 10, "step 3/10  loss 2.500")
        run(display, clock, "[perfit] round=1 client=ann step=10/10 loss=2.5000")
        assert bars(display)[1][0] == "  ann  evaluating"
        run(display, clock, "[perfit] round=1 client=ann phase=done", "client bob has no result: it is ill")
        assert [bar[:3] for bar in bars(display)] == [
            ("round 1/2", 40, 100)
        ]  # 20 searched, 10 tuned, 10 that bob will not
        run(display, clock, TASK.format("aggregate"))
        assert bars(display)[0][0].endswith("averaging the updates and drawing the report")
    assert "client bob has no result: it is ill" in out.getvalue()


def test_a_remote_client_counts_when_its_record_is_there():
    console = Console(file=io.StringIO(), width=200)
    with RunDisplay(WORK, console, clock := Clock()) as display:
        run(display, clock, TASK.format("wait"), "[perfit] round=1 client=ann phase=done", 60.0)
        assert bars(display)[0][:3] == ("round 1/2  waiting for remote clients", 10, WORK.total)
    assert "round 1/2  waiting for remote clients" in console.file.getvalue()


def test_quiet():
    out = io.StringIO()
    with RunDisplay(WORK, Console(file=out, force_terminal=True, quiet=True)) as display:
        display.on_line("[perfit] round=1 client=ann step=10/10 loss=2.5000")
        display.on_line("client bob has no result: it is ill")
    assert out.getvalue() == ""
