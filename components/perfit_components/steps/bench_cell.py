"""A cell of a bench in a pod: from its job in the store to its result there."""

from __future__ import annotations

import traceback
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from perfit.bench.portable import MAX_JOB_BYTES, MAX_RECORDS_BYTES, read_job, unpacked
from perfit.bench.process import run_in_process
from perfit.bench.results import CellResult
from perfit.bench.spec import Job
from perfit.errors import PerfitError, printable
from perfit_components.steps.context import model_cache, store_patience
from perfit_storage import BenchStore


def run(bench: str, cell: str, threads: int) -> dict[str, str]:
    """Run a cell, unless its result is there. The outcome is in the store, never an exception: others would stop too.

    Args:
        bench: URI of the bench.
        cell: The cell's name.
        threads: CPU threads, where the job leaves them to torch.

    Returns:
        The output of the cell's task.
    """
    try:
        _run(BenchStore.at(bench, store_patience()), cell, threads)
    except PerfitError as error:
        reason = str(error)
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}\n  fix: look at the log of its pod"
    else:
        return {"cell": cell, "status": "done", "reason": ""}
    print(printable(f"{cell} failed: {reason}", keep="\n"), flush=True)
    with suppress(PerfitError):
        BenchStore.at(bench).put_failure(cell, reason)
    return {"cell": cell, "status": "failed", "reason": reason}


def _run(store: BenchStore, cell: str, threads: int) -> None:
    if store.has_result(cell):
        return
    from perfit.models import prepare_model  # imported only now: a cell that is done needs no torch

    sent = read_job(store.read_job(cell, MAX_JOB_BYTES), cell.rpartition(".")[2])
    prepare_model(sent.spec.model, model_cache())  # here, so that it counts in no cell's memory
    with TemporaryDirectory() as directory:
        job, files = unpacked(sent, Path(directory))
        for file, digest in files.items():
            file.write_bytes(store.read_records(digest, MAX_RECORDS_BYTES))
        result = _measure(job, Path(directory, "result.json"), threads)
    store.create_result(cell, result.model_copy(update={"job": sent}).model_dump_json().encode())


def _measure(job: Job, target: Path, threads: int) -> CellResult:
    """Run a cell in a process of its own, as on the machine of who compares, so that memory means the same."""
    try:
        run_in_process(job, target, model_cache(), threads, "the log of its pod")
    except PerfitError:
        print(printable(target.with_name(f"{target.name}.log").read_text(encoding="utf-8"), keep="\n"), flush=True)
        raise
    return CellResult.model_validate_json(target.read_bytes())
