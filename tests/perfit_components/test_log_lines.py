"""The lines of a client's task: formatted, printed, parsed."""

from __future__ import annotations

import pytest

from perfit_components.log_lines import (
    Failure,
    Phase,
    Step,
    format_failure,
    format_phase,
    format_step,
    parse_failure,
    parse_phase,
    parse_step,
    parse_task,
    plain,
)


@pytest.mark.parametrize(
    ("line", "step"),
    [
        ("[perfit] round=2 client=north-1 step=3/10 loss=1.2345", Step(2, "north-1", 3, 10, 1.2345)),
        ("        [perfit] round=0 client=a step=1/1 loss=12.0000", Step(0, "a", 1, 1, 12.0)),
        ("[perfit] round=2 client=north-1", None),
        ("step=3/10 loss=1.2345", None),
        ("client bob has no result: [perfit] round=1 client=a step=1/2 loss=1.2345", None),
        ("[perfit] round=1 client=a step=1/2 loss=zzz", None),
        (f"[perfit] round=1 client=a step=1/{'9' * 1000} loss=1.2345", None),
        ("[perfit] round=1 client=a step=1/2 loss=inf", Step(1, "a", 1, 2, float("inf"))),
        ("", None),
    ],
)
def test_a_step_in_a_line(line, step):
    assert parse_step(line) == step


def test_what_a_client_prints_is_what_is_parsed(make_site, capsys):
    site = make_site(clients={"ann": {}}, method={"name": "fedit"}).prepare()
    site.train_client("ann")
    steps = [step for line in capsys.readouterr().out.splitlines() if (step := parse_step(line))]
    assert [(step.round, step.client, step.step, step.steps) for step in steps] == [(1, "ann", 1, 2), (1, "ann", 2, 2)]


def test_the_phases_of_a_clients_round(make_site, capsys):
    site = make_site(clients={"ann": {}}).prepare()
    site.train_client("ann")
    printed = capsys.readouterr().out.splitlines()
    phases = [phase for line in printed if (phase := parse_phase(line))]
    assert [phase.name for phase in phases] == ["loading", "searching", "evaluating", "done"]
    assert {(phase.round, phase.client) for phase in phases} == {(1, "ann")}
    assert parse_phase(format_phase(2, "bob", "loading")) == Phase(2, "bob", "loading")
    assert parse_phase("[perfit] round=2 client=bob") is None


def test_a_step_is_formatted_with_four_decimals():
    assert format_step(0, "ann", 2, 3, 0.12345) == "[perfit] round=0 client=ann step=2/3 loss=0.1235"


def test_a_failure_is_parsed_as_it_was_formatted():
    text = format_failure("ann", "it is red\n  fix: make it blue")
    assert text == "client ann has no result: it is red\n  fix: make it blue"
    assert parse_failure(text) == Failure("ann", "it is red\n  fix: make it blue")
    assert parse_failure("    client eve has no result: no such file\n") == Failure("eve", "no such file")
    assert parse_failure("client eve has a result") is None


def test_a_task_and_its_colours():
    assert parse_task("Executing task \x1b[96m'client-office'\x1b[0m") == "client-office"
    assert parse_task("Streamed logs:") is None
    assert plain("\x1b[91mFAILURE\x1b[0m") == "FAILURE"
