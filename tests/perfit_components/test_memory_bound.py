"""A client whose memory runs out, in a process of its own with a real limit: it reports it and is not killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfit.protocol import ClientStatus, parse_outcome

from .running import Site

MIB = 2**20
CGROUPS = Path("/sys/fs/cgroup/memory")
BOUND = """
    import json, os, pathlib, resource, sys
    from perfit_components.steps import memory_bound
    from perfit_components.steps.failure import Failure, failure_as_record

    def limit(extra):
        '''What the process has, and so much more.'''
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        (data,) = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData")]
        file = pathlib.Path(sys.argv[1], "memory.max")
        file.write_text(f"{data + extra + memory_bound._RESERVE}\\n")
        memory_bound.CGROUP_LIMITS = (file,)
"""


def run(script: str, *arguments: object, enter: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own, in a cgroup if one is given."""

    def join() -> None:
        (enter / "cgroup.procs").write_text(str(os.getpid()))

    code = textwrap.dedent(BOUND) + textwrap.dedent(script)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, preexec_fn=join if enter else None)


@pytest.mark.parametrize("allocate", ["numpy.ones(n // 8)", "torch.ones(n // 4)", "bytearray(n)"])
def test_an_allocation_below_the_cgroups_limit_fails_and_is_caught(tmp_path, allocate):
    done = run(
        f"""
        import numpy, torch
        limit(200 << 20)
        with memory_bound.bounded_memory() as bound:
            n = 300 << 20
            failure = failure_as_record(lambda: {allocate})
            n = 100 << 20
            fits = failure_as_record(lambda: len({allocate}))
        after = resource.getrlimit(resource.RLIMIT_DATA)[0]
        print(json.dumps([failure.status, failure.reason, isinstance(fits, int), bound is not None, after]))
        """,
        tmp_path,
    )
    status, reason, fits, bounded, after = json.loads(done.stdout)
    assert (status, fits, bounded, after) == ("out_of_memory", True, True, -1), done.stderr
    assert reason.startswith("out of memory\n  fix: ")


def test_arrow_takes_no_more_than_it_needs(tmp_path):
    """Its own allocator reserves 1 GiB with the first byte."""
    done = run(
        """
        limit(300 << 20)
        with memory_bound.bounded_memory():
            import pyarrow
            pyarrow.allocate_buffer(1000)
            print(pyarrow.default_memory_pool().backend_name)
        """,
        tmp_path,
    )
    assert done.stdout == "system\n", done.stderr


@pytest.mark.parametrize("content", ["max\n", "9223372036854771712\n", None])
def test_without_a_limit_nothing_is_bounded(tmp_path, monkeypatch, content):
    from perfit_components.steps import memory_bound

    file = tmp_path / "memory.max"
    if content:
        file.write_text(content)
    monkeypatch.setattr(memory_bound, "CGROUP_LIMITS", (file,))
    with memory_bound.bounded_memory() as bound:
        assert bound is None


def test_a_client_without_enough_memory_leaves_a_record(make_site, tmp_path):
    """The other clients go on, and the round can be committed without it."""
    site: Site = make_site(training={"batch_size": 64, "sequence_length": 128}, participation={"minimum_clients": 1})
    site.prepare().planned(1)
    done = run(
        """
        import torch, transformers.trainer, peft, accelerate
        from perfit_components.steps.client import train
        limit(40 << 20)
        print(json.dumps(train(sys.argv[2], 1, sys.argv[3], threads=1).output))
        """,
        tmp_path,
        site.uri,
        site.name("ann"),
    )
    output = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, output["status"]) == (0, "out_of_memory"), done.stderr[-2000:]
    record = parse_outcome(site.store.read_record(site.context.store.read_head().place(1), "ann"))
    assert isinstance(record, ClientStatus)
    assert record.status == "out_of_memory"
    assert site.train_client("bob")["status"] == "trained"
    summary = site.aggregate(1)
    assert [(status.client, status.status) for status in summary.lost] == [("ann", "out_of_memory")]


def test_a_service_has_the_strictest_limit_of_the_cgroups_it_is_in(tmp_path, monkeypatch):
    """As systemd makes them: MemoryMax of a slice and of a service in it."""
    from perfit_components.steps import memory_bound

    service = tmp_path / "system.slice" / "perfit-client@hospital.service"
    service.mkdir(parents=True)
    (service / "memory.max").write_text(f"{64 * 1024 * MIB}\n")
    (service.parent / "memory.max").write_text(f"{32 * 1024 * MIB}\n")
    (own := tmp_path / "cgroup").write_text("0::/system.slice/perfit-client@hospital.service\n")
    monkeypatch.setattr(memory_bound, "CGROUP_LIMITS", (tmp_path / "memory.max",))
    monkeypatch.setattr(memory_bound, "OWN_CGROUPS", own)
    with memory_bound.bounded_memory() as bound:
        assert 30 * 1024 * MIB < bound < 32 * 1024 * MIB


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of this test's own that holds 600 MiB; only root may make one, and only version 1 here."""
    group = CGROUPS / f"perfit-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(600 * MIB))
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    yield group
    group.rmdir()


@pytest.mark.parametrize(("bound", "end"), [(True, "out_of_memory"), (False, "killed")])
def test_a_real_cgroup_kills_without_the_bound_and_not_with_it(cgroup, tmp_path, bound, end):
    done = run(
        f"""
        import contextlib, numpy
        with memory_bound.bounded_memory() if {bound} else contextlib.nullcontext():
            held = []
            result = failure_as_record(lambda: [held.append(numpy.ones(1 << 20)) for _ in range(1000)])
        print(result.status)
        """,
        tmp_path,
        enter=cgroup,
    )
    assert (done.stdout.strip() or ("killed" if done.returncode == -9 else done.stderr)) == end
