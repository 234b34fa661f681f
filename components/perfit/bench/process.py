"""A cell in a process of its own, here or in a pod."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from perfit.bench.spec import Job
from perfit.errors import PerfitError

_ERROR = "perfit.errors.PerfitError: "


def run_in_process(
    job: Job, target: Path, cache: Path, threads: int | None = None, log_name: str | None = None
) -> None:
    """Run a cell to its end; its lines go to this process's output.

    Args:
        job: What to run.
        target: File of the result. What the libraries say goes to ``<target>.log``, which stays after a failure.
        cache: Where converted models are kept.
        threads: CPU threads where the job leaves them to torch; None for its own choice.
        log_name: What an error calls the log; None for its path.

    Raises:
        PerfitError: The process ended without a result.
    """
    log = target.with_name(f"{target.name}.log")
    command = [sys.executable, "-m", "perfit.bench.cell", str(target), str(cache)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)} if threads and not job.threads else None
    with open(log, "w", encoding="utf-8") as file:
        text = job.model_dump_json().encode()
        code = subprocess.run(command, input=text, stderr=file, env=environment, check=False).returncode
    if code:
        # A PerfitError is the last thing in the process's traceback.
        _, found, message = log.read_text(encoding="utf-8").rpartition(_ERROR)
        ended = f"ended with code {code}" + (", as where memory runs out" if code == -signal.SIGKILL else "")
        problem, _, fix = message.strip().rpartition("\n  fix: ") if found else (ended, "", "")
        raise PerfitError(problem, fix or f"look at {log_name or log}; run the same command again to go on")
    log.unlink()
