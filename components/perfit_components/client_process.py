"""A client's part of a round as a process, as a TrainJob starts it: ``python -m perfit_components.client_process``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the client's part; the exit code is 0 whenever the outcome is in the store, whichever it is."""
    parser = argparse.ArgumentParser(prog="perfit_components.client_process", description=__doc__)
    parser.add_argument("--federation", required=True, help="its URI")
    parser.add_argument("--round", required=True, type=int, help="from 1")
    parser.add_argument("--name", required=True, help="of the client in the cluster, that of its Secret")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for torch's own choice")
    given = parser.parse_args(arguments)

    from perfit_components.steps.client import train

    outcome = train(given.federation, given.round, given.name, given.threads).output
    print(f"{outcome['client']}: {outcome['status']} {outcome['reason']}".rstrip(), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
