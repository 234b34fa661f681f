"""Where the seconds of `perfit run` go: those of each task, and those of the parts of a client's first task.

    python tests/benchmarks/local_run.py [FILE] [--cache DIRECTORY]

The federation runs twice in an empty directory; the second time everything is done. Then the first client's task of
round 1 runs alone, in this process, on one thread, under cProfile.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import json
import os
import pstats
import subprocess
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory

QUICKSTART = Path(__file__).parents[2] / "pipelines/examples/quickstart.yaml"
SITECUSTOMIZE = """
import atexit, json, os, sys, time
start = time.time()
def note():
    with open(os.environ["PERFIT_TASKS"], "a") as file:
        print(json.dumps([start, time.time() - start, time.process_time(), sys.orig_argv]), file=file)
atexit.register(note)
"""
"""What Python imports by itself in every process of a run."""
PREPARE = "import sys; from perfit_components.steps.prepare import prepare; prepare(sys.stdin.read(), sys.argv[1])"
PARTS = {
    "the model's files against model.json": ("checked_model", None),
    "loading model and tokenizer": ("load_prepared", None),
    "records": ("load_client_data", None),
    "search": ("search_architecture", None),
    "tuning": ("train", "run_client"),
    "held-out perplexity, three times": ("_held_out_perplexity", None),
}
"""Functions by what they do; with the caller where there are several."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, default=QUICKSTART)
    parser.add_argument("--cache", type=Path, help="of converted models; by default an empty one")
    arguments = parser.parse_args()
    with TemporaryDirectory() as scratch:
        os.environ["PERFIT_CACHE"] = str(arguments.cache or Path(scratch, "cache"))
        for run in ("first run", "second run"):
            print(f"{run}\n  wall s    CPU s", flush=True)
            time_tasks(arguments.file.absolute(), Path(scratch))
        print("a client's first task\n           CPU s", flush=True)
        time_parts(arguments.file, Path(scratch))


def time_tasks(file: Path, directory: Path) -> None:
    """Run a federation in a directory; print what each process took."""
    (directory / "sitecustomize.py").write_text(SITECUSTOMIZE)
    (directory / "tasks").write_text("")
    path = os.pathsep.join([str(directory), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PERFIT_TASKS": str(directory / "tasks"), "PYTHONPATH": path}
    command = [sys.executable, "-c", "from perfit_pipelines.cli import main; main()", "run", str(file)]
    subprocess.run(command, cwd=directory, env=environment, stdout=subprocess.DEVNULL, check=True)
    for _, wall, cpu, process in sorted(map(json.loads, (directory / "tasks").read_text().splitlines())):
        print(f"{wall:8.1f} {cpu:8.1f}  {name_of(process)}", flush=True)


def name_of(command: list[str]) -> str:
    """Return what a process did."""
    if "--executor_input" not in command:
        return "perfit run; its CPU seconds without its tasks'"
    inputs = json.loads(command[command.index("--executor_input") + 1])["inputs"]["parameterValues"]
    return " ".join([command[-1], *(str(inputs[key]) for key in ("round", "name") if key in inputs)])


def time_parts(file: Path, directory: Path) -> None:
    """Run the task; print what its parts took."""
    from perfit.federation_file import load_federation
    from perfit_components.steps.client import train

    spec, store, profile = load_federation(file), (directory / "store").as_uri(), cProfile.Profile(time.process_time)
    subprocess.run([sys.executable, "-c", PREPARE, store], input=spec.to_yaml(), text=True, check=True)
    start = time.process_time()
    importlib.import_module("perfit.client")
    print(f"{time.process_time() - start:17.1f}  imports of torch, transformers and PEFT")
    with profile, redirect_stdout(sys.stderr):
        train(f"{store}/federations/{spec.name}", 1, spec.secret_of(spec.clients[0]), threads=1)
    for what, (function, caller) in PARTS.items():
        print(f"{seconds(pstats.Stats(profile).stats, function, caller):17.1f}  {what}")


def seconds(stats: dict, function: str, caller: str | None) -> float:
    """Return the seconds in a function and what it called."""
    calls = [(callers, cumulative) for (*_, name), (*_, cumulative, callers) in stats.items() if name == function]
    if caller is None:
        return sum(cumulative for _, cumulative in calls)
    return sum(times[3] for callers, _ in calls for (*_, name), times in callers.items() if name == caller)


if __name__ == "__main__":
    main()
