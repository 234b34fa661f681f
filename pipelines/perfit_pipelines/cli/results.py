"""A federation's results: tables, adapters, report."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from perfit.errors import PerfitError
from perfit.report import last_tunings
from perfit_components.steps.client import ADAPTER_DIRECTORY
from perfit_components.steps.opening import read_federation
from perfit_components.steps.report import draw_report
from perfit_storage import FederationStore
from perfit_storage.files import write_atomically


def export_adapter(store: FederationStore, client: str, directory: Path) -> None:
    """Write a client's personal adapter as a directory that PEFT loads; an earlier export there is replaced.

    Raises:
        PerfitError: The client has no adapter, or the directory holds something else.
        StoreError: The store cannot be reached, or does not let this key read the client's files.
    """
    names = [name for name in store.list_client_files(client) if name.startswith(f"{ADAPTER_DIRECTORY}/")]
    if not names:
        spec = read_federation(store).spec
        raise PerfitError(
            f"client {client!r} of federation {spec.name!r} has no adapter yet",
            f"run a round with it; the clients are: {', '.join(c.id for c in spec.clients)}",
        )
    present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
    if directory.exists() and not (directory.is_dir() and (not present or "adapter_config.json" in present)):
        raise PerfitError(f"{directory} exists and holds no adapter", "give a new directory")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
        draft = Path(scratch, "adapter")
        draft.mkdir()
        for name in names:
            data = store.get_client_file(client, name)
            (draft / name.removeprefix(f"{ADAPTER_DIRECTORY}/")).write_bytes(data)
        if directory.exists():
            shutil.rmtree(directory)
        draft.rename(directory)


def write_report(store: FederationStore, target: Path) -> None:
    """Draw the report of all committed rounds into a file.

    Raises:
        PerfitError: No round is committed.
        StoreError: The store cannot be reached.
    """
    page = draw_report(read_federation(store), store.read_head().round)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(target, page.html.encode())


def client_table(summaries: Sequence[dict]) -> Table:
    """Return a table of the clients: perplexity on held-out records, budget and traffic of all rounds."""
    last_round = summaries[-1]["round"]
    title = f"Perplexity on held-out records, round {last_round} (round 0: the base model)"
    table = _table(title, "client", "rank", "budget", "round 0", "before", "after", "change", "MB up", "down", "status")
    traffic = _traffic(summaries)
    tunings = last_tunings(summaries)
    for client, record in tunings.items():
        perplexity = record["perplexity"]
        table.add_row(
            client,
            str(record["rank"]),
            f"{record['budget']:,}",
            *(f"{perplexity[key]:.2f}" for key in ("round_0", "before", "after")),
            f"{perplexity['after'] / perplexity['round_0'] - 1:+.0%}",
            *(f"{count / 1e6:.2f}" for count in traffic[client]),
            "ok" if record["round"] == last_round else f"last in {record['round']}",
        )
    for record in summaries[-1]["clients"]:
        if record["client"] not in tunings:
            table.add_row(record["client"], str(record["rank"]), *["-"] * 7, record["status"])
    return table


def round_table(summaries: Sequence[dict]) -> Table:
    """Return a table of the committed rounds."""
    table = _table("Committed rounds", "round", "clients", "perplexity before", "after", "status")
    for summary in summaries:
        trained = [record for record in summary["clients"] if record["status"] == "trained"]
        lost = [f"{r['client']} {r['status']}" for r in summary["clients"] if r["status"] != "trained"]
        means = [sum(r["perplexity"][key] for r in trained) / len(trained) for key in ("before", "after")]
        delivered = f"{len(trained)} of {len(summary['clients'])}"
        table.add_row(str(summary["round"]), delivered, *(f"{mean:.2f}" for mean in means), ", ".join(lost))
    return table


def _traffic(summaries: Sequence[dict]) -> dict[str, tuple[int, int]]:
    traffic: dict[str, tuple[int, int]] = {}
    for summary in summaries:
        for record in summary["clients"]:
            up, down = traffic.get(record["client"], (0, 0))
            traffic[record["client"]] = up + record.get("bytes_up", 0), down + record.get("bytes_down", 0)
    return traffic


def _table(title: str, *columns: str) -> Table:
    """A table that fits in 80 columns; numbers are aligned to the right."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in columns:
        table.add_column(column, justify="left" if column in ("client", "status") else "right", no_wrap=True)
    return table
