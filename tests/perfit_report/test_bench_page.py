"""A bench's page and tables from results written by hand."""

from __future__ import annotations

import csv
import io

from perfit.bench.comparison import compare
from perfit.bench.results import AnswerScores, CellResult, RecordCounts
from perfit_report.bench_page import bench_markdown, render_bench
from perfit_report.bench_tables import clients_csv, summary_csv, tables

from ..perfit.bench.helpers import by_client, make_bench, make_cell, make_result

BENCH = make_bench(
    methods={"fedit": {}, "local": {}, "lost": {"method": {"name": "fedit"}}},
    baselines=["local"],
    targets=[20, 12],
    rounds=2,
)


def results():
    cells = [make_cell(label) for label in BENCH.methods]
    scores = by_client([AnswerScores(records=2, exact_match=m, rouge_l=0.5) for m in (0.0, 0.5)])
    records = by_client([RecordCounts(train=n, held_out=9, held_out_tokens=1200, skipped=60 - n) for n in (4, 60)])
    found = [
        make_result(cells[0], [(20, 40), (10, 14)], shared=(9, 11), answers=scores, records=records),
        make_result(cells[1], [(22, 40), (13, 19)], shared=(13, 19), peak_memory=None),
        CellResult(job=cells[2].job, environment="torch 0", failure="the loss is nan | inf"),
    ]
    return compare(BENCH, cells, {cell.file: result for cell, result in zip(cells, found, strict=True)})


def rows(title: str) -> dict[str, tuple[str, ...]]:
    (table,) = (table for table in tables(results()) if table.title == title)
    return {row[0]: row[1:] for row in table.rows}


def test_perplexities_and_differences():
    found = rows("Perplexity")
    # Personal minus local's: -3 and -5 of two clients, drawn with replacement.
    assert found["fedit"] == ("-", "12.00", "14.00", "2.00", "10.00", "-4.00 [-5.00, -3.00]")
    assert found["local"] == ("-", "16.00", "19.00", "3.00", "16.00", "-")
    assert found["lost"] == ("failed", "-", "-", "-", "-", "-")


def test_a_note_says_how_few_records_a_client_has():
    (note,) = (table.note for table in tables(results()) if table.title == "Perplexity")
    assert "4 to 60 of each were trained on and 9 held out, with 1,200 response tokens; 0 to 56 were left out" in note


def test_gains_and_losses():
    found = rows("Gains and losses")
    # Personal 10 and 14, local's 13 and 19: ratios of 10/13 and 14/19.
    assert found["fedit"] == ("11.83", "-24.7% [-26.3%, -23.1%]", "0 of 2", "-23.1%")
    assert found["local"] == ("15.72", "-", "-", "-")
    assert found["lost"] == ("-", "-", "-", "-")


def test_rounds_costs_targets_answers_and_grids():
    assert rows("By round")["fedit"] == ("40.00", "10.00 / 30.00", "10.00 / 12.00")
    assert rows("Cost")["fedit"] == ("30", "400\u202fB", "200\u202fB", "3.0", "1.0\u202fMB")
    assert rows("Cost")["local"][-1] == "-"
    assert rows("Cost to reach a perplexity")["fedit"] == ("2", "600\u202fB", "1", "2", "600\u202fB", "1")
    assert rows("Cost to reach a perplexity")["local"] == ("2", "600\u202fB", "1", "-", "-", "0")
    assert rows("Answers")["fedit"] == ("0.250", "0.500")
    assert rows("Answers")["local"] == ("-", "-")
    assert rows("Grids")["lost"] == ("-", "failed: the loss is nan | inf", "no")


def test_markdown_keeps_its_columns():
    markdown = bench_markdown(results())
    assert "| lost | - | failed: the loss is nan \\| inf | no |" in markdown
    assert "owner/model · 2 clients, split by category, 2 a client · 2 rounds · seeds 0 · torch 0" in markdown


def test_csv_has_the_numbers():
    fedit, local, lost = csv.DictReader(io.StringIO(summary_csv(results())))
    assert (fedit["personal"], fedit["minus_local"], fedit["minus_local_low"]) == ("12.0", "-4.0", "-5.0")
    assert (fedit["pairs"], fedit["worse_than_local"], float(fedit["worst_ratio_to_local"])) == ("2", "0", 10 / 13)
    assert (local["peak_memory"], local["seeds_to_12"], lost["point"]) == ("", "0", "failed")
    lines = list(csv.DictReader(io.StringIO(clients_csv(results()))))
    assert [(line["train"], line["skipped"]) for line in lines[:2]] == [("4", "56"), ("60", "0")]
    assert [line["personal"] for line in lines[:4]] == ["20.0", "40.0", "10.0", "14.0"]
    assert lines[-1]["failure"] == "the loss is nan | inf"


def test_the_page_loads_nothing_and_is_the_same_again():
    page = render_bench(results())
    assert page == render_bench(results())
    assert "http:" not in page
    assert "https:" not in page
    assert page.count("<svg") == 3
    assert "<td>-4.00 [-5.00, -3.00]</td>" in page


def test_a_page_without_any_result():
    bench = make_bench(methods={"fedit": {}})
    cell = make_cell("fedit")
    failed = CellResult(job=cell.job, environment="torch 0", failure="<b>nan</b>")
    page = render_bench(compare(bench, [cell], {cell.file: failed}))
    assert "<svg" not in page
    assert "failed: &lt;b&gt;nan&lt;/b&gt;" in page
