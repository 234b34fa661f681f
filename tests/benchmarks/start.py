"""Start times: CPU and wall seconds of whole processes, the least of several, in turns.

    .venv/bin/python tests/benchmarks/start.py

The least is what a process costs with little beside it; docs/performance.md quotes it. What the commands read is a
federation of a toy model with one round. Python may keep what it compiles, as it does in the images.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.perfit.tiny import save_llama
from tests.perfit_components.running import Site, make_spec, write_data

TURNS = 10
_LOAD = "from perfit.federation_file import load_federation; load_federation({file!r})"
_LIBRARIES = """
import numpy, pydantic, yaml, blake3, ml_dtypes
class Empty(pydantic.BaseModel): pass
"""  # most of pydantic is imported where a model is made
_IMPORTS = {
    "import numpy": "import numpy",
    "numpy, pydantic, PyYAML, blake3, ml_dtypes, and an empty model of pydantic's": _LIBRARIES,
    "planning: the step imported, a federation file read": f"import perfit_components.steps.plan; {_LOAD}",
    "aggregating: the step imported, a federation file read": f"import perfit_components.steps.aggregate; {_LOAD}",
    "aggregating with its kernels": f"import perfit_components.steps.aggregate, perfit.kernels; {_LOAD}",
    "the command line imported": "import perfit_pipelines.cli",
}
_COMMANDS = {
    "perfit --version": ("--version",),
    "perfit init": ("init", "--force", "new.yaml"),
    "perfit list": ("list", "--store", "{store}"),
    "perfit status": ("status", "--store", "{store}"),
    "perfit status, this machine's own store": ("status",),
    "perfit validate": ("validate", "{file}"),
}


def main() -> None:
    """Measure, and print a table in Markdown."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        values = _federation(place)
        python = {name: (sys.executable, "-c", code.format_map(values)) for name, code in _IMPORTS.items()}
        command = str(Path(sys.executable).with_name("perfit"))
        perfit = {name: (command, *(part.format_map(values) for part in parts)) for name, parts in _COMMANDS.items()}
        measured: dict[str, list[tuple[float, float]]] = {}
        for _ in range(TURNS):
            for name, process in {**python, **perfit}.items():
                measured.setdefault(name, []).append(_measure(process, place))
    print("| process | CPU s | wall s |\n| --- | --- | --- |")
    for name, times in measured.items():
        cpu, wall = (min(column) for column in zip(*times, strict=True))
        print(f"| {name} | {cpu:.2f} | {wall:.2f} |")


def _federation(place: Path) -> dict[str, str]:
    """Run a round, in a store of its own and in that of ``PERFIT_HOME``; return what the commands name."""
    os.environ["PERFIT_HOME"] = str(place / "home")
    spec = make_spec(save_llama(place / "llama"), write_data(place / "data"), rounds=1)
    site = Site(spec, (place / "store").as_uri())
    site.run()
    file = place / "federation.yaml"
    file.write_text(spec.to_yaml())
    subprocess.run([Path(sys.executable).with_name("perfit"), "run", file, "--quiet"], cwd=place, check=True)
    return {"file": str(file), "store": site.store_uri}


def _measure(process: tuple[str, ...], place: Path) -> tuple[float, float]:
    """CPU seconds of a process and those that it waited for, and wall seconds."""
    start = time.perf_counter()
    with subprocess.Popen(process, cwd=place, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as running:
        _, status, used = os.wait4(running.pid, 0)
        wall = time.perf_counter() - start
        running.returncode = os.waitstatus_to_exitcode(status)
        if running.returncode:
            raise SystemExit(f"{process}: {running.stderr.read().decode()}")
    return used.ru_utime + used.ru_stime, wall


if __name__ == "__main__":
    main()
