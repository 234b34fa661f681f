"""What a local run takes from its tasks' output: whole lines, and the error of a failed task."""

from __future__ import annotations

import io
import os
import threading

from perfit_components.log_lines import ErrorFinder, parse_task
from perfit_pipelines.local_run import _OutputLog, _settings

# As KFP 2.17 printed it when no client of a federation delivered (inputs left out, paths shortened).
FAILED_TASK = """\
21:37:02.906 - INFO - Executing task \x1b[96m'aggregate'\x1b[0m
21:37:02.906 - INFO - Streamed logs:

    [KFP Executor 2026-11-22 21:37:02,960 INFO]: Got executor_input:
    0 of 1 clients delivered
      ann: /data/ann.jsonl: no such file
      fix: check the path
    Traceback (most recent call last):
      File "<frozen runpy>", line 198, in _run_module_as_main
      File "<frozen runpy>", line 88, in _run_code
      File "/site-packages/kfp/dsl/executor_main.py", line 109, in <module>
        executor_main()
      File "/site-packages/kfp/dsl/executor_main.py", line 101, in executor_main
        output_file = executor.execute()
                      ^^^^^^^^^^^^^^^^^^
      File "/site-packages/kfp/dsl/executor.py", line 453, in execute
        result = self.func(**func_kwargs)
                 ^^^^^^^^^^^^^^^^^^^^^^^^
      File "/tmp/a/ephemeral_component.py", line 42, in aggregate
        closed = close_round(federation, round, tiers if plan_next else [])
      File "/work/perfit_components/steps/aggregate.py", line 180, in _check_quorum
        raise PerfitError(
    perfit.errors.PerfitError: round 1 is not committed: 0 of 1 clients delivered. Without an update:
      ann (failed): /data/ann.jsonl: no such file
      fix: check the path
      fix: repair these clients and run again (those that delivered do not train again), or lower minimum_clients

21:37:03.192 - ERROR - Task \x1b[96m'aggregate'\x1b[0m finished with status \x1b[91mFAILURE\x1b[0m
"""


def test_a_task_in_a_line():
    assert parse_task(FAILED_TASK.splitlines()[0]) == "aggregate"
    assert parse_task("Task 'aggregate' finished with status FAILURE") is None


def test_lines_of_interleaved_threads_stay_whole():
    file, lines = io.StringIO(), []
    log = _OutputLog(file, lines.append)
    turns = threading.Barrier(4)

    def speak(name: str) -> None:
        for number in range(50):
            turns.wait()
            log.write(f"{name} ")
            turns.wait()
            log.write(f"{number}")
            log.write("\n")

    threads = [threading.Thread(target=speak, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(lines) == sorted(f"{name} {number}" for name in "abcd" for number in range(50))
    assert file.getvalue().splitlines() == lines


def test_a_piece_may_hold_several_lines():
    file, lines = io.StringIO(), []
    log = _OutputLog(file, lines.append)
    assert log.write("one\ntwo\nthr") == 11
    assert lines == ["one", "two"]
    log.write("ee\x1b[91m!\x1b[0m\n")
    assert lines[2] == "three\x1b[91m!\x1b[0m"
    assert file.getvalue() == "one\ntwo\nthree!\n"
    assert not log.isatty()


def test_the_error_of_a_task_is_found_whole():
    finder = ErrorFinder()
    for line in FAILED_TASK.splitlines():
        finder.read(line)
    problem, _, fix = finder.last.rpartition("\n  fix: ")
    assert problem == (
        "round 1 is not committed: 0 of 1 clients delivered. Without an update:\n"
        "  ann (failed): /data/ann.jsonl: no such file\n"
        "  fix: check the path"
    )
    assert (
        fix == "repair these clients and run again (those that delivered do not train again), or lower minimum_clients"
    )


def test_errors_that_are_not_ours_are_left():
    finder = ErrorFinder()
    for line in FAILED_TASK.replace("perfit.errors.PerfitError", "ValueError").splitlines():
        finder.read(line)
    assert finder.last == ""


def test_a_local_run_in_a_pod_is_no_run_of_the_cluster(monkeypatch):
    """Prepare would ask Kubernetes what a notebook's account may do."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
    with _settings({"AWS_REGION": "eu-west-1"}):
        assert "KUBERNETES_SERVICE_HOST" not in os.environ
        assert os.environ["AWS_REGION"] == "eu-west-1"
    assert os.environ["KUBERNETES_SERVICE_HOST"] == "10.96.0.1"
