"""The ``perfit`` command, as a person uses it."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from perfit.cluster_spec import ClusterSpec
from perfit.federation_file import load_federation
from perfit_pipelines import places
from perfit_storage import StoreError
from perfit_storage.local_server import find_weed

from ...perfit.tiny import save_gguf
from ...perfit_components.running import files, undated
from ..commands import perfit
from ..goldens import documents

READING = [
    ("status",),
    ("list",),
    ("delete", "tiny", "--yes"),
    ("report",),
    ("export", "ann", "adapter"),
    ("rollback", "0"),
]
"""Commands on a federation that exists."""
MODEL = yaml.safe_load((Path(places.__file__).parent / "federation.yaml").read_text())["model"]
RECORDS = [
    {"instruction": f"What is {topic} {n}?", "context": "", "response": f"{topic} {n}.", "category": topic}
    for topic in ("art", "bread", "cats")
    for n in range(6)
]


# init and validate


def test_the_template_is_valid_once_its_data_are_there(tmp_path):
    result = perfit("init", cwd=tmp_path)
    assert (result.code, result.out) == (
        0,
        "wrote federation.yaml; edit its clients, then: perfit validate federation.yaml\n",
    )
    for name in ("first", "second"):
        (tmp_path / f"{name}-owner.train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    result = perfit("validate", "federation.yaml", cwd=tmp_path)
    assert result.code == 0, result.err
    assert result.out.splitlines() == [
        f"model {MODEL}: 60 adapted modules",
        f"first-owner: {tmp_path}/first-owner.train.jsonl: 18 records",
        f"second-owner: {tmp_path}/second-owner.train.jsonl: 18 records",
        "federation.yaml is valid: perfit, 2 clients, 3 rounds",
    ]


def test_the_template_says_what_the_defaults_are(tmp_path):
    perfit("init", "f.yaml", cwd=tmp_path)
    tree = yaml.safe_load((tmp_path / "f.yaml").read_text())
    spec = load_federation(tmp_path / "f.yaml")
    needed = {key: tree[key] for key in ("name", "model", "clients")}
    defaults = ClusterSpec.model_validate(needed)
    for section in ("method", "training", "data", "participation", "aggregation", "exchange"):
        assert getattr(spec, section) == getattr(defaults, section), section
    # The expansion is 2 unless the file says otherwise, for methods that search; for others it may not be given.
    assert spec.lora.model_copy(update={"expansion": None}) == defaults.lora
    assert spec.expanded_lora.rank == defaults.expanded_lora.rank == 2 * defaults.lora.rank
    for section in ("method", "lora", "training", "data", "participation", "aggregation", "exchange"):
        assert set(tree[section]) == set(type(getattr(spec, section)).model_fields), section
    assert spec.rounds == defaults.rounds
    written = (tmp_path / "f.yaml").read_text()
    assert [key for key in ClusterSpec.model_fields if f"{key}:" not in written] == []


def test_init_overwrites_nothing_unasked(tmp_path):
    (tmp_path / "federation.yaml").write_text("mine")
    result = perfit("init", cwd=tmp_path)
    assert (result.code, result.err) == (
        1,
        "error: federation.yaml exists\n  fix: give another name, or --force to overwrite it\n",
    )
    assert (tmp_path / "federation.yaml").read_text() == "mine"
    assert perfit("init", "--force", cwd=tmp_path).code == 0
    assert "clients:" in (tmp_path / "federation.yaml").read_text()


def test_init_in_a_directory_that_does_not_exist(tmp_path):
    result = perfit("init", "none/f.yaml", cwd=tmp_path)
    assert (result.code, result.err.splitlines()[1]) == (1, "  fix: give a path in a directory that exists")


def test_validate_names_what_it_skips(make):
    home = make(
        data={"bad_records": "skip"},
        clients={
            "ann": {"tier": "strong", "held_out": "s3://bucket/ann.jsonl"},
            "bob": {"tier": "weak", "volume": "of-bob"},
        },
        store="s3://bucket",
    )
    home.edit("data: data/bob.jsonl", "data: /data/bob.jsonl")
    path = home.directory / "data/ann.jsonl"
    path.write_text('{"instruction": "no answer"}\n' + path.read_text() + "not JSON\n")
    result = home.perfit("validate", home.file)
    assert result.out.splitlines() == [
        f"model {home.site.spec.model}: 4 adapted modules",
        f"ann: {path}: 8 records",
        "  skipped line 1: no response",
        "  skipped line 10: not valid JSON (column 1: Expecting value)",
        "ann: s3://bucket/ann.jsonl is not on this machine and was not read",
        "bob: /data/bob.jsonl is on the volume of-bob and was not read",
        "store s3://bucket was not asked",
        f"{home.file} is valid as far as it can be known here: perfit, 2 clients, 2 rounds",
    ]


def test_validate_says_that_a_model_of_the_hub_is_not_here(home, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(home.directory / "empty"))
    home.edit(f"model: {home.site.spec.model}", "model: owner/name")
    *_, unknown, last = home.perfit("validate", "federation.yaml").out.splitlines()
    what = "modules, rank, memory and the lengths of prompts were not checked"
    assert unknown == f"model owner/name is not on this machine: {what}"
    assert last.startswith("federation.yaml is valid as far as it can be known here: ")


def test_validate_counts_what_is_cut(make):
    lines = make(training={"sequence_length": 28}).perfit("validate", "federation.yaml").out.splitlines()
    assert "records, 4 of them cut to the sequence length" in lines[1]


def test_a_relative_model_follows_the_file_as_data_do(home, tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, home.directory / "models/tiny")
    (tmp_path / "elsewhere").mkdir()
    for name in ("./models/tiny", "models/tiny", "models/../models/tiny/"):
        home.edit(f"model: {yaml.safe_load(home.file.read_text())['model']}", f"model: {name}")
        assert load_federation(home.file).model == f"{home.directory}/models/tiny"
        result = perfit("validate", home.file, cwd=tmp_path / "elsewhere")
        assert (result.code, result.out.splitlines()[0]) == (
            0,
            f"model {home.directory}/models/tiny: 4 adapted modules",
        )
    for name in ("owner/name", "owner/name@v1.0", "package:a/b/c.gguf"):
        home.edit(f"model: {yaml.safe_load(home.file.read_text())['model']}", f"model: {name}")
        assert load_federation(home.file).model == name


def test_validate_reads_a_gguf_file_without_converting_it(home, tiny_llama, monkeypatch):
    monkeypatch.setenv("PERFIT_CACHE", str(home.directory / "cache"))
    save_gguf(tiny_llama, home.directory / "tiny.gguf")
    home.edit(f"model: {tiny_llama}", "model: tiny.gguf")
    result = home.perfit("validate", "federation.yaml")
    assert result.code == 0, result.err
    assert result.out.startswith(f"model {home.directory}/tiny.gguf: 4 adapted modules\n")
    assert not (home.directory / "cache").exists()


@pytest.mark.parametrize(
    ("smoothness", "line"),
    [
        (3.0, "learning rate 0.01 is within the step size of Theorem 1, 0.0104"),  # 1 / (16 * 3 * 2 steps)
        (4.0, "learning rate 0.01 is above the step size of Theorem 1, 0.00781"),
    ],
)
def test_the_step_size_of_the_theorem(home, smoothness, line):
    assert line in home.perfit("validate", home.file, "--smoothness", smoothness).out.splitlines()


def test_a_smoothness_that_is_none(home):
    result = home.perfit("validate", home.file, "--smoothness", 0)
    assert (result.code, result.err) == (1, "error: the smoothness L is 0.0\n  fix: give a positive estimate\n")


def test_what_the_command_line_itself_gets_wrong(tmp_path):
    assert perfit("run", cwd=tmp_path).code == 2
    assert perfit("nonsense", cwd=tmp_path).code == 2


# compile


def test_compile_takes_the_store_of_the_file_or_the_one_given(home):
    result = home.perfit("compile", "federation.yaml", "-o", "tuning.yaml")
    assert (result.code, result.err) == (
        1,
        "error: federation.yaml names no store\n  fix: add `store: s3://bucket/prefix`, or give --store\n",
    )
    assert not (home.directory / "tuning.yaml").exists()
    home.file.write_text(home.file.read_text() + "store: s3://of-the-file\n")
    for name, options in [("a.yaml", []), ("b.yaml", ["--store", "s3://given"])]:
        result = home.perfit("compile", "federation.yaml", "-o", name, *options)
        assert result.code == 0, result.err
        assert result.out.startswith(f"wrote {name}")
    defaults = [
        documents(home.directory / name)[0]["root"]["inputDefinitions"]["parameters"]["store"]["defaultValue"]
        for name in ("a.yaml", "b.yaml")
    ]
    assert defaults == ["s3://of-the-file", "s3://given"]


def test_compile_one_round_with_other_images(home):
    options = ["--pipeline", "federated_round", "--client-image", "r/client:2", "--server-image", "r/server:2"]
    home.perfit("compile", "federation.yaml", "-o", "round.yaml", "--store", "s3://bucket", *options)
    pipeline, _ = documents(home.directory / "round.yaml")
    assert pipeline["pipelineInfo"]["name"] == "federated-round"
    executors = pipeline["deploymentSpec"]["executors"].values()
    assert {executor["container"]["image"] for executor in executors} == {"r/client:2", "r/server:2"}


def test_compile_says_of_a_file_that_is_too_long_for_the_form_of_the_ui(home):
    clients = [{"id": f"c-{n:03}", "tier": "strong", "data": f"s3://data/{n:03}.jsonl"} for n in range(200)]
    home.file.write_text(yaml.safe_dump({**yaml.safe_load(home.file.read_text()), "clients": clients}))
    command = ("compile", "federation.yaml", "-o", "round.yaml", "--pipeline", "federated_round")
    result = home.perfit(*command, "--store", "s3://bucket")
    assert result.code == 0, result.err
    assert re.search(r"the federation file has 1\d,\d{3} bytes, and the UI's form can send 10,000 ", result.err)
    assert (home.directory / "round.yaml").is_file()


def test_compile_into_a_directory_that_does_not_exist(home):
    there = files(home.directory)
    result = home.perfit("compile", "federation.yaml", "-o", "none/tuning.yaml", "--store", "s3://bucket")
    assert result.code == 1
    assert "none/tuning.yaml cannot be written" in result.err
    assert files(home.directory) == there


# What a finished federation shows


def test_run_shows_every_stage_and_where_things_are(finished):
    out = finished.result.out
    lines = out.splitlines()
    assert lines[0] == f"federation tiny: perfit, store {finished.home.site.store_uri}"
    shown = [line.partition(", loss ")[0] for line in lines if ", loss " in line]
    own = [("searched, 3 steps", 1), ("trained, 2 steps", 1), ("trained, 2 steps", 2)]  # a search in its first round
    for client in ("ann", "bob"):
        stages = [f"round {round}/2  {client}  {stage}" for stage, round in own]
        assert [line for line in shown if f"  {client}  " in line] == stages
    assert len(shown) == 6
    assert [line for line in lines if line.endswith((" report", "converted)"))] == [
        "preparing the federation (the first time, the model is converted)",
        *[f"round {round}/2  averaging the updates and drawing the report" for round in (1, 2)],
    ]
    rows = {line.split()[0]: line.split() for line in lines if line.startswith((" ann", " bob"))}
    records = finished.home.site.summary(2).trained
    assert [record.client for record in records] == ["ann", "bob"]
    for record in records:
        values = record.perplexity
        assert rows[record.client][1:6] == [
            str(record.rank),
            f"{record.budget:,}",
            *(f"{value:.2f}" for value in (values.round_0, values.before, values.after)),
        ]
    assert lines[-2].startswith("adapters: results/adapters/<client>")
    assert lines[-1] == "report:   results/report.html"


def test_run_leaves_adapters_and_report(finished):
    here = files(finished.home.results)
    stored = files(finished.home.site.root)
    for client in ("ann", "bob"):
        weights = "adapter_model.safetensors"
        assert here[f"adapters/{client}/{weights}"] == stored[f"clients/{client}/adapter/{weights}"]
        assert here[f"adapters/{client}/README.md"].startswith(b"---")
    assert here["report.html"] == stored["rounds/2/report.html"]
    assert "run.log" in here


def test_status(finished):
    result = finished.home.stored("status")
    head = finished.home.site.store.read_head()
    lines = result.out.splitlines()
    assert lines[0] == f"{finished.home.site.uri}: round 2 committed, global adapter digest {head.adapter.digest[:12]}"
    rounds = [line.split() for line in lines if line.split()[1:4] == ["2", "of", "2"]]
    assert [row[0] for row in rounds] == ["1", "2"]
    assert [line for line in lines if line.startswith(" ann")]


def test_status_of_a_federation_without_a_round(home):
    home.site.prepare()
    committed, planned = home.stored("status").out.splitlines()
    assert ": round 0 committed, " in committed
    assert planned == "round 1 is not committed: 0 of 2 clients have a result so far"


def test_a_store_without_federations_or_with_several(home):
    result = home.stored("status")
    assert (result.code, result.err.splitlines()[1]) == (
        1,
        "  fix: run one first: perfit run FILE; or name the store that has one with --store",
    )
    site = home.site.prepare()
    home.edit("name: tiny", "name: small")
    home.site.prepare()
    result = home.stored("status")
    assert (result.code, result.err.splitlines()) == (
        1,
        [
            f"error: the store {site.store_uri} holds the federations small, tiny",
            "  fix: name one with --federation",
        ],
    )
    assert home.stored("status", "-f", "tiny").out.startswith(f"{site.uri}: round 0")
    assert "holds no federation 'none'" in home.stored("status", "-f", "none").err


def test_list_and_delete(home):
    for name in ("tiny", "small"):
        home.site.prepare()
        home.edit(f"name: {name}", "name: small" if name == "tiny" else "name: tiny")
    rows = [line.split() for line in home.stored("list").out.splitlines()[2:]]
    assert [row for row in rows if len(row) == 5][1:] == [[name, "perfit", "2", "0", "2"] for name in ("small", "tiny")]
    small = files(home.directory / "store/federations/small")
    result = home.stored("delete", "tiny", "--yes")
    assert (result.code, result.out.startswith(f"deleted {home.site.uri}: ")) == (0, True)
    assert files(home.directory / "store/federations") == {f"small/{key}": data for key, data in small.items()}
    assert home.stored("status").out.startswith(f"{home.site.store_uri}/federations/small: ")
    assert home.stored("delete", "tiny", "--yes").code == 1


def test_report(finished, tmp_path):
    target = tmp_path / "new" / "report.html"
    result = finished.home.stored("report", "-o", target)
    beside = ["report.html", "report-data.json", "report-rounds.csv", "report-clients.csv"]
    written = ", ".join(str(target.with_name(name)) for name in beside)
    assert (result.code, result.out) == (0, f"wrote {written}\n")
    stored = files(finished.home.site.root)["rounds/2/report.html"].decode()
    assert undated(target.read_text()) == undated(stored)


def test_a_report_with_another_ending_has_nothing_beside_it(finished, tmp_path):
    result = finished.home.stored("report", "-o", tmp_path / "page.json")
    assert (result.code, result.out) == (0, f"wrote {tmp_path / 'page.json'}\n")
    assert [path.name for path in tmp_path.iterdir()] == ["page.json"]
    assert (tmp_path / "page.json").read_text().startswith("<!doctype html>")


def test_a_report_of_no_round(home):
    home.site.prepare()
    result = home.stored("report")
    assert (result.code, result.err) == (
        1,
        "error: federation 'tiny' has no committed round yet\n  fix: run a round first\n",
    )
    assert not (home.directory / "report.html").exists()


# data partition


@pytest.mark.parametrize(
    ("scheme", "options"),
    [
        ("iid", []),
        ("category", ["--categories-per-client", 2]),
        ("dirichlet", ["--alpha", 0.3]),
        ("user", ["--label", "category", "--minimum", 6]),
    ],
)
def test_a_split_data_set_makes_a_valid_federation(tmp_path, scheme, options):
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    arguments = ["all.jsonl", "parts", "--clients", 3, "--scheme", scheme, "--seed", 1, *options]
    result = perfit("data", "partition", *arguments, cwd=tmp_path)
    assert result.code == 0, result.err
    (tmp_path / "f.yaml").write_text("name: split\nmodel: owner/model\n" + result.out)
    spec = load_federation(tmp_path / "f.yaml")
    assert [client.id for client in spec.clients] == ["client-1", "client-2", "client-3"]
    assert perfit("validate", "f.yaml", cwd=tmp_path).code == 0
    paths = [Path(path) for client in spec.clients for path in (client.data, client.held_out)]
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    assert sorted(records, key=json.dumps) == sorted(RECORDS, key=json.dumps)

    before = files(tmp_path)
    again = perfit("data", "partition", *arguments, cwd=tmp_path)
    assert (again.code, files(tmp_path)) == (1, before)
    assert "already holds client-1.train.jsonl" in again.err
    again = perfit("data", "partition", *arguments, "--overwrite", cwd=tmp_path)
    assert (again.code, again.out, files(tmp_path)) == (0, result.out, before)


def test_a_split_by_a_field_that_is_missing(tmp_path):
    records = [{**RECORDS[0]}, {key: value for key, value in RECORDS[1].items() if key != "category"}]
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = perfit("data", "partition", "all.jsonl", "parts", "--clients", 1, "--scheme", "category", cwd=tmp_path)
    assert (result.code, result.err.splitlines()[0]) == (
        1,
        "error: all.jsonl: 1 records have no text in the field 'category', the first in line 2",
    )
    assert not (tmp_path / "parts").exists()


def test_a_split_without_a_number_of_clients(tmp_path):
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    result = perfit("data", "partition", "all.jsonl", "parts", cwd=tmp_path)
    assert (result.code, result.err) == (
        1,
        "error: iid: no number of clients\n  fix: say how many clients there are\n",
    )
    users = perfit("data", "partition", "all.jsonl", "parts", "--scheme", "user", cwd=tmp_path)
    assert (users.code, users.out.count("- id: ")) == (0, 3)


def test_more_clients_than_records(tmp_path):
    (tmp_path / "all.jsonl").write_text("".join(json.dumps(record) + "\n" for record in RECORDS[:3]))
    result = perfit("data", "partition", "all.jsonl", "parts", "--clients", 3, cwd=tmp_path)
    assert (result.code, result.err.splitlines()[0]) == (
        1,
        "error: client client-1: 1 usable record(s): too few to train on one and hold out another",
    )
    assert not (tmp_path / "parts").exists()


# A store of one's own


def test_without_a_store_the_command_keeps_an_s3_server_of_its_own(home):
    try:
        find_weed()
    except StoreError as error:
        pytest.skip(str(error))
    directory = home.directory / ".perfit/s3"
    no_federation = (
        "holds no federation\n  fix: run one first: perfit run FILE; or name the store that has one with --store\n"
    )
    for command in READING:
        result = home.perfit(*command)
        assert (result.code, result.err) == (1, f"error: the store of this machine, {directory}, {no_federation}")
    assert not directory.parent.exists()
    home.edit("rounds: 2", "rounds: 1")
    result = home.perfit("run", home.file)
    assert result.code == 0, result.err
    assert result.out.startswith(f"federation tiny: perfit, store s3://perfit in {directory}\n")
    assert result.out.endswith(f"report:   {directory.parent}/federations/tiny/report.html\n")
    assert (directory / "users.json").stat().st_mode & 0o777 == 0o600
    listed = home.perfit("list").out.strip().splitlines()
    assert (listed[0], listed[-1].split()) == (f"store s3://perfit in {directory}", ["tiny", "perfit", "2", "1", "1"])
    status = home.perfit("status").out
    assert status.startswith(f"s3://perfit/federations/tiny in {directory}: round 1 committed, ")
    result = home.perfit("status", "-f", "small")
    assert (result.code, result.err) == (
        1,
        f"error: the store s3://perfit in {directory} holds no federation 'small'\n  fix: it holds: tiny\n",
    )
    deleted = home.perfit("delete", "tiny", "--yes").out.splitlines()
    assert deleted[0].startswith(f"deleted s3://perfit/federations/tiny in {directory}: ")
    assert deleted[1:] == [f"what runs left stays in {directory.parent}/federations/tiny"]
    assert home.perfit("list").out == f"the store s3://perfit in {directory} holds no federation\n"


def test_commands_that_read_make_nothing_in_a_store_that_does_not_exist(home):
    nothing = f"the store file://{home.directory}/none holds no federation"
    for command in READING:
        result = home.perfit(*command, "--store", (home.directory / "none").as_uri())
        if command == ("list",):
            assert (result.code, result.out) == (0, f"{nothing}\n")
        else:
            assert result.code == 1
            assert result.err.startswith(f"error: {nothing}")
    assert not (home.directory / "none").exists()
    assert not (home.directory / ".perfit").exists()


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"PERFIT_HOME": "/given"}, "/given"),
        ({"PERFIT_HOME": "relative"}, "{cwd}/relative"),
        ({"XDG_DATA_HOME": "/data"}, "/data/perfit"),
        ({"XDG_DATA_HOME": "relative"}, "{home}/.local/share/perfit"),
        ({}, "{home}/.local/share/perfit"),
    ],
)
def test_where_a_user_has_everything(tmp_path, monkeypatch, variables, place):
    monkeypatch.chdir(tmp_path)
    for name in ("PERFIT_HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert str(places.home()) == place.format(cwd=tmp_path, home=Path.home())


def test_federations_of_one_name_in_two_stores_leave_their_results_in_two_places():
    places_of_results = {places.results("tiny", store) for store in (None, "s3://a", "s3://b")}
    assert len(places_of_results) == 3
    assert {path.parent for path in places_of_results} == {places.home() / "federations"}


def test_a_reports_numbers_are_beside_its_page(trained, tmp_path):
    result = trained.stored("report", "-o", tmp_path / "page.html")
    assert result.code == 0, result.err
    assert {path.name for path in tmp_path.iterdir()} == {
        "page.html",
        "page-data.json",
        "page-rounds.csv",
        "page-clients.csv",
    }
    printed = trained.stored("report", "--json").out
    assert printed == (tmp_path / "page-data.json").read_text()
    rounds = json.loads(printed)["rounds"]
    assert [of["round"] for of in rounds] == [1, 2]
    assert all(0 <= of["seconds"] < 3600 for of in rounds)
    assert "Took" in (tmp_path / "page.html").read_text()
