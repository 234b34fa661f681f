"""Federation files, valid and invalid: every error names line, key and fix."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
import yaml

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.federation_file import is_local, load_federation, parse_federation
from perfit.methods import METHODS

MINIMAL = """\
name: notes
model: some/model
clients:
  - id: ann
    data: ann.jsonl
  - id: bob
    data: bob.jsonl
"""
PERFIT_INIT = "`perfit init FILE` writes a commented federation file"
SEGMENT = "is not a safe name: use lower-case letters, digits and inner hyphens, 63 characters at most"
QUANTITY = "is not a Kubernetes quantity such as 2, 500m or 16Gi"


def message_of(text: str) -> str:
    with pytest.raises(PerfitError) as caught:
        parse_federation(text, "f.yaml")
    return str(caught.value)


def test_a_minimal_file():
    federation = parse_federation(MINIMAL)
    assert [client.id for client in federation.clients] == ["ann", "bob"]
    assert (federation.method.name, federation.lora.rank, federation.rounds) == ("perfit", 8, 3)


# Lines added to the minimal file (the first is line 8): valid ones, and invalid ones with their message.
@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        (
            "training: {steps: 5}",
            "training:\n  batch_size: 2\n  stpes: 5",
            "f.yaml:10: training.stpes: unknown key; did you mean 'steps'?",
        ),
        ("rounds: 2", "round: 2", "f.yaml:8: round: unknown key; did you mean 'rounds'?"),
        (
            "store: file:///tmp",
            "zebra: 1",
            f"f.yaml:8: zebra: unknown key; known keys: {', '.join(ClusterSpec.model_fields)}",
        ),
        (
            "tiers: {default: {accelerator: {count: 1}}}",
            "tiers:\n  default:\n    accelerator: {cuont: 1}",
            "f.yaml:10: tiers.default.accelerator.cuont: unknown key; did you mean 'count'?",
        ),
        (
            "tiers: {default: {}, cpu: {memory: 2Gi}}",
            "tiers:\n  default: {}\n  cpu: {memroy: 2Gi}",
            "f.yaml:10: tiers.cpu.memroy: unknown key; did you mean 'memory'?",
        ),
        (
            "rounds: 3",
            "rounds: three",
            "f.yaml:8: rounds: Input should be a valid integer, unable to parse string as an integer, "
            "but it is 'three'",
        ),
        ("rounds: 1", "rounds: 0", "f.yaml:8: rounds: Input should be greater than or equal to 1, but it is 0"),
        (
            "method: {name: fedit}",
            "method:\n  name: fedavg",
            f"f.yaml:9: method.name: there is no method 'fedavg'; use one of {', '.join(METHODS)}",
        ),
        (
            "method: {name: fedit}",
            "method:\n  name: [fedit]",
            f"f.yaml:9: method.name: there is no method ['fedit']; use one of {', '.join(METHODS)}",
        ),
        (
            "method: {name: fedit}",
            "method: fedit",
            "f.yaml:8: method: 'fedit' is not a section; write {name: fedit}",
        ),
        (
            "method: {name: fedit}",
            "method: 5",
            "f.yaml:8: method: 5 is not a section; write the method's name as {name: perfit}",
        ),
        (
            "method: {name: perfit, metric: taylor}",
            "method:\n  name: fedit\n  metric: taylor",
            "f.yaml:10: method.metric: method fedit has no option 'metric'; known keys: name",
        ),
        (
            "exchange: {holders: 2}",
            "exchange:\n  holders: 3",
            "f.yaml:9: exchange.holders: 3 is more than the 2 clients that take part in a round, which would exchange "
            "nothing; lower it, add clients, or raise participation.fraction",
        ),
        (
            "exchange: {holders: 1}",
            "exchange:\n  holders: 0",
            "f.yaml:9: exchange.holders: Input should be greater than or equal to 1, but it is 0",
        ),
        (
            "exchange: {dtype: int8}",
            "exchange:\n  dtype: int4",
            "f.yaml:9: exchange.dtype: Input should be 'float32', 'bfloat16', 'float16' or 'int8', but it is 'int4'",
        ),
        (
            "exchange: {top: 1}",
            "exchange:\n  top: 1.5",
            "f.yaml:9: exchange.top: Input should be less than or equal to 1, but it is 1.5",
        ),
        (
            "exchange: {top: 0.01}",
            "exchange:\n  top: 0",
            "f.yaml:9: exchange.top: Input should be greater than 0, but it is 0",
        ),
        (
            "method: {name: fedit}\nexchange: {top: 0.5}",
            "method: {name: scaffold}\nexchange:\n  top: 0.5",
            "f.yaml:10: exchange.top: 0.5 does not fit method scaffold, whose clients also upload control; "
            "leave it out",
        ),
        (
            "exchange: {masks_first: true}",
            "exchange:\n  mask_first: true",
            "f.yaml:9: exchange.mask_first: unknown key; did you mean 'masks_first'?",
        ),
        (
            "exchange: {dtype: bfloat16}",
            "wire_dtype: bfloat16",
            f"f.yaml:8: wire_dtype: unknown key; known keys: {', '.join(ClusterSpec.model_fields)}",
        ),
        (
            "method: {search_steps: 10}",
            "method:\n  search_step: 10",
            "f.yaml:9: method.search_step: method perfit has no option 'search_step'; did you mean 'search_steps'?",
        ),
        (
            "method: {name: fedprox, mu: 0}",
            "method:\n  name: fedprox\n  mu: -1",
            "f.yaml:10: method.mu: Input should be greater than or equal to 0, but it is -1",
        ),
        (
            "lora: {expansion: 3}",
            "method: {name: fedit}\nlora:\n  expansion: 3",
            "f.yaml:10: lora.expansion: 3 has no effect on method fedit, whose clients do not search; leave it out",
        ),
        (
            "training: {learning_rate: 1e-3}",
            "training:\n  learning_rate: -1",
            "f.yaml:9: training.learning_rate: Input should be greater than 0, but it is -1",
        ),
        (
            "lora: {target_modules: [q_proj]}",
            "lora:\n  target_modules: []",
            "f.yaml:9: lora.target_modules: name at least one module, each once, or all-linear",
        ),
        (
            "lora: {target_modules: all-linear}",
            "lora:\n  target_modules: [q_proj, q_proj]",
            "f.yaml:9: lora.target_modules: name at least one module, each once, or all-linear",
        ),
        (
            "participation: {minimum_clients: 2}",
            "participation:\n  minimum_clients: 3",
            "f.yaml:9: participation.minimum_clients: 3 is more than the 2 clients; lower it or add clients",
        ),
        (
            "method: {search_steps: 20, warmup_steps: 5, pruning_iterations: 15}",
            "method: {search_steps: 20, warmup_steps: 5, pruning_iterations: 16}",
            "f.yaml:8: method: 16 pruning iterations do not fit in the 15 of 20 search steps that follow the "
            "warm-up: raise search_steps or lower pruning_iterations or warmup_steps",
        ),
        (
            "tiers: {default: {cpu: 500m, memory: 1.5Gi}}",
            "tiers:\n  default:\n    memory: 4 GB",
            f"f.yaml:10: tiers.default.memory: '4 GB' {QUANTITY}",
        ),
        (
            "tiers: {default: {}, gpu-1: {}}",
            "tiers:\n  default: {}\n  GPU 1: {}",
            f"f.yaml:10: tiers.GPU 1: 'GPU 1' {SEGMENT}",
        ),
        (
            "rounds: 2",
            "rounds: 2\nrounds: 3",
            "f.yaml:9: rounds is duplicated (first in line 8)",
        ),
        (
            "lora: {rank: 2}",
            "lora:\n  rank: 2\n  alpha: 4\n  rank: 3",
            "f.yaml:11: lora.rank is duplicated (first in line 9)",
        ),
    ],
)
def test_valid_and_invalid_settings(right, wrong, problem):
    parse_federation(MINIMAL + right)
    fix = "remove one of the two" if "is duplicated" in problem else "correct this key"
    assert message_of(MINIMAL + wrong) == f"{problem}\n  fix: {fix}"


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        (
            "id: eve",
            "id: bob",
            "f.yaml:8: clients.2.id: 'bob' is used twice; give every client an id of its own",
        ),
        ("id: eve-2", "id: ../eve", f"f.yaml:8: clients.2.id: '../eve' {SEGMENT}"),
        ("id: e", "id: Eve", f"f.yaml:8: clients.2.id: 'Eve' {SEGMENT}"),
        (f"id: {'e' * 50}", f"id: {'e' * 64}", f"f.yaml:8: clients.2.id: '{'e' * 64}' {SEGMENT}"),
        ("id: '7'", "id: 7", "f.yaml:8: clients.2.id: Input should be a valid string, but it is 7"),
        (
            "id: eve\n    tier: default",
            "id: eve\n    teir: x",
            "f.yaml:9: clients.2.teir: unknown key; did you mean 'tier'?",
        ),
        (
            "id: eve\n    tier: default",
            "id: eve\n    tier: big",
            "f.yaml:9: clients.2.tier: there is no tier 'big'; use one of default, or add it to tiers",
        ),
        (
            "id: eve\n    rank: 8",
            "id: eve\n    rank: 9",
            "f.yaml:9: clients.2.rank: 9 is above lora.rank 8, the largest rank of a client; raise lora.rank "
            "or lower this",
        ),
        ("id: eve", "tier: default", "f.yaml:8: clients.2: the key 'id' is missing"),
        ("id: eve", "id: eve\n    id: eva", "f.yaml:9: clients.2.id is duplicated (first in line 8)"),
    ],
)
def test_valid_and_invalid_clients(right, wrong, problem):
    rest = "\n    data: eve.jsonl\n"
    parse_federation(f"{MINIMAL}  - {right}{rest}")
    fix = "remove one of the two" if "is duplicated" in problem else "correct this key"
    assert message_of(f"{MINIMAL}  - {wrong}{rest}") == f"{problem}\n  fix: {fix}"


@pytest.mark.parametrize("id", ["", ".", "..", "a/b", "a_b", "-a", "a-", "a b", "ä", "a\\n", "a.b"])
def test_ids_that_are_not_safe_path_segments(id):
    assert SEGMENT in message_of(f'name: n\nmodel: m\nclients:\n  - id: "{id}"\n    data: d.jsonl\n')


OWNERS = """\
name: notes
model: some/model
clients:
  - id: ann
    data: ann.jsonl
    secret: keys-of-ann
    volume: disk-of-ann
  - id: bob
    data: bob.jsonl
"""
"""Its first free line is 10, of client bob."""


@pytest.mark.parametrize(
    ("right", "wrong", "problem"),
    [
        ("secret: bobs", "secret: ../../x", f"f.yaml:10: clients.1.secret: '../../x' {SEGMENT}"),
        (f"secret: {'b' * 63}", f"secret: {'b' * 64}", f"f.yaml:10: clients.1.secret: '{'b' * 64}' {SEGMENT}"),
        ("volume: disk-1", "volume: disk.1", f"f.yaml:10: clients.1.volume: 'disk.1' {SEGMENT}"),
        (
            "secret: keys-of-bob",
            "secret: keys-of-ann",
            "f.yaml:10: clients.1.secret: client 'bob' would share the Secret 'keys-of-ann' with client 'ann'; "
            "give it secret of its own",
        ),
        (
            "secret: perfit-notes-bobby",
            "secret: perfitserver-notes",
            "f.yaml:10: clients.1.secret: client 'bob' would share the Secret 'perfitserver-notes' with a server; "
            "give it secret of its own",
        ),
        (
            "secret: perfit-server",
            "secret: perfitserver-of-others",
            "f.yaml:10: clients.1.secret: client 'bob' would share the Secret 'perfitserver-of-others' with a server; "
            "give it secret of its own",
        ),
        (
            "secret: perfit-hubs",
            "secret: perfit-hub",
            "f.yaml:10: clients.1.secret: client 'bob' would share the Secret 'perfit-hub' with the model hub; "
            "give it secret of its own",
        ),
        (
            "volume: disk-of-bob",
            "volume: disk-of-ann",
            "f.yaml:10: clients.1.volume: client 'bob' would share the volume claim 'disk-of-ann' with client 'ann'; "
            "give it volume of its own",
        ),
        (
            "volume: perfit-notes-bob",
            "volume: perfit-model-cache",
            "f.yaml:10: clients.1.volume: client 'bob' would share the volume claim 'perfit-model-cache' with the "
            "model cache; give it volume of its own",
        ),
        (
            "held_out: held.jsonl",
            "held_out: ./x/../ann.jsonl",
            "f.yaml:10: clients.1.held_out: client 'bob' would share the records 'ann.jsonl' with client 'ann'; "
            "give it held_out of its own",
        ),
    ],
)
def test_what_is_another_owners(right, wrong, problem):
    parse_federation(f"{OWNERS}    {right}\n")
    assert message_of(f"{OWNERS}    {wrong}\n") == f"{problem}\n  fix: correct this key"


def sources(*clients: dict[str, str], **sections: str) -> str:
    """A federation file of clients a, b, ... with these keys."""
    ids = (chr(ord("a") + number) for number in range(len(clients)))
    entries = [{"id": id, **client} for id, client in zip(ids, clients, strict=True)]
    return yaml.safe_dump({"name": "n", "model": "m", "clients": entries, **sections})


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("s3://b/x.jsonl", "s3://b/x.jsonl"),
        ("owner/set", "owner/set:train"),
        ("x.jsonl", "./x.jsonl"),
        ("/d/x.jsonl", "/d/e/../x.jsonl"),
    ],
)
def test_the_same_records_of_two_clients(first, second):
    assert "client 'b' would share the records" in message_of(sources({"data": first}, {"data": second}))
    parse_federation(sources({"data": first, "held_out": second}))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"data": "s3://b/x.jsonl"}, {"data": "s3://b/y.jsonl"}),
        ({"data": "owner/set:train"}, {"data": "owner/set:test"}),
        ({"data": "/data/x.jsonl", "volume": "one"}, {"data": "/data/x.jsonl", "volume": "two"}),
    ],
)
def test_different_records_of_two_clients(first, second):
    parse_federation(sources(first, second))


def test_a_path_that_leaves_the_volume_is_of_the_machine():
    entries = [{"data": "/data/../x.jsonl", "volume": volume} for volume in ("one", "two")]
    assert "would share the records '/x.jsonl'" in message_of(sources(*entries))


def test_one_file_by_a_relative_and_an_absolute_path_and_by_a_link(tmp_path):
    (tmp_path / "x.jsonl").touch()
    (tmp_path / "link.jsonl").symlink_to("x.jsonl")
    for other in (str(tmp_path / "x.jsonl"), "link.jsonl"):
        (tmp_path / "f.yaml").write_text(sources({"data": "x.jsonl"}, {"data": other}))
        with pytest.raises(PerfitError, match=r"f\.yaml:\d+: clients\.1\.data: client 'b' would share the records"):
            load_federation(tmp_path / "f.yaml")


def test_names_that_are_too_long_for_kubernetes():
    """Of ``perfit-<federation>-<client>`` and ``perfitserver-<federation>``."""
    name, id = "f" * 30, "c" * 25
    text = f"name: {name}\nmodel: m\nclients:\n  - id: {id}\n    data: d.jsonl\n"
    assert len(parse_federation(text).secret_of(parse_federation(text).clients[0])) == 63
    assert message_of(text.replace(id, f"{id}c")) == (
        f"f.yaml:4: clients.0.id: '{id}c' makes 'perfit-{name}-{id}c', its Secret, longer than 63 characters; "
        "shorten it by 1, or name a Secret with the key `secret`\n  fix: correct this key"
    )
    parse_federation(text.replace(id, f"{id}c\n    secret: its-own"))
    text = text.replace(id, "c").replace(name, "f" * 50)
    assert len(parse_federation(text).server_secret) == 63
    assert message_of(text.replace("f" * 50, "f" * 51)) == (
        f"f.yaml:1: name: '{'f' * 51}' makes 'perfitserver-{'f' * 51}', the server's Secret, longer than "
        "63 characters; shorten it to 50\n  fix: correct this key"
    )


@pytest.mark.parametrize("id", ["clients", "masks", "rounds"])
def test_a_client_is_not_called_as_a_directory_of_the_store(id):
    assert f"{id!r} is the name of a directory of the store" in message_of(MINIMAL.replace("id: ann", f"id: {id}"))


def test_a_model_cache_is_a_claim():
    parse_federation(MINIMAL + "cluster: {model_cache: models}")
    assert f"f.yaml:8: cluster.model_cache: 'a/b' {SEGMENT}" in message_of(MINIMAL + "cluster: {model_cache: a/b}")


@pytest.mark.parametrize(
    ("store", "uri"),
    [
        ("s3://perfit", "s3://perfit/federations/tiny/clients/ann/x.jsonl"),
        ("s3://perfit/team/", "s3://perfit/team/federations/tiny/rounds/1/updates/ann.json"),
        ("s3://perfit/team", "s3://perfit/other/federations/tiny/clients/ann/x.jsonl"),
        ("file:///store", "/store/x/../federations/tiny/clients/ann/x.jsonl"),
        ("file:///my%20store/", "/my store/federations/tiny/clients/ann/x.jsonl"),
    ],
)
def test_records_are_no_files_of_a_federation(store, uri):
    message = message_of(sources({"data": "owner/set", "held_out": uri}, store=store))
    assert re.match(r"f\.yaml:\d: clients\.0\.held_out: .* is where the store .* keeps federations", message), message
    parse_federation(sources({"data": uri}))
    elsewhere = "s3://elsewhere" if store.startswith("s3") else "file:///elsewhere"
    parse_federation(sources({"data": uri}, store=elsewhere))
    parse_federation(sources({"data": "s3://perfit/records/federations.jsonl"}, store=store))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://KEY:PASS@bucket/x.jsonl",
        "s3://KEY:PA/SS@bucket/x.jsonl",
        "s3://PASS@bucket/x.jsonl",
        "https://KEY:PASS@host/x.jsonl",
        "s3://bucket/x.jsonl?X-Amz-Signature=PASS",
        "s3://bucket/x.jsonl#PASS",
    ],
)
def test_a_secret_in_a_uri_is_refused_and_not_repeated(uri):
    for text in (
        sources({"data": uri}),
        sources({"data": "a.jsonl", "held_out": uri}),
        sources({"data": "a.jsonl"}, store=uri.removesuffix(".jsonl")),
        sources({"data": "a.jsonl"}, model=uri),
    ):
        message = message_of(text)
        assert re.search("holds credentials; leave them out|holds a query or fragment", message), message
        assert not re.search("PA|SS", message)


@pytest.mark.parametrize("text", ["rounds: [s3://KEY:PASS@bucket]", "store: s3://KEY:PASS@bucket: x"])
def test_a_secret_where_it_does_not_belong_is_not_repeated(text):
    message = message_of(MINIMAL + text)
    assert "PASS" not in message
    assert "(hidden)@bucket" in message


@pytest.mark.parametrize(
    "uri", ["gs://b/x.jsonl", "s3://bucket", "s3://bucket/", "s3://b/../x.jsonl", "s3://b//x.jsonl"]
)
def test_a_uri_that_names_no_object(uri):
    assert f"{uri!r} names no object; write s3://bucket/key" in message_of(sources({"data": uri}))


def test_all_problems_are_named_at_once():
    text = MINIMAL.replace("name: notes", "name: Notes") + "rouns: 3\ntraining:\n  steps: many\n"
    assert message_of(text) == (
        f"f.yaml:1: name: 'Notes' {SEGMENT}\n"
        "f.yaml:10: training.steps: Input should be a valid integer, unable to parse string as an integer, "
        "but it is 'many'\n"
        "f.yaml:8: rouns: unknown key; did you mean 'rounds'?\n"
        "  fix: correct these keys"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"f.yaml holds no keys\n  fix: {PERFIT_INIT}"),
        ("# nothing\n", f"f.yaml holds no keys\n  fix: {PERFIT_INIT}"),
        ("- name\n- model\n", f"f.yaml holds no keys\n  fix: {PERFIT_INIT}"),
        (
            "name: n\nmodel: m\n",
            "f.yaml: the key 'clients' is missing\n  fix: correct this key",
        ),
        (
            "name: n\nclients: []\n",
            "f.yaml: the key 'model' is missing\n  fix: correct this key",
        ),
    ],
)
def test_files_without_the_keys(text, message):
    assert message_of(text) == message


def test_a_federation_without_clients_names_the_key():
    message = message_of("name: n\nmodel: m\nclients: []\n")
    assert re.match(r"f\.yaml(:\d)?: (clients|participation\.minimum_clients): ", message)


def test_what_is_not_yaml():
    message = message_of("name: notes\nmodel: a: b\n")
    assert message.startswith("f.yaml is not YAML: mapping values are not allowed here\n")
    assert "line 2, column 9" in message
    assert message.endswith("\n  fix: repair the syntax at the line named")


@pytest.mark.parametrize(
    "text", ["[a, b]: 1\n", "x: &x\n  y: *x\n", "1: 2\n"], ids=["list as key", "loop", "number as key"]
)
def test_yaml_that_is_not_a_federation_file(text):
    message_of(MINIMAL + text)


ALIAS_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ALIAS_BOMB, "f.yaml:8: anchors and aliases (&name, *name) are not read"),
        ("x: &x\n  y: *x\n", "f.yaml:8: anchors and aliases (&name, *name) are not read"),
        ("training:\n  <<: *more\n", "f.yaml:9: anchors and aliases (&name, *name) are not read"),
        (f"rounds: {'1:' * 200_000}1\n", "f.yaml:8: a value of 400,001 characters"),
        ("# much\n" * 200_000, "f.yaml has more than 1,000,000 characters"),
        ("x: " + "[" * 400_000, "f.yaml is not YAML: "),
        ("rounds: 2020-13-13\n", "f.yaml is not YAML: month must be in 1..12"),
        ('"\\e[31mred": 1\n', "f.yaml:8: \\x1b[31mred: unknown key; "),
        ('training: {"\\e]0;x\\a": 1}\n', "f.yaml:8: training.\\x1b]0;x\\x07: unknown key; "),
    ],
    ids=["bomb", "loop", "merge", "long number", "long file", "deep", "no date", "escape", "escape inside"],
)
def test_what_is_refused_before_it_costs_anything(text, problem):
    start = time.process_time()
    message = message_of(MINIMAL + text)
    # The bomb takes a millisecond, the deep one, by look-ahead, most of a second.
    assert time.process_time() - start < 3
    assert message.startswith(problem)
    assert message.replace("\n", "").isprintable()


def test_a_file_without_end_is_not_read_to_its_end():
    with pytest.raises(PerfitError, match=r"/dev/zero has more than 1,000,000 characters"):
        load_federation("/dev/zero")


@pytest.mark.parametrize(
    "setting", ["lora: {alpha: .inf}", "training: {learning_rate: .inf}", "training: {learning_rate: .nan}"]
)
def test_numbers_that_are_not_finite(setting):
    assert "f.yaml:8: " in message_of(MINIMAL + setting)


@pytest.mark.parametrize("setting", ["rounds: yes", "lora: {rank: true}", "training: {seed: false}"])
def test_a_truth_value_is_no_number(setting):
    assert "f.yaml:8: " in message_of(MINIMAL + setting)


def test_a_missing_file(tmp_path):
    path = tmp_path / "none.yaml"
    with pytest.raises(PerfitError) as caught:
        load_federation(path)
    assert str(caught.value) == (
        f"{path} cannot be read: [Errno 2] No such file or directory: '{path}'\n"
        "  fix: give a federation file; `perfit init FILE` writes a commented one"
    )


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: caf\xe9".encode("latin-1"))
    for path in (tmp_path, tmp_path / "latin.yaml"):
        with pytest.raises(PerfitError, match="cannot be read"):
            load_federation(path)


def test_an_error_names_the_file(tmp_path):
    path = tmp_path / "f.yaml"
    path.write_text(MINIMAL + "rouns: 2\n")
    with pytest.raises(PerfitError) as caught:
        load_federation(path)
    assert caught.value.problem == f"{path}:8: rouns: unknown key; did you mean 'rounds'?"


def test_relative_data_is_taken_from_the_files_directory(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/f.yaml").write_text(
        "name: n\nmodel: m\nclients:\n"
        "  - {id: a, data: data/a.jsonl, held_out: ../h.parquet}\n"
        "  - {id: b, data: /data/b.json}\n"
        "  - {id: c, data: owner/name}\n"
        "  - {id: d, data: 's3://bucket/d.jsonl', held_out: owner/name:test}\n"
    )
    monkeypatch.chdir(tmp_path)
    clients = load_federation(Path("sub/f.yaml")).clients
    assert [Path(clients[0].data), Path(clients[0].held_out)] == [
        tmp_path / "sub/data/a.jsonl",
        tmp_path / "sub/../h.parquet",
    ]
    assert [(c.data, c.held_out) for c in clients[1:]] == [
        ("/data/b.json", None),
        ("owner/name", None),
        ("s3://bucket/d.jsonl", "owner/name:test"),
    ]


@pytest.mark.parametrize(
    ("uri", "local"),
    [("a.jsonl", True), ("/x/a.parquet", True), ("owner/name:train", False), ("s3://b/a.jsonl", False)],
)
def test_local_data(uri, local):
    assert is_local(uri) == local
