"""What people expect of any command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

import perfit as package

from ...perfit_components.running import files
from ..commands import perfit
from ..terminal import COMMAND, perfit_in_terminal

COMMANDS = ["run", "status", "export", "chat", "serving", "data partition", "schedule create", "deploy", "doctor"]


def test_the_version(tmp_path):
    assert perfit("--version", cwd=tmp_path).out == f"perfit {package.__version__}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_by_its_short_name(command, tmp_path):
    short = perfit(*command.split(), "-h", cwd=tmp_path)
    assert (short.code, short.out) == (0, perfit(*command.split(), "--help", cwd=tmp_path).out)
    assert short.out.lstrip().startswith("Usage: ")


def test_colours_are_for_terminals(tmp_path):
    with perfit_in_terminal("status", cwd=tmp_path) as terminal:
        assert terminal.end() == 1
    assert "error: the store of this machine, " in terminal.shown
    assert "\x1b[1;31merror:\x1b[0m" in terminal.raw
    environment = {**os.environ, "TERM": "xterm-256color", "PERFIT_HOME": str(tmp_path / ".perfit")}
    piped = subprocess.run([*COMMAND, "status"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert piped.stderr.startswith("error: the store of this machine, ")
    assert "\x1b" not in piped.stderr


def test_the_shells_completion():
    """As bash asks for it after installation."""
    environment = {"_PERFIT_COMPLETE": "complete_bash", "COMP_WORDS": "perfit ex", "COMP_CWORD": "1", "HOME": "/tmp"}
    code = "import sys; sys.argv = ['perfit']; from perfit_pipelines.cli import app; app(prog_name='perfit')"
    paths = {"PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment | paths, capture_output=True, text=True)
    assert done.stdout.split() == ["export"], done.stderr


def test_status_for_programs(trained):
    told = json.loads(trained.stored("status", "--json").out)
    head = trained.site.store.read_head()
    assert (told["federation"], told["method"], told["committed"], told["rounds"]) == ("tiny", "perfit", 2, 2)
    assert told["global_adapter_digest"] == head.adapter.digest
    assert told["rolled_back_to"] == []
    assert told["summaries"] == [trained.site.summary(n).model_dump(mode="json") for n in (1, 2)]


def test_a_list_for_programs(trained):
    assert json.loads(trained.stored("list", "--json").out) == [
        {
            "federation": "tiny",
            "uri": trained.site.uri,
            "method": "perfit",
            "clients": 2,
            "committed": 2,
            "rounds": 2,
        }
    ]


def test_a_validation_for_programs(home):
    home.edit(home.site.spec.model, "owner/not-here")
    told = json.loads(home.perfit("validate", "federation.yaml", "--json").out)
    assert told.pop("checked") == [
        f"{client}: {home.directory}/data/{client}.jsonl: {count} records" for client, count in (("ann", 8), ("bob", 5))
    ]
    (unknown,) = told.pop("unknown")
    assert unknown.startswith("model owner/not-here is not on this machine: ")
    assert told == {"federation": "tiny", "step_size_limit": None}


def test_a_log_for_programs(tmp_path):
    log = tmp_path / ".perfit/federations/tiny/run.log"
    log.parent.mkdir(parents=True)
    step = "[perfit] round=2 client=ann step=1/3 loss=0.5000"
    lines = ["Ready.", step, "[perfit] round=2 client=ann phase=evaluating"]
    log.write_text("".join(f"{line}\n" for line in lines))
    told = [json.loads(line) for line in perfit("logs", "--json", cwd=tmp_path).out.splitlines()]
    assert told == [
        {"text": lines[0]},
        {"text": lines[1], "round": 2, "client": "ann", "step": 1, "steps": 3, "loss": 0.5},
        {"text": lines[2], "round": 2, "client": "ann", "phase": "evaluating"},
    ]


def test_the_log_of_a_run(tmp_path):
    result = perfit("logs", cwd=tmp_path)
    assert (result.code, result.err.splitlines()[1]) == (1, "  fix: run a federation first: perfit run FILE")
    log = tmp_path / ".perfit/federations/tiny/run.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\ntwo\nthree\n")
    assert perfit("logs", cwd=tmp_path).out == perfit("logs", "tiny", cwd=tmp_path).out == "one\ntwo\nthree\n"
    assert perfit("logs", "-n", 2, cwd=tmp_path).out == "two\nthree\n"
    result = perfit("logs", "other", cwd=tmp_path)
    assert (result.code, result.err.splitlines()[1]) == (1, "  fix: name one: perfit logs tiny")
    log.parent.rename(log.parent.with_name("tiny.0123abcd"))  # as a run on a store that it was given leaves it
    assert perfit("logs", "tiny", cwd=tmp_path).out == "one\ntwo\nthree\n"


def test_a_log_that_grows(tmp_path):
    """Its last line is half written when it is read; what a pipe gets is not held back."""
    log = tmp_path / ".perfit/federations/tiny/run.log"
    log.parent.mkdir(parents=True)
    log.write_text("one\n[perfit] round=2 client=ann st")
    environment = {**os.environ, "PERFIT_HOME": str(tmp_path / ".perfit"), "PYTHONUNBUFFERED": ""}
    command = [*COMMAND, "logs", "--follow", "--json", "-n", "2"]  # the last lines are known when all has been read
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == '{"text": "one"}\n'
            with open(log, "a") as file:
                file.write("ep=1/3 loss=0.5000\ntwo\n")
            step = json.loads(process.stdout.readline())
            assert step["text"] == "[perfit] round=2 client=ann step=1/3 loss=0.5000"
            assert (step["step"], step["loss"]) == (1, 0.5)
            assert process.stdout.readline() == '{"text": "two"}\n'
        finally:
            process.kill()


# what is not installed

WITHOUT = """
import sys
from importlib.abc import MetaPathFinder

absent = sys.argv.pop(1)

class Without(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
from perfit_pipelines.cli import main
main()
"""


@pytest.mark.parametrize(
    ("absent", "extra"),
    [
        ("kfp", "pipelines"),
        ("kfp_server_api", "local"),
        ("perfit_pipelines.cluster.schedule", None),
        ("unicodedata", None),
    ],
)
def test_a_package_that_is_not_installed(absent, extra, tmp_path):
    """Where only some extras are installed; nothing to install brings a module of our own, or of Python's."""
    command = [sys.executable, "-c", WITHOUT, absent, "schedule", "list", "--host", "http://127.0.0.1:9"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (1, "")
    if extra is None:
        assert f"ModuleNotFoundError: No module named '{absent}'" in result.stderr
    else:
        fix = f"  fix: pip install 'perfit-kubeflow[{extra}]'"
        assert result.stderr.splitlines() == [f"error: {absent} is not installed", fix]


# run


def test_a_dry_run_starts_nothing(make):
    home = make(rounds=3)
    there = files(home.directory)
    result = home.stored("run", home.file, "--dry-run", "--set", "training.steps=7", "--method", "fedit")
    assert (result.code, result.out.splitlines()) == (
        0,
        [
            f"federation tiny.fedit: fedit, store {home.site.store_uri}",
            "would run rounds 1 to 3: 2 clients a round, 7 steps each",
        ],
    ), result.err
    assert files(home.directory) == there


def test_a_dry_run_makes_no_store(home):
    result = home.perfit("run", home.file, "--dry-run")
    assert (result.code, result.out.splitlines()) == (
        0,
        [
            f"federation tiny: perfit, store of this machine, in {home.directory}/.perfit",
            "would run rounds 1 to 2: 2 clients a round, 2 steps each, and 2 searches of 3 steps",
        ],
    ), result.err
    assert not (home.directory / ".perfit").exists()


def test_a_dry_run_reads_the_records(make):
    home = make(participation={"minimum_clients": 2})
    (home.directory / "data/ann.jsonl").write_text("not JSON\n")
    result = home.stored("run", home.file, "--dry-run")
    assert (result.code, result.err.startswith("error: client ann: ")) == (1, True)


def test_another_method_and_another_value_without_a_word(home):
    result = home.stored("run", home.file, "--method", "fedit", "--set", "rounds=1", "--quiet")
    assert (result.code, result.out, result.err) == (0, "", "")
    assert home.stored("status", "-f", "tiny.fedit").out.splitlines()[0].partition(": ")[2].startswith("round 1 ")
    assert (home.results / "adapters/bob/README.md").is_file()
    assert not home.site.root.exists()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            ["--set", "training.steps=many"],
            "--set training.steps=many: training.steps: Input should be a valid integer",
        ),
        (["--method", "fedavg"], "the federation file with method fedavg"),
    ],
)
def test_what_is_wrong_with_a_runs_options(home, options, problem):
    result = home.stored("run", home.file, *options)
    assert (result.code, result.err.startswith(f"error: {problem}")) == (1, True), result.err
