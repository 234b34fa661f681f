"""The table of methods, and what an installed package adds to it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perfit.methods import METHODS, VALUES

TABLE = [
    ("perfit", "PerFIT", "arXiv 2402.16919"),
    ("fedit", "FedIT", "arXiv 2305.05644"),
    ("local", "local tuning", "baseline"),
    ("fedprox", "FedProx", "arXiv 1812.06127"),
    ("ffa-lora", "FFA-LoRA", "arXiv 2403.12313"),
    ("fedsa-lora", "FedSA-LoRA", "arXiv 2410.01463"),
    ("feddpa", "FedDPA", "arXiv 2403.19211"),
    ("flexlora", "FlexLoRA", "arXiv 2402.11505"),
    ("hetlora", "HetLoRA", "arXiv 2401.06432"),
    ("rolora", "RoLoRA", "arXiv 2502.01755"),
    ("scaffold", "SCAFFOLD", "arXiv 1910.06378"),
    ("fedavgm", "FedAvgM", "arXiv 1909.06335"),
    ("fedadam", "FedAdam", "arXiv 2003.00295"),
    ("fedyogi", "FedYogi", "arXiv 2003.00295"),
]

TOY = """
from typing import Literal

from perfit.methods import Method, MethodOptions


class Options(MethodOptions):
    name: Literal["{name}"] = "{name}"
    strength: float = 0.5


METHOD = Method("A toy", "none", Options)
"""
PARSE = """
from perfit.federation_file import parse_federation

def parse(method):
    return parse_federation(f"name: a\\nmodel: b\\nclients: [{{id: c, data: d.jsonl}}]\\nmethod: {{{method}}}\\n")
"""


def test_names_titles_and_papers():
    assert [(name, METHODS[name].title, METHODS[name].paper) for name, _, _ in TABLE] == TABLE


@pytest.mark.parametrize("name", METHODS)
def test_a_name_is_its_key_and_values_are_always_shared_both_ways(name):
    method = METHODS[name]
    assert method.name == name == method.options().name
    assert VALUES in method.uploads
    assert VALUES in method.downloads


def install(directory: Path, name: str) -> None:
    """Put a package with one method into a directory, as pip would."""
    (directory / "toy.py").write_text(TOY.format(name=name))
    information = directory / "toy-0.1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0.1\n")
    (information / "entry_points.txt").write_text(f"[perfit.methods]\n{name} = toy:METHOD\n")


def run(directory: Path, code: str) -> list[str]:
    """Run code in a fresh interpreter that has the directory's packages; return the lines that it prints."""
    paths = [str(directory), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines()


def test_a_package_adds_a_method(tmp_path):
    install(tmp_path, "toy")
    code = """
from perfit.methods import METHODS
spec = parse("name: toy, strength: 2")
print(*METHODS)
print(spec.algorithm.title, spec.method.strength)
try:
    parse("name: toy, mu: 1")
except ValueError as error:
    print(error.problem)
"""
    names, spec, problem = run(tmp_path, PARSE + code)
    assert set(names.split()) == {"toy", *METHODS}
    assert spec == "A toy 2.0"
    assert problem == "federation:4: method.mu: method toy has no option 'mu'; known keys: name, strength"


def test_a_package_does_not_replace_a_method_of_the_table(tmp_path):
    install(tmp_path, "fedit")
    code = "from perfit.methods import METHODS; print(METHODS['fedit'].title, parse('name: fedit').algorithm.title)"
    assert run(tmp_path, PARSE + code) == ["FedIT FedIT"]


def test_a_federation_imports_its_own_method_alone():
    (modules,) = run(Path(), f"{PARSE}import sys; parse('name: rolora'); print(*sys.modules)")
    own = {name for name in modules.split() if name.startswith("perfit.methods.")}
    assert own == {f"perfit.methods.{name}" for name in ("method", "perfit", "rolora")}
