"""The ``perfit`` command in this process, and federations for it to run."""

from __future__ import annotations

import io
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from perfit.federation_file import load_federation
from perfit_pipelines import cli

from ..perfit_components.running import TWO_TIERS, Site, make_spec, write_data


@dataclass(frozen=True)
class Result:
    """A command's exit code and output."""

    code: int
    out: str
    err: str


def perfit(*arguments: str | Path, cwd: Path) -> Result:
    """Run the ``perfit`` command in a directory, with its own files below it."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setenv("PERFIT_HOME", str(cwd / ".perfit"))
        patch.setattr(sys, "argv", ["perfit", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return Result(ended.value.code or 0, out.getvalue(), err.getvalue())


@dataclass(frozen=True)
class Home:
    """A directory with a federation file, its data and a store."""

    directory: Path

    @property
    def file(self) -> Path:
        return self.directory / "federation.yaml"

    @property
    def results(self) -> Path:
        """Where a run on the store here leaves its results."""
        return self.directory / "results"

    @property
    def site(self) -> Site:
        return Site(load_federation(self.file), (self.directory / "store").as_uri())

    def perfit(self, *arguments: str | Path) -> Result:
        """Run the command here."""
        return perfit(*arguments, cwd=self.directory)

    def stored(self, command: str, *arguments: str | Path) -> Result:
        """Run a command on the store here."""
        output = ("--output", self.results.name) if command == "run" else ()
        return self.perfit(command, *arguments, *output, "--store", self.site.store_uri)

    def edit(self, old: str, new: str) -> None:
        """Replace text that occurs exactly once in the federation file."""
        text = self.file.read_text()
        assert text.count(old) == 1, text
        self.file.write_text(text.replace(old, new))


def make_home(directory: Path, model: str, **sections) -> Home:
    """Write a federation file and its data; the data's paths are relative to it, as people write them."""
    spec = make_spec(model, write_data(directory / "data"), **{**TWO_TIERS, **sections})
    tree = spec.model_dump(mode="json", exclude_defaults=True)
    for client in tree["clients"]:
        client["data"] = f"data/{client['id']}.jsonl"
    home = Home(directory)
    home.file.write_text(yaml.safe_dump(tree, sort_keys=False))
    return home
