"""What can be checked of a federation before anything runs."""

from __future__ import annotations

from perfit.errors import PerfitError
from perfit.federation_file import is_local
from perfit.records import check_records
from perfit.spec import Client, Federation


def check_data(spec: Federation) -> list[str]:
    """Read all client data that lie on this machine.

    Returns:
        A line a client: how many records it has, and which were skipped.

    Raises:
        PerfitError: Files are missing or records cannot be used; every client with such data is named.
    """
    lines, problems, fixes = [], [], []
    for client in spec.clients:
        for uri in filter(None, (client.data, client.held_out)):
            try:
                lines.append(_check_source(spec, client, uri))
            except PerfitError as error:
                problems.append(f"client {client.id}: {error.problem}")
                fixes.append(error.fix)
    if problems:
        raise PerfitError("\n".join(problems), "; ".join(dict.fromkeys(fixes)))
    return lines


def _check_source(spec: Federation, client: Client, uri: str) -> str:
    if not is_local(uri):
        return f"{client.id}: {uri} is not on this machine and was not read"
    checked = check_records(uri, spec.data.bad_records)
    if len(checked.usable) < 2 and not client.held_out:
        raise PerfitError(f"{uri}: one record, of which none can be held out", "give more records, or held_out records")
    skipped = "".join(f"\n  skipped line {line}: {reason}" for line, reason in checked.skipped)
    return f"{client.id}: {uri}: {len(checked.usable)} records{skipped}"
