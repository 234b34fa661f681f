"""The examples in the docstrings of functions for researchers."""

from __future__ import annotations

import sys
from doctest import DocTestFinder, DocTestRunner

import pytest

from perfit.aggregation import aggregate
from perfit.bench.answers import rouge_l
from perfit.export import peft_files
from perfit.partition import by_category, by_user, dirichlet, iid, partition_records
from perfit.simulation import simulate
from perfit.spec import FederationSpec


@pytest.fixture(scope="session")
def names(tiny_llama, tmp_path_factory) -> dict[str, str]:
    """The names that the examples use: a model's directory, two files of records and a directory for others."""
    from .tiny import write_records

    directory = tmp_path_factory.mktemp("examples")
    for client in ("north", "south"):
        write_records(directory / f"{client}.jsonl", client, 6)
    sources = {client: str(directory / f"{client}.jsonl") for client in ("north", "south")}
    return {"model": tiny_llama, "directory": str(directory / "split"), **sources}


@pytest.mark.parametrize(
    "function",
    [
        simulate,
        FederationSpec.replace,
        aggregate,
        iid,
        by_category,
        dirichlet,
        by_user,
        partition_records,
        peft_files,
        rouge_l,
    ],
    ids=lambda function: function.__name__,
)
def test_the_examples_are_true(function, names):
    module = vars(sys.modules[function.__module__])
    (examples,) = DocTestFinder(recurse=False).find(function, function.__name__, globs={**module, **names})
    assert examples.examples
    output: list[str] = []
    failed = DocTestRunner().run(examples, out=output.append).failed
    assert not failed, "".join(output)
