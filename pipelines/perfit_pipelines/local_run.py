"""A compiled pipeline on this machine, through KFP's own local runner."""

from __future__ import annotations

import builtins
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING

import psutil

from perfit.cluster_spec import ClusterSpec, Tier
from perfit.errors import PerfitError
from perfit_components.log_lines import ErrorFinder, plain
from perfit_components.steps.prepare import AS_IN_FILE

if TYPE_CHECKING:
    from kfp.dsl.base_component import BaseComponent

_KILL_AGAIN_S = 0.02


def run_locally(
    spec: ClusterSpec,
    store: str,
    environment: Mapping[str, str],
    directory: Path,
    on_line: Callable[[str], None],
    first: int = 1,
    method: str = AS_IN_FILE,
) -> None:
    """Run a federation's tuning pipeline to its end: each task in its own process, with this interpreter.

    Nothing is left in the system's directory of temporary files, also after an error or Ctrl-C.

    Args:
        spec: The federation.
        store: URI of the store.
        environment: Added to the tasks' environment: the credentials of the store.
        directory: For KFP's artifacts and the log, ``run.log``.
        on_line: Called with every line that the tasks print.
        first: The first round, where those before it are known to be committed.
        method: Another method than the file's, by which the federation has a directory of its own in the store.

    Raises:
        PerfitError: A task failed; with the task's own error where it is a PerfitError or StoreError.
    """
    directory.mkdir(parents=True, exist_ok=True)
    errors = ErrorFinder()

    def listen(line: str) -> None:
        errors.read(line)
        on_line(line)

    log = directory / "run.log"
    with (
        open(log, "w", encoding="utf-8") as file,
        TemporaryDirectory(prefix="perfit-", ignore_cleanup_errors=True) as scratch,
        _settings({**environment, "TMPDIR": scratch}),
        redirect_stdout(_OutputLog(file, listen)) as output,
        _interruptible(output),
    ):
        try:
            _call_pipeline(spec, store, first, method, directory / "kfp", Path(scratch, "workspace"))
        except RuntimeError as error:
            # KFP's message names the failed task; ours says why it failed.
            message = errors.last or f"a task failed: {plain(str(error))}"
            problem, separator, fix = message.rpartition("\n  fix: ")
            raise PerfitError(problem or message, fix if separator else f"look at the end of {log}") from error


def without_cluster(spec: ClusterSpec) -> ClusterSpec:
    """Return a federation without those settings of a cluster that KFP's local runner would not ignore.

    An authority's certificate becomes an environment variable, and a TrainJob another component.
    """
    cluster = spec.cluster.model_copy(update={"store_ca": None})
    tiers = {name: _as_pods(tier) if tier.is_job else tier for name, tier in spec.tiers.items()}
    return spec.model_copy(update={"cluster": cluster, "tiers": tiers})


def _as_pods(tier: Tier) -> Tier:
    accelerator = tier.accelerator and tier.accelerator.model_copy(update={"divide": "layers"})
    return tier.model_copy(update={"runner": "pod", "nodes": 1, "accelerator": accelerator})


def _call_pipeline(spec: ClusterSpec, store: str, first: int, method: str, root: Path, workspace: Path) -> None:
    from kfp import local

    from perfit_pipelines.pipelines import Part, federated_tuning

    with warnings.catch_warnings():
        # KFP warns that a local run uses no image, no resource limit and no display name.
        for category in (RuntimeWarning, UserWarning):
            warnings.filterwarnings("ignore", category=category, module="kfp")
        runner = local.SubprocessRunner(use_venv=False)
        local.init(runner, pipeline_root=str(root), workspace_root=str(workspace))
        pipeline = federated_tuning(without_cluster(spec), store, part=Part(first))
        wait_last(pipeline)
        pipeline(federation_file=spec.to_json(), method=method)


def wait_last(pipeline: BaseComponent) -> None:
    """Let clients here train before remote ones are waited for: KFP's local runner runs one task after the other."""
    for component in pipeline.pipeline_spec.components.values():
        if "wait" in component.dag.tasks:
            others = [name for name in component.dag.tasks if name != "wait"]
            component.dag.tasks["wait"].dependent_tasks.extend(others)


@contextmanager
def _settings(environment: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for child processes, and undo what the runner leaves changed in this process."""
    before, original_print = dict(os.environ), builtins.print
    # The tasks call `python3`: make it this interpreter. HF's progress bars would swamp the log.
    # In a notebook's pod, tasks are no run of the cluster, and its account may do what a run's may not.
    os.environ.pop("KUBERNETES_SERVICE_HOST", None)
    os.environ.update(environment, HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="error")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        builtins.print = original_print


@contextmanager
def _interruptible(output: _OutputLog) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the tasks that run and those that wait: KFP's runner would start these first.

    Tasks are killed, since every one may be, at any time: a model that is loading takes seconds to notice a signal.
    Whatever a task's thread does next is to print, and that raises then.
    """
    stops = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in stops.items() if callable(handler)}  # not ignored, nor the default
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    others = {child.pid for child in psutil.Process().children()}
    over = threading.Event()

    def kill() -> None:
        while not over.wait(_KILL_AGAIN_S):  # a task may just be starting
            for child in psutil.Process().children():
                if child.pid not in others:
                    _kill_tree(child)

    def interrupt(number, frame) -> None:
        if not output.interrupted:
            output.interrupted = True
            threading.Thread(target=kill, daemon=True).start()
        before[number](number, frame)

    for number in before:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _kill_tree(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()


class _OutputLog:
    """Standard output of a local run: every line goes to a log file and to a listener.

    KFP's runner prints the tasks' output from several threads, in pieces; lines are put together by thread.

    Attributes:
        interrupted: Set it, and every further write raises KeyboardInterrupt.
    """

    encoding = "utf-8"
    interrupted = False

    def __init__(self, file: IO[str], on_line: Callable[[str], None]):
        self._file, self._on_line = file, on_line
        self._pending = threading.local()
        self._lock = threading.Lock()

    def write(self, text: str) -> int:
        """Take a piece of output."""
        if self.interrupted:
            raise KeyboardInterrupt
        *lines, self._pending.text = (getattr(self._pending, "text", "") + text).split("\n")
        with self._lock:
            for line in lines:
                self._file.write(plain(line) + "\n")
                self._on_line(line)
        return len(text)

    def flush(self) -> None:
        """Flush the log file."""
        self._file.flush()

    def isatty(self) -> bool:
        """Return False: a log file has no colours."""
        return False
