"""Bench files: the cells that they name, the clients' files, and errors before anything is run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from perfit.bench.plan import plan_cells
from perfit.errors import PerfitError
from perfit.methods import METHODS

from .helpers import write_bench


def plan(directory: Path, **sections):
    return plan_cells(write_bench(directory, "owner/model", **sections), directory / "scratch")[1]


def read(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_cells_are_methods_by_points_by_seeds(tmp_path):
    cells = plan(
        tmp_path,
        methods={
            "fedit": None,
            "prox": {"method": {"name": "fedprox"}, "grid": {"method.mu": [0.1, 1], "lora.rank": [1]}},
        },
        grid={"lora.rank": [1, 2]},
        seeds=[3, 5],
    )
    assert [cell.title for cell in cells[:4]] == [
        "fedit, lora.rank=1, seed 3",
        "fedit, lora.rank=2, seed 3",
        "prox, lora.rank=1, method.mu=0.1, seed 3",
        "prox, lora.rank=1, method.mu=1, seed 3",
    ]
    assert [cell.seed for cell in cells] == [3] * 4 + [5] * 4
    spec = cells[3].job.spec
    assert (spec.method.name, spec.method.mu, spec.lora.rank, spec.lora.alpha) == ("fedprox", 1, 1, 4)
    assert (spec.training.seed, spec.training.steps, spec.rounds) == (3, 2, 1)
    assert len({cell.file for cell in cells}) == 8


def test_planning_again_gives_the_same_files_and_other_records_give_others(tmp_path):
    first = [cell.file for cell in plan(tmp_path)]
    assert [cell.file for cell in plan(tmp_path)] == first
    assert [cell.file for cell in plan(tmp_path, methods={"local": {}})] == first[1:]
    file = write_bench(tmp_path, "owner/model")
    data = tmp_path / "all.jsonl"
    data.write_text(data.read_text().replace("tea", "mint", 2))
    assert not set(first) & {cell.file for cell in plan_cells(file, tmp_path / "scratch")[1]}


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        ({"scheme": "iid", "clients": 3}, [8, 8, 8]),
        ({"scheme": "category", "clients": 2}, [12, 12]),
        ({"scheme": "category", "clients": 2, "records": 5}, [5, 5]),
        ({"scheme": "category", "clients": 1, "labels": ["tea"]}, [12]),
        ({"scheme": "user", "label": "author", "minimum": 8}, [8, 8, 8]),
        ({"scheme": "user", "label": "author", "minimum": 8, "clients": 2}, [8, 8]),
    ],
)
def test_each_split_gives_every_client_its_own_records(tmp_path, split, sizes):
    clients = plan(tmp_path, split=split)[0].job.spec.clients
    records = [[*read(client.data), *read(client.held_out)] for client in clients]
    assert [len(own) for own in records] == sizes
    if split["scheme"] == "user":
        assert [{record["author"] for record in own} for own in records] == [{"ann"}, {"bob"}, {"eve"}][: len(sizes)]
    if "labels" in split:
        assert {record["category"] for record in records[0]} == {"tea"}


def test_a_dirichlet_split_fills_clients_up_and_differs_by_seed(tmp_path):
    cells = plan(tmp_path, split={"scheme": "dirichlet", "clients": 3, "alpha": 0.5, "minimum": 5}, seeds=[0, 1])
    held_out = [[read(client.held_out) for client in cell.job.spec.clients] for cell in (cells[0], cells[-1])]
    assert held_out[0] != held_out[1]
    assert all(len(read(c.data)) + len(read(c.held_out)) >= 5 for cell in cells for c in cell.job.spec.clients)


SEARCH = {"name": "perfit", "search_steps": 4, "warmup_steps": 1, "pruning_iterations": 1}


def longer(label: str, **search: object) -> dict:
    """Entries of which one trains the steps of another's search."""
    entries = {"fedit": {}, "drawn": {"method": {"name": "perfit", "metric": "random"}}}
    return entries | {
        "search": {"method": {**SEARCH, **search}},
        "long": {"method": {"name": "local"}, "search_steps_of": label},
    }


@pytest.mark.parametrize(("search", "steps"), [({}, 2 + 2), ({"search_every": 2}, 2 + 3), ({"search_every": 1}, 2 + 6)])
def test_a_method_is_given_the_steps_of_anothers_search(tmp_path, search, steps):
    # 4 steps a search: one, two (after round 2 again) or four of them, over three rounds, rounded up.
    cells = plan(tmp_path, methods=longer("search", **search), rounds=3)
    assert {cell.label: cell.job.spec.training.steps for cell in cells} == {
        "fedit": 2,
        "drawn": 2,
        "search": 2,
        "long": steps,
    }


GRIDS = {"fedit": {"grid": {"training.learning_rat": [0.1]}}}
UNKNOWN_OPTION = {"prox": {"method": {"name": "fedprox"}, "grid": {"method.nu": [0.1]}}}
FEW = {"scheme": "iid", "clients": 9}


@pytest.mark.parametrize(
    ("sections", "problem"),
    [
        ({"methods": {"fedavg": {}}}, "method.name: there is no method 'fedavg'; use one of perfit, perfit-adaptive"),
        ({"methods": GRIDS}, "training.learning_rat: unknown key; did you mean 'learning_rate'?"),
        ({"methods": UNKNOWN_OPTION}, "method.nu: method fedprox has no option 'nu'; known keys: name, mu"),
        ({"methods": {"fedit": {"method": {"mu": 1}}}}, "method.mu: method fedit has no option 'mu'"),
        ({"methods": {"fedit": {"gird": {}}}}, "methods.fedit.gird: unknown key; did you mean 'grid'?"),
        ({"methods": {}}, "methods: Dictionary should have at least 1 item"),
        ({"grid": {"training.steps": [2, -1]}}, "training.steps: Input should be greater than or equal to 1"),
        ({"grid": {"training.steps": 2}}, "2 is not a list; write [2]"),
        ({"grid": {"training.steps": []}}, "training.steps has no values; give at least one"),
        ({"grid": {"training.steps": [2, 2]}}, "training.steps has a value twice; use each once"),
        ({"grid": {"rounds": [2]}}, "'rounds' cannot vary; use keys of method, lora, training"),
        ({"grid": {"training.seed": [2]}}, "'training.seed' cannot vary"),
        ({"training": {"seed": 1}}, "training.seed: has no effect here; list the seeds under `seeds`"),
        ({"seeds": [1, 1]}, "seeds: [1, 1] has a seed twice; use each once"),
        (
            {"methods": longer("none")},
            "methods.long.search_steps_of: 'none' is not among the methods fedit, drawn, search",
        ),
        ({"methods": longer("long")}, "'long' is not among the methods fedit, drawn, search"),
        ({"methods": longer("fedit")}, "methods.long.search_steps_of: clients of 'fedit' take no steps to search"),
        ({"methods": longer("drawn")}, "methods.long.search_steps_of: clients of 'drawn' take no steps to search"),
        ({"baselines": ["perfit"]}, "baselines: 'perfit' is not among the methods fedit, local"),
        ({"data": {"held_out_fraction": 0}}, "data.held_out_fraction: Input should be greater than 0, but it is 0"),
        ({"validation_fraction": 0}, "validation_fraction: Input should be greater than 0, but it is 0"),
        ({"split": {**FEW, "schema": 1}}, "split.schema: unknown key; did you mean 'scheme'?"),
        ({"split": {"scheme": "iid"}}, "iid: no number of clients"),
        ({"split": {"scheme": "iid", "clients": 25}}, "24 records: too few for 25 clients of at least 1 record(s)"),
        ({"split": FEW}, "seed 0: client-7 has 2 records: too few to train, to validate and to hold out"),
        (
            {"data": {"held_out_fraction": 0.95}},
            "seed 0: client-1 has 12 records: too few to train, to validate and to hold out",
        ),
        ({"split": {**FEW, "scheme": "category", "label": "kind"}}, "24 records have no text in the field 'kind'"),
        (
            {"split": {"scheme": "user", "label": "author", "clients": 4, "minimum": 3}},
            "3 of 3 users have at least 3 records, 4 are needed",
        ),
        ({"split": {"scheme": "user", "label": "author"}}, "0 of 3 users have at least 10 records, 1 are needed"),
        ({"participation": {"minimum_clients": 3}}, "participation.minimum_clients: 3 is more than the 2 clients"),
        ({"records": "none.jsonl"}, "none.jsonl: no such file"),
    ],
)
def test_problems_are_named_with_value_and_fix(tmp_path, sections, problem):
    with pytest.raises(PerfitError) as raised:
        plan(tmp_path, **sections)
    assert problem in raised.value.problem
    assert raised.value.fix


def test_errors_name_the_line_of_the_bench_file(tmp_path):
    file = write_bench(tmp_path, "owner/model", methods=UNKNOWN_OPTION)
    line = next(i for i, text in enumerate(file.read_text().splitlines(), start=1) if "method.nu" in text)
    with pytest.raises(PerfitError) as raised:
        plan_cells(file, tmp_path / "scratch")
    assert raised.value.problem.startswith(f"{file}:{line}: method.nu: ")


@pytest.mark.parametrize(
    ("text", "problem"), [("", "holds no keys"), ("- 1", "holds no keys"), ("a: [", "is not YAML")]
)
def test_a_file_that_is_no_bench_file(tmp_path, text, problem):
    (tmp_path / "bench.yaml").write_text(text)
    with pytest.raises(PerfitError, match=problem):
        plan_cells(tmp_path / "bench.yaml", tmp_path)


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        ("methods", 60),
        ("masks", 16),
        ("baselines-overlap", 36),
        ("baselines-category", 18),
        ("baselines-dirichlet", 20),
    ],
)
def test_the_committed_bench_files_are_valid(tmp_path, name, runs):
    tree = yaml.safe_load((Path(__file__).parents[2] / f"benchmarks/{name}.yaml").read_text())
    records = [
        {"instruction": f"{label} {i}?", "response": "Yes.", "category": label}
        for label in tree["split"]["labels"]
        for i in range(40)
    ]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "bench.yaml").write_text(yaml.safe_dump({**tree, "records": "all.jsonl"}))
    _, cells = plan_cells(tmp_path / "bench.yaml", tmp_path / "scratch")
    assert {cell.job.spec.method.name for cell in cells} <= set(METHODS)
    assert len(cells) == runs


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(PerfitError, match="cannot be read"):
        plan_cells(tmp_path / "none.yaml", tmp_path)
