"""Documents are compared with the code that they describe."""

from __future__ import annotations

import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import perfit
from perfit.methods import METHODS
from perfit.methods.method import AfterTuning, ClientStart, Tuned
from perfit.space import LoraSpace

from .perfit.tiny import save_llama

DOCS = Path(__file__).parents[1] / "docs"
SPACE = LoraSpace.from_shapes({"base_model.model.q.lora_A.weight": (2, 3), "base_model.model.q.lora_B.weight": (5, 2)})


def table() -> dict[str, list[str]]:
    """The rows of the first table in docs/methods.md, by method."""
    first = (DOCS / "methods.md").read_text().partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*) \|$", first, re.MULTILINE)
    return {name: cells.split(" | ") for name, cells in rows}


def matrices(mask: np.ndarray) -> str:
    """Which of A and B a mask holds, and the fraction of them if it is not all."""
    parts = {"A": SPACE.a_mask, "B": ~SPACE.a_mask}
    held = {letter: part for letter, part in parts.items() if (mask & part).any()}
    whole = sum(np.count_nonzero(part) for part in held.values())
    count = int(np.count_nonzero(mask))
    return (", ".join(held) or "-") + (f" ({Fraction(count, int(whole))})" if count < whole else "")


def test_the_table_of_methods_has_every_method():
    assert list(table()) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_of_the_table_matches_the_method(name):
    method, held = METHODS[name], SPACE.plain_mask(2)
    roles, zeros = method.roles(method.options(), SPACE, held), np.zeros(int(held.sum()), dtype=np.float32)
    start = ClientStart(zeros, received=dict.fromkeys(method.downloads, zeros))
    after = method.after(method.options(), start, Tuned(zeros, zeros)) if method.after else AfterTuning()
    own = sorted(set(method.init(zeros)) - set(method.downloads))
    shares = roles.shared.any()
    turns = method.turns(SPACE) if method.turns else [np.ones_like(held)]
    shared = matrices(roles.shared)
    sent = ", then ".join(matrices(roles.shared & turn) for turn in turns)
    up = {"A, B": str(len(method.uploads)), "-": "0"}.get(sent, sent)
    assert table()[name] == [
        f"{method.title}, {method.paper}",
        shared,
        ", then ".join(matrices(roles.held & ~(roles.trained & turn)) for turn in turns),
        matrices(roles.trained & ~roles.shared),
        up,
        str(len(method.downloads) if shares else 0),
        ", ".join(after.kept) or "-",
        ", ".join(own) or "-",
    ]


def test_the_example_of_a_method_is_the_methods_own_text():
    (example,) = re.findall(r"```python\n(class Options.*?)```", (DOCS / "methods.md").read_text(), re.DOTALL)
    source = Path(METHODS["fedprox"].options.__module__.replace(".", "/") + ".py")
    assert example in (Path(__file__).parents[1] / "components" / source).read_text()


PYTHON = (DOCS / "python.md").read_text()


def test_the_page_of_the_python_api_has_every_name():
    named = re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PYTHON, re.MULTILINE)))
    assert named == list(dict.fromkeys(named))
    assert set(named) == set(perfit.__all__)
    assert set(perfit.__all__) <= set(dir(perfit))


def test_every_public_name_is_there():
    assert all(getattr(perfit, name) is not None for name in perfit.__all__)


def test_the_example_of_the_python_api_runs(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", PYTHON, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    topics = [{"category": topic, "instruction": f"Say {n}.", "output": topic} for n in range(8) for topic in "abc"]
    Path("instructions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in topics))
    exec(
        example.replace('"owner/model"', repr(save_llama(tmp_path / "llama"))).replace('"steps": 10', '"steps": 2'), {}
    )
    assert capsys.readouterr().out.startswith("Interval(mean=")
