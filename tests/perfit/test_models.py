"""Finding and loading base models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import ByT5Tokenizer

import perfit
from perfit.client import load_expanded
from perfit.errors import PerfitError
from perfit.lora import expand, lora_config
from perfit.model_files import describe_files
from perfit.models import (
    cached_model,
    check_placement,
    checked_model,
    is_hub_id,
    load_model,
    load_tokenizer,
    locate,
    model_skeleton,
    prepare_model,
    split_revision,
)
from perfit.spec import Lora

from .hub import Hub, serving
from .tiny import save_gguf
from .tiny import tiny_tokenizer as make_tokenizer

PACKAGE = str(Path(perfit.__path__[0]))


def test_locations_of_models(tmp_path, monkeypatch):
    (tmp_path / "models/tiny").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert locate(str(tmp_path)) == str(tmp_path)
    assert locate("models/tiny") == "models/tiny"
    assert locate("owner/name") == "owner/name"
    assert locate("gpt2") == "gpt2"
    assert locate("package:perfit/spec.py") == f"{PACKAGE}/spec.py"
    assert locate("package:perfit") == PACKAGE


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ("package:no_such_package/x.gguf", "model: the Python package 'no_such_package' is not installed"),
        ("package:re.x/a", "model: the Python package 're.x' is not installed"),
        ("package:bisect/a", "model: the Python package 'bisect' is not installed"),
        ("package:perfit/none.gguf", f"model: {PACKAGE}/none.gguf does not exist"),
        ("/no/such/directory", "model: /no/such/directory does not exist"),
        ("./none", "model: none does not exist"),
        ("a/b/c", "model: a/b/c does not exist"),
    ],
)
def test_models_that_do_not_exist(model, problem):
    with pytest.raises(PerfitError) as caught:
        locate(model)
    assert caught.value.problem == problem


@pytest.mark.parametrize("model", ["none.gguf", "models/none.gguf"])
def test_a_missing_file_is_not_a_hub_id(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PerfitError, match=rf"^model: {model} does not exist"):
        prepare_model(model, tmp_path / "cache")


def test_a_directory_needs_no_conversion(tiny_llama, tmp_path):
    assert prepare_model(tiny_llama, tmp_path / "cache") == tiny_llama
    assert not (tmp_path / "cache").exists()


def test_a_gguf_file_is_converted_once(tiny_llama, tiny_tokenizer, tmp_path):
    file, cache = save_gguf(tiny_llama, tmp_path / "tiny.gguf"), tmp_path / "deep/cache"
    source = prepare_model(file, cache)
    assert [path.name for path in cache.iterdir()] == [hashlib.sha256(Path(file).read_bytes()).hexdigest()]
    converted, original = load_model(source, "float32").state_dict(), load_model(tiny_llama, "float32").state_dict()
    assert converted.keys() == original.keys()
    assert all(torch.equal(converted[name], tensor) for name, tensor in original.items())
    messages = [{"role": "user", "content": "What is two plus three?"}]
    tokens = [t.apply_chat_template(messages)["input_ids"] for t in (load_tokenizer(source), tiny_tokenizer)]
    assert tokens[0] == tokens[1]

    # Pods of another user may share the cache.
    (tmp_path / "usual").mkdir()
    assert Path(source).stat().st_mode == (tmp_path / "usual").stat().st_mode

    (Path(source) / "here-before").touch()
    assert prepare_model(file, cache) == source
    assert (Path(source) / "here-before").exists()


def test_a_cache_that_cannot_be_written(tiny_llama, tmp_path):
    model, cache = save_gguf(tiny_llama, tmp_path / "tiny.gguf"), tmp_path / "file"
    cache.write_text("not a directory")
    with pytest.raises(PerfitError, match=r"the cache .*file cannot be written") as error:
        prepare_model(model, cache)
    assert "PERFIT_CACHE" in error.value.fix


@pytest.mark.parametrize("kept", [0, 20, 3000, -2000], ids=["empty", "magic", "half a header", "half the weights"])
def test_a_broken_gguf_file_is_named_and_leaves_nothing(tiny_llama, tmp_path, kept):
    whole = Path(save_gguf(tiny_llama, tmp_path / "tiny.gguf")).read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(whole[:kept])
    with pytest.raises(PerfitError, match=r"broken\.gguf"):
        prepare_model(str(broken), tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_model_is_frozen_and_of_its_precision(tiny_llama, precision):
    model = load_model(tiny_llama, precision)
    assert {(p.requires_grad, p.dtype) for p in model.parameters()} == {(False, getattr(torch, precision))}


def test_a_skeleton_has_the_shapes_and_no_weights(make_federation, tiny_llama, tmp_path):
    skeleton = model_skeleton(tiny_llama)
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    for targets in (["q_proj"], "all-linear"):
        spec = make_federation(lora={"target_modules": targets})
        _, space = expand(model_skeleton(tiny_llama), spec.expanded_lora)
        assert space == load_expanded(spec, tmp_path).space


@pytest.mark.parametrize("config", [None, '{"model_type": "My card number is 1234"}', "My card number is 1234"])
def test_directories_without_a_model_are_refused_in_our_own_words(tmp_path, config):
    if config:
        (tmp_path / "config.json").write_text(config)
    for load, what in (
        (lambda path: load_model(path, "float32"), "causal language model"),
        (load_tokenizer, "tokenizer"),
        (model_skeleton, "configuration"),
    ):
        with pytest.raises(PerfitError) as caught:
            load(str(tmp_path))
        reason = f"it holds no {what} that transformers can load"
        assert caught.value.problem == f"model: {tmp_path} cannot be loaded: {reason}"


def test_a_tokenizer_without_padding_pads_with_its_end(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert (loaded.pad_token, loaded.pad_token_id) == ("<|im_end|>", 3)


def test_a_tokenizer_without_an_end_is_refused(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(PerfitError, match=f"the tokenizer of {tmp_path} has no end token"):
        load_tokenizer(str(tmp_path))


def test_a_tokenizer_that_cannot_tell_the_place_of_a_token_is_refused(tmp_path):
    ByT5Tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PerfitError, match="cannot tell which characters a token stands for"):
        load_tokenizer(str(tmp_path))


# Models of the hub


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tiny_llama, tmp_path, monkeypatch) -> Path:
    """Hugging Face's cache, offline, that holds the tiny Llama as owner/name; the directory of its one commit."""
    repository = tmp_path / "hub/models--owner--name"
    snapshot = repository / "snapshots" / COMMIT
    shutil.copytree(tiny_llama, snapshot)
    for name in ("main", "v1"):
        (repository / "refs").mkdir(exist_ok=True)
        (repository / "refs" / name).write_text(COMMIT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return snapshot


@pytest.mark.parametrize("model", ["owner/name", "owner/name@v1", f"owner/name@{COMMIT}"])
def test_a_model_of_the_hub_is_the_directory_of_its_commit(hub, tmp_path, model):
    assert prepare_model(model, tmp_path / "cache") == str(hub)
    assert cached_model(model, tmp_path / "cache", COMMIT) == str(hub)
    assert is_hub_id(model)
    assert load_tokenizer(str(hub)).eos_token == "<|im_end|>"


@pytest.mark.parametrize("model", ["owner/other", "owner/name@v2", f"owner/name@{COMMIT[::-1]}"])
def test_a_model_that_the_hub_does_not_give(hub, tmp_path, model):
    with pytest.raises(PerfitError) as caught:
        prepare_model(model, tmp_path / "cache")
    reason = "the hub cannot be reached, and the model is not in the cache"
    assert caught.value.problem == f"model: {model} cannot be loaded: {reason}"
    assert "the network" in caught.value.fix
    assert cached_model(model, tmp_path / "cache") is None


@pytest.mark.parametrize(
    ("model", "split"),
    [
        ("owner/name@v1.0", ("owner/name", "v1.0")),
        ("gpt2@refs/pr/1", ("gpt2", "refs/pr/1")),
        ("owner/name", ("owner/name", None)),
        ("/models/tiny@2", ("/models/tiny@2", None)),
        ("./tiny@2", ("./tiny@2", None)),
        ("package:re/x@2", ("package:re/x@2", None)),
    ],
)
def test_a_revision_is_split_off(model, split):
    assert split_revision(model) == split


def test_an_adapter_names_the_revision_of_its_model():
    config = lora_config(Lora(), "owner/name@v1")
    assert (config.base_model_name_or_path, config.revision) == ("owner/name", "v1")


# Code that comes with a model


def with_code(tiny_llama: str, directory: Path) -> Path:
    """A model whose files say that it needs the code beside them, which leaves a trace where it runs."""
    shutil.copytree(tiny_llama, directory)
    (directory / "modeling.py").write_text(f"open({str(directory / 'ran')!r}, 'w')\n")
    auto_map = {"AutoConfig": "modeling.Config", "AutoModelForCausalLM": "modeling.Model"}
    for file, more in [
        ("config.json", {"model_type": "of-its-own", "auto_map": auto_map}),
        ("tokenizer_config.json", {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["modeling.Own", None]}}),
    ]:
        fields = json.loads((directory / file).read_text())
        (directory / file).write_text(json.dumps({**fields, **more}))
    return directory


@pytest.mark.parametrize("load", [lambda path: load_model(path, "float32"), load_tokenizer, model_skeleton])
def test_code_of_a_model_is_never_run_and_nobody_is_asked(tiny_llama, tmp_path, load, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", lambda *question: pytest.fail("asked on the standard input"))
    directory = with_code(tiny_llama, tmp_path / "model")
    with pytest.raises(PerfitError) as caught:
        load(str(directory))
    assert (
        caught.value.problem == f"model: {directory} needs Python code that its files bring along, which is never run"
    )
    assert caught.value.fix == "use a model whose architecture is part of transformers"
    assert not (directory / "ran").exists()
    assert capsys.readouterr().out == ""


def test_a_model_that_transformers_knows_is_loaded_without_the_code_beside_it(tiny_llama, tmp_path):
    directory = with_code(tiny_llama, tmp_path / "model")
    fields = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**fields, "model_type": "llama"}))
    assert type(load_model(str(directory), "float32")).__module__.startswith("transformers.models.llama")
    assert not (directory / "ran").exists()


# What the federation was founded with


def test_a_checked_model_is_the_cached_one_if_each_file_is_as_it_was(tiny_llama, tmp_path):
    file, cache, scratch = save_gguf(tiny_llama, tmp_path / "tiny.gguf"), tmp_path / "cache", tmp_path / "scratch"
    source = prepare_model(file, cache)
    manifest = describe_files(file, source)
    assert checked_model(manifest, cache, scratch) == source
    assert not scratch.exists()
    Path(source, "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(PerfitError, match=r"model\.safetensors has other bytes than when the federation was founded"):
        checked_model(manifest, cache, scratch)


def test_a_model_that_the_cache_lacks_is_made_elsewhere_and_is_the_same(tiny_llama, tmp_path):
    file, scratch = save_gguf(tiny_llama, tmp_path / "tiny.gguf"), tmp_path / "scratch"
    manifest = describe_files(file, prepare_model(file, tmp_path / "cache"))
    source = checked_model(manifest, tmp_path / "empty", scratch)
    assert Path(source).parent == scratch
    assert not (tmp_path / "empty").exists()


def test_a_conversion_does_not_say_which_release_made_it(tiny_llama, tmp_path):
    source = Path(prepare_model(save_gguf(tiny_llama, tmp_path / "tiny.gguf"), tmp_path / "cache"))
    assert not [path for path in source.iterdir() if b"transformers_version" in path.read_bytes()]


def test_a_model_of_the_hub_is_checked(hub, tmp_path):
    manifest = describe_files("owner/name", hub, COMMIT)
    assert checked_model(manifest, tmp_path / "cache", tmp_path / "scratch") == str(hub)
    (hub / "adapter_config.json").write_text("{}")
    with pytest.raises(PerfitError, match=r"adapter_config\.json was not there when the federation was founded"):
        checked_model(manifest, tmp_path / "cache", tmp_path / "scratch")


def test_the_hubs_files_are_downloaded_at_the_commit_that_the_federation_was_founded_with(tiny_llama, tmp_path):
    """Prepare fills the cache; a client without it downloads the same commit into a place of its own."""
    directory = shutil.copytree(tiny_llama, tmp_path / "repository")
    for name in ("README.md", "modeling.py", "pytorch_model.bin", "onnx/config.json"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text("{}")
    code = f"""
from pathlib import Path
from perfit.model_files import describe_files
from perfit.models import checked_model, prepare_model
here = Path({str(tmp_path)!r})
source = prepare_model("owner/name", here / "cache")
manifest = describe_files("owner/name", source, Path(source).name)
print(*[file.name for file in manifest.files])
print(manifest.commit, checked_model(manifest, here / "cache", here / "none") == source)
(here / "home/hub").rename(here / "elsewhere")
print(Path(checked_model(manifest, here / "cache", here / "scratch")).relative_to(here))
"""
    with serving(Hub(directory, COMMIT)) as hub:
        environment = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = sorted(path.name for path in Path(tiny_llama).iterdir())
    names, commit, scratch = done.stdout.splitlines()
    assert names.split() == loaded
    assert commit == f"{COMMIT} True"
    assert scratch == f"scratch/hub/models--owner--name/snapshots/{COMMIT}"
    assert set(hub.downloads) == set(loaded)


def test_a_model_that_the_accelerators_cannot_hold_is_refused(tiny_llama):
    """As accelerate divides it among accelerators of a given size, of which there are none here."""
    from accelerate import infer_auto_device_map

    model, size = model_skeleton(tiny_llama), 36_000 * 4
    halves = infer_auto_device_map(model, {0: size * 3 // 4, 1: size * 3 // 4, "cpu": 2**30})
    assert {0, 1} == set(halves.values())
    check_placement(halves)
    check_placement({})
    left = infer_auto_device_map(model, {0: size // 2, 1: size // 8, "cpu": 2**30})
    assert "cpu" in left.values()
    with pytest.raises(PerfitError, match=r"^the memory of the accelerators cannot hold the model: \d of \d+ parts"):
        check_placement(left)
