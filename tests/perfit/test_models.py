"""Finding and loading base models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch

import perfit
from perfit.client import load_expanded
from perfit.errors import PerfitError
from perfit.lora import expand
from perfit.models import load_model, load_tokenizer, locate, model_skeleton, prepare_model

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


def test_directories_without_a_model(tmp_path):
    for load in (lambda path: load_model(path, "float32"), load_tokenizer, model_skeleton):
        with pytest.raises(PerfitError, match=f"^model: {tmp_path} cannot be loaded: ."):
            load(str(tmp_path))


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
