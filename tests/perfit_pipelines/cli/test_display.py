"""What a person sees of a local run."""

from __future__ import annotations

import io

from rich.console import Console

from perfit_pipelines.cli.display import RunDisplay


def test_a_line_for_each_step_without_a_terminal(make):
    spec = make(rounds=7).site.spec
    out = io.StringIO()
    with RunDisplay(spec, Console(file=out, width=200)) as display:
        for line in [
            "21:40:02.101 - INFO - Executing task \x1b[96m'prepare'\x1b[0m",
            "21:40:02.101 - INFO - Executing task \x1b[96m'client-strong-2'\x1b[0m",
            "[perfit] round=0 client=ann step=1/3 loss=2.5000",
            "[perfit] round=6 client=bob step=2/2 loss=1.0000",
            "21:40:02.101 - INFO - Executing task \x1b[96m'aggregate-2'\x1b[0m",
            "    client eve has no result: [/data/eve.jsonl]: no such file",
            "anything else",
        ]:
            display.on_line(line)
    assert out.getvalue().splitlines() == [
        "preparing the federation (the first time, the model is converted)",
        "search  ann  step 1/3  loss 2.500",
        "round 6/7  bob  step 2/2  loss 1.000",
        "averaging the updates and drawing the report",
        "client eve has no result: [/data/eve.jsonl]: no such file",
    ]


def test_bars_in_a_terminal(make):
    spec = make().site.spec
    out = io.StringIO()
    with RunDisplay(spec, Console(file=out, width=100, force_terminal=True)) as display:
        for step in (1, 2):
            display.on_line(f"[perfit] round=1 client=ann step={step}/2 loss=2.5000")
    assert "round 1/2  ann" in out.getvalue()
    assert "step 2/2  loss 2.500" in out.getvalue()
