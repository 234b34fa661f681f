"""The command ``bench``: methods compared on one data set, each run in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perfit.errors import PerfitError
from perfit_pipelines import places
from perfit_pipelines.options import INTERRUPTED, errors, out
from perfit_pipelines.writing import write_file, writing

if TYPE_CHECKING:
    from perfit.bench.comparison import Comparison
    from perfit.bench.results import CellResult
    from perfit.bench.spec import Cell

_ERROR = "perfit.errors.PerfitError: "


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bench)


def bench(
    file: Annotated[Path, typer.Argument(help="Bench file (YAML); see docs/benchmarks.md.", show_default=False)],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Directory of the results; else a place of the user's own."),
    ] = None,
) -> None:
    """Compare methods on one data set; run again, it goes on with the first run that is not done."""
    from perfit.bench.comparison import compare
    from perfit.bench.plan import plan_cells

    plan, cells = plan_cells(file, places.bench())
    directory = places.bench() / plan.name
    try:
        results = _run_cells(cells, directory / "cells")
    except KeyboardInterrupt:
        errors.print("stopped; run the same command again to go on with the run that was interrupted", markup=False)
        raise typer.Exit(INTERRUPTED) from None
    write_comparison(compare(plan, cells, results), output or directory)


def _run_cells(cells: Sequence[Cell], directory: Path) -> dict[str, CellResult]:
    """Run the cells that have no file yet, one after another, and return the results of all by file."""
    from perfit.bench.results import CellResult

    pending = [cell for cell in cells if not (directory / cell.file).exists()]
    out.print(f"{len(cells)} runs, of which {len(cells) - len(pending)} are done", markup=False)
    if pending:
        _prepare(pending[0])
    directory.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(pending, start=1):
        out.print(f"run {number} of {len(pending)}: {cell.title}", markup=False)
        began = time.monotonic()
        _run(cell, directory)
        out.print(f"  {time.monotonic() - began:.0f} s", markup=False)
    return {cell.file: CellResult.model_validate_json((directory / cell.file).read_bytes()) for cell in cells}


def _prepare(cell: Cell) -> None:
    """Convert or download the model, so that it counts in no run's memory."""
    from perfit.models import prepare_model

    prepare_model(cell.job.spec.model, _cache())


def _run(cell: Cell, directory: Path) -> None:
    log = directory / f"{cell.file}.log"
    command = [sys.executable, "-m", "perfit.bench.cell", str(directory / cell.file), str(_cache())]
    with open(log, "w", encoding="utf-8") as file:
        code = subprocess.run(command, input=cell.job.model_dump_json().encode(), stderr=file, check=False).returncode
    if code:
        # A PerfitError is the last thing in the process's traceback.
        _, found, message = log.read_text(encoding="utf-8").rpartition(_ERROR)
        problem, _, fix = message.strip().rpartition("\n  fix: ") if found else (f"ended with code {code}", "", "")
        raise PerfitError(f"{cell.title}: {problem}", fix or f"look at {log}; run the same command again to go on")
    log.unlink()


def write_comparison(comparison: Comparison, directory: Path, json: bool = False) -> None:
    """Print the tables, or the numbers of each method as JSON; write them as HTML, Markdown and CSV."""
    from perfit_report.bench_page import bench_markdown, render_bench
    from perfit_report.bench_tables import clients_csv, summary_csv, summary_rows

    markdown = bench_markdown(comparison)
    pages = {
        "report.html": render_bench(comparison),
        "report.md": markdown,
        "summary.csv": summary_csv(comparison),
        "clients.csv": clients_csv(comparison),
    }
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        write_file(directory / name, text.encode())
    if json:
        print(dumps(summary_rows(comparison), indent=2, default=lambda number: number.item()))
        return
    out.print(f"\n{markdown}", markup=False)
    out.print(f"wrote {', '.join(pages)} in {directory}", markup=False)


def _cache() -> Path:
    return Path.home() / ".cache" / "perfit"
