"""The example notebook: executed with other parameters by a test, with its own to renew its outputs.

``python tests/notebook.py`` executes it as it is, which takes minutes, and writes its outputs into it.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "pipelines/examples/compare-methods.ipynb"
EXECUTED = "executed_sources_sha256"
"""The key of the notebook's metadata that names the sources its outputs are of."""


def read(parameters: str | None = None) -> nbformat.NotebookNode:
    """Read the notebook, with other code in its cell of parameters."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if parameters is not None:
        (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        cell.source = parameters
    return notebook


def execute(notebook: nbformat.NotebookNode) -> None:
    """Run all cells in a kernel of its own, in the notebook's directory; an error in a cell is one here."""
    place = {"metadata": {"path": str(NOTEBOOK.parent)}}
    NotebookClient(notebook, timeout=None, record_timing=False, resources=place).execute()


def sources_sha256(notebook: nbformat.NotebookNode) -> str:
    """Hash the code that outputs follow from."""
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()


def renew() -> None:
    """Execute the notebook with its own parameters, and write it."""
    notebook = read()
    execute(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":  # without libraries' warnings, which differ between machines
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, EXECUTED: sources_sha256(notebook)}
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    renew()
