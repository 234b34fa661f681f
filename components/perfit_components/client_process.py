"""A client's part of a round as a process, as a TrainJob starts it: ``python -m perfit_components.client_process``.

Where a job has several processes, torchrun starts each so.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perfit_components.steps.client import TaskResult


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the client's part; the exit code is 0 whenever the outcome is in the store, whichever it is."""
    parser = argparse.ArgumentParser(prog="perfit_components.client_process", description=__doc__)
    parser.add_argument("--federation", required=True, help="its URI")
    parser.add_argument("--round", required=True, type=int, help="from 1")
    parser.add_argument("--name", required=True, help="of the client in the cluster, that of its Secret")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 for torch's own choice")
    given = parser.parse_args(arguments)
    result = _act(given.federation, given.round, given.name, given.threads)
    if result is None:
        return
    outcome = result.output
    print(f"{outcome['client']}: {outcome['status']} {outcome['reason']}".rstrip(), file=sys.stderr, flush=True)


def _act(uri: str, round: int, name: str, threads: int) -> TaskResult | None:
    """Do the part, alone or with the other processes; None if another process has the outcome."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from perfit_components.steps.job_process import train_together

        return train_together(uri, round, name, threads)

    from perfit_components.steps.client import train

    return train(uri, round, name, threads)


if __name__ == "__main__":
    main()
