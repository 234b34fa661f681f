"""Cells of a bench that other machines run: what they are sent through the store, and what comes back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from perfit.bench.portable import (
    MAX_RECORDS_BYTES,
    InvalidResult,
    file_sha256,
    portable,
    read_result,
    records_of,
    result_bytes,
)
from perfit.bench.results import CellResult
from perfit.bench.spec import Cell
from perfit.errors import PerfitError, printable
from perfit_pipelines.writing import write_file
from perfit_storage import BenchStore, UnreadableObject

_REASON = 2000
"""Characters of a reason that are shown."""


class RemoteCells:
    """Cells that are run elsewhere, and what of them is in the store.

    Args:
        cells: Those without a result here.
        directory: Where their results go.
        store: The bench's files.
    """

    def __init__(self, cells: Sequence[Cell], directory: Path, store: BenchStore):
        self._directory, self.store = directory, store
        files = dict.fromkeys(file for cell in cells for file in records_of(cell.job))
        digests = {file: file_sha256(file) for file in files}
        self._files = {digest: Path(file) for file, digest in digests.items()}
        self.cells = {cell.name: cell for cell in cells}
        self._jobs = {cell.name: portable(cell.job, digests) for cell in cells}
        self.refused: dict[str, str] = {}

    @property
    def missing(self) -> list[str]:
        """Names of the cells whose results are not here."""
        return [name for name, cell in self.cells.items() if not (self._directory / cell.file).exists()]

    def fetch(self) -> None:
        """Take the results that are in the store, as files of here; those that are none are refused, with a reason.

        Raises:
            PerfitError: The store cannot be read, or a file not be written.
        """
        there = self.store.results()
        for name in filter(there.__contains__, self.missing):
            try:
                result = self._read(name)
            except (UnreadableObject, InvalidResult) as error:
                self.refused[name] = f"{self.store.place_of_result(name)}: {error}"
                continue
            here = result.model_copy(update={"job": self.cells[name].job})
            write_file(self._directory / self.cells[name].file, here.model_dump_json(indent=1).encode())

    def send(self, names: Iterable[str]) -> None:
        """Put into the store what cells need, and remove what an earlier run has said of them.

        Raises:
            PerfitError: The store cannot be written, or a file of records is too large.
        """
        jobs = {name: self._jobs[name] for name in names}
        for digest in dict.fromkeys(file.partition(".")[0] for job in jobs.values() for file in records_of(job)):
            self.store.put_records(_records(self._files[digest]))
        for name, job in jobs.items():
            self.store.put_job(name, job.model_dump_json().encode())
            self.store.drop_failure(name)

    def _read(self, name: str) -> CellResult:
        data = self.store.find_result(name, result_bytes(self._jobs[name]))
        return read_result(data or b"", self._jobs[name])

    def reasons(self) -> Iterator[tuple[Cell, str]]:
        """Yield the cells whose results are not here, and why."""
        for name in self.missing:
            try:
                found = self.refused.get(name) or self.store.find_failure(name)
            except UnreadableObject as error:
                found = error.problem
            why = found or "its pod left neither a result nor a reason"
            yield self.cells[name], printable(why[:_REASON], keep="\n")


def _records(file: Path) -> bytes:
    if file.stat().st_size > MAX_RECORDS_BYTES:
        raise PerfitError(
            f"{file} is longer than the {MAX_RECORDS_BYTES:,} bytes that a cell's pod reads",
            "use more clients, or split.records",
        )
    return file.read_bytes()
