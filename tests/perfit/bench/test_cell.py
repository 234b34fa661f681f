"""A cell of a tiny model: what it trains on, what it measures, and what it leaves out."""

from __future__ import annotations

import numpy as np
import pytest

from perfit.bench import cell as cell_module
from perfit.bench.cell import run_cell
from perfit.bench.plan import plan_cells
from perfit.bench.results import CellResult, RecordCounts
from perfit.simulation import Simulation

from ..tiny import SEARCH
from .helpers import SECTIONS, write_bench


@pytest.fixture
def jobs(tiny_llama, tmp_path):
    """A function that returns the jobs of a bench."""

    def make(**sections):
        file = write_bench(tmp_path, tiny_llama, **sections)
        return [cell.job for cell in plan_cells(file, tmp_path / "scratch")[1]]

    return make


def test_a_cell_measures_every_client_in_every_round(jobs, tmp_path):
    methods = {"perfit": {"method": SEARCH}}
    (job,) = jobs(methods=methods, rounds=2, answers={"records": 1, "tokens": 3})
    seen = []
    result = run_cell(job, tmp_path, lambda number, found: seen.append((number, found)))
    assert [found for _, found in seen] == list(result.rounds)
    assert [number for number, _ in seen] == [1, 2]
    clients = {"client-1", "client-2"}
    for by_client in (result.records, result.trainable, result.start, result.validation, result.answers):
        assert by_client.keys() == clients
    for round in result.rounds:
        for by_client in (round.personal, round.shared, round.bytes_up, round.bytes_down, round.seconds):
            assert by_client.keys() == clients
    assert len(set(result.trainable.values())) == 1
    assert all(score.records == 1 for score in result.answers.values())
    assert result.failure is None
    assert result.peak_memory > 10_000_000
    assert CellResult.model_validate_json(result.model_dump_json()) == result


def test_records_that_do_not_fit_are_counted(jobs, tmp_path):
    training = {**SECTIONS["training"], "sequence_length": 24}
    (job,) = jobs(methods={"local": {}}, training=training, data={"bad_records": "skip"})
    # Of 12 records four prompts ("What is rice Paris?", "... five?", each twice) have 24 tokens, one of them held out;
    # one of the other seven for training is for validation. What is held out has 3 of 4 tokens left.
    expected = RecordCounts(train=6, held_out=1, held_out_tokens=3, skipped=4)
    assert run_cell(job, tmp_path).records["client-1"] == expected


def test_validation_records_are_neither_trained_on_nor_held_out(jobs, tmp_path):
    (job, _) = jobs()
    simulation, validation = cell_module.load(job, tmp_path)
    whole = Simulation.load(job.spec, tmp_path).data
    for client, data in simulation.data.items():
        chosen = validation[client].held_out
        # 12 records: 2 are held out, 2 of the other 10 are for validation.
        assert [len(part.lines) for part in (data.train, chosen, data.held_out)] == [8, 2, 2]
        assert sorted(data.train.lines + chosen.lines) == list(whole[client].train.lines)
        assert data.held_out == whole[client].held_out


def test_all_methods_of_a_seed_train_on_the_same_records(jobs, tmp_path):
    first, second = (cell_module.load(job, tmp_path)[0].data for job in jobs())
    assert {client: data.train.lines for client, data in first.items()} == {
        client: data.train.lines for client, data in second.items()
    }


def test_the_same_cell_gives_the_same_numbers_but_for_time_and_memory(jobs, tmp_path):
    def numbers(result: CellResult) -> dict:
        tree = result.model_dump(exclude={"peak_memory"})
        for round in tree["rounds"]:
            del round["seconds"]
        return tree

    (job, _) = jobs()
    assert numbers(run_cell(job, tmp_path)) == numbers(run_cell(job, tmp_path))


def test_a_client_that_has_not_taken_part_counts_with_the_base_model(jobs, tmp_path):
    (job,) = jobs(methods={"fedit": None}, participation={"fraction": 0.5}, exchange={"holders": 1})
    result = run_cell(job, tmp_path)
    (round,) = result.rounds
    (trained,) = round.seconds
    (idle,) = round.personal.keys() - {trained}
    assert round.bytes_up.keys() == round.bytes_down.keys() == {trained}
    np.testing.assert_allclose(round.personal[idle], result.start[idle])
    assert round.personal[trained] != result.start[trained]


def test_a_training_that_diverges_is_a_result(jobs, tmp_path):
    (job,) = jobs(methods={"fedit": None}, training={"steps": 3, "batch_size": 2, "learning_rate": 1e37})
    result = run_cell(job, tmp_path)
    assert "nan" in result.failure or "inf" in result.failure
    assert (result.rounds, result.validation) == ((), {})
