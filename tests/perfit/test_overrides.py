"""Keys of a federation file that are set elsewhere."""

from __future__ import annotations

import pytest

from perfit.errors import PerfitError
from perfit.federation_file import parse_federation

FILE = """\
name: n
model: owner/model
rounds: 3
training:
  steps: 20
clients:
  - {id: ann, data: a.jsonl}
  - {id: bob, data: b.jsonl}
"""


def parse(*settings: str):
    return parse_federation(FILE, "f.yaml", settings=settings)


def test_values_have_the_types_of_the_schema():
    spec = parse(
        "training.steps=5",
        "training.learning_rate=1e-2",
        "clients.bob.rank=4",
        "lora.target_modules=[q_proj, o_proj]",
        "tiers.default.memory=16Gi",
        "rounds = 1",
        "rounds=2",
    )
    assert (spec.training.steps, spec.training.learning_rate, spec.rounds) == (5, 0.01, 2)
    assert [client.rank for client in spec.clients] == [None, 4]
    assert spec.lora.target_modules == ("q_proj", "o_proj")
    assert spec.tiers["default"].memory == "16Gi"
    assert parse() == parse_federation(FILE)


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("training.steps", "--set training.steps: is not KEY=VALUE"),
        ("training..steps=5", "--set training..steps=5: is not KEY=VALUE"),
        ("=5", "--set =5: is not KEY=VALUE"),
        ("clients.zoe.rank=4", "--set clients.zoe.rank=4: names no item 'zoe'"),
        ("name.x=1", "--set name.x=1: name holds a value, not keys"),
        ("rounds=[1", "--set rounds=[1: the value is not YAML"),
        ("training.steps=many", "--set training.steps=many: training.steps: Input should be a valid integer"),
        ("training.step=5", "--set training.step=5: training.step: unknown key; did you mean 'steps'?"),
        ("trainin.steps=5", "--set trainin.steps=5: trainin: unknown key; did you mean 'training'?"),
        ("clients.bob.rank=400", "--set clients.bob.rank=400: clients.1.rank: 400 is above lora.rank 8"),
        ("training.steps=yes", "--set training.steps=yes: training.steps: True is a boolean"),
        ("rounds=1\x1b[31m", "--set rounds=1\\x1b[31m: "),
    ],
)
def test_what_is_wrong_is_named_as_it_was_given(setting, problem):
    with pytest.raises(PerfitError) as caught:
        parse(setting)
    assert caught.value.problem.startswith(problem)


def test_other_problems_keep_their_lines():
    with pytest.raises(PerfitError) as caught:
        parse_federation(FILE.replace("rounds: 3", "rounds: none"), "f.yaml", settings=["training.steps=0"])
    assert {line.partition(": ")[0] for line in caught.value.problem.splitlines()} == {
        "f.yaml:3",
        "--set training.steps=0",
    }
