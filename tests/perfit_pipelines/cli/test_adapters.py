"""Exported adapters and models as other programs load them, and ``perfit chat``."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.numpy import load
from transformers import AutoModelForCausalLM, AutoTokenizer

from perfit.base_model import with_chat_template
from perfit.examples import IGNORE_INDEX, tokenize

from ...perfit.tiny import save_gguf, tiny_tokenizer
from ...perfit_components.running import files
from ..commands import make_home
from ..terminal import perfit_in_terminal

PEFT_FILES = {"adapter_config.json", "adapter_model.safetensors"}


def logits(model, tokenizer) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(**tokenizer("What is two plus three?", return_tensors="pt")).logits


def snippet(directory: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text(), re.DOTALL)
    return code


def run_card(directory: Path) -> str:
    """Run the loading snippet of a card as a reader would, without this project's packages on the path."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", snippet(directory)], cwd=directory, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def bob(trained, tmp_path_factory) -> Path:
    """Bob's exported adapter."""
    target = tmp_path_factory.mktemp("exports") / "bob"
    result = trained.stored("export", "bob", target)
    assert result.code == 0, result.err
    assert result.out.startswith(f"wrote {target}; load it with PeftModel.from_pretrained(base_model, {str(target)!r})")
    return target


def test_an_exported_adapter_is_loaded_by_peft(bob, tiny_llama, trained):
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), bob)
    weights = load((bob / "adapter_model.safetensors").read_bytes())
    loaded = {
        name.replace(".default.weight", ".weight"): parameter
        for name, parameter in model.named_parameters()
        if "lora_" in name
    }
    assert loaded.keys() == weights.keys()
    assert all((loaded[name].detach().numpy() == weights[name]).all() for name in weights)
    stored = files(trained.site.root / "clients/bob/adapter")
    assert (bob / "adapter_model.safetensors").read_bytes() == stored["adapter_model.safetensors"]
    assert json.loads((bob / "adapter_config.json").read_text()) == json.loads(stored["adapter_config.json"])


def test_an_exported_adapter_finds_its_base_and_brings_its_tokenizer(bob, tiny_llama):
    tokenizer = AutoTokenizer.from_pretrained(bob)
    explicit = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_llama), bob)
    found = AutoPeftModelForCausalLM.from_pretrained(bob)
    assert torch.equal(logits(found, tokenizer), logits(explicit, tokenizer))
    own = AutoTokenizer.from_pretrained(tiny_llama)
    assert tokenizer.chat_template == own.chat_template
    assert tokenizer("The sea.")["input_ids"] == own("The sea.")["input_ids"]


def test_the_card(bob, trained, tiny_llama):
    text = (bob / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    fields = yaml.safe_load(metadata)
    assert fields["library_name"] == "peft"
    assert "base_model" not in fields  # the hub takes none but its own
    (record,) = [r for r in trained.site.summary(2).trained if r.client == "bob"]
    assert f"{record.perplexity.after:.2f} under the adapter after it" in body
    assert f"The base is in the directory {tiny_llama} " in body
    manifest = trained.site.context.model()
    assert all(file.sha256 in body for file in manifest.files if file.name.endswith(".safetensors"))


def test_the_snippet_of_the_card_runs_as_it_stands(bob):
    assert run_card(bob).endswith("\n")


def test_a_merged_model_gives_the_logits_of_pefts_merged(trained, bob, tiny_llama, tmp_path):
    target = tmp_path / "model"
    result = trained.stored("export", "bob", target, "--merged")
    assert result.code == 0, result.err
    tokenizer = AutoTokenizer.from_pretrained(target)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    untuned = logits(base, tokenizer)
    merged = PeftModel.from_pretrained(base, bob).merge_and_unload()
    actual = logits(AutoModelForCausalLM.from_pretrained(target), tokenizer)
    assert torch.equal(actual, logits(merged, tokenizer))
    assert not torch.allclose(actual, untuned, atol=1e-3)
    assert not PEFT_FILES & {path.name for path in target.iterdir()}
    assert yaml.safe_load((target / "README.md").read_text().split("---\n")[1])["library_name"] == "transformers"
    run_card(target)
    again = trained.stored("export", "bob", target, "--merged")
    assert (again.code, again.err) == (1, f"error: {target} is not empty\n  fix: give a new directory\n")


@pytest.fixture(scope="module")
def of_gguf(tiny_llama, tmp_path_factory):
    """A home whose model is a GGUF file, on all linear modules; one round has run."""
    directory = tmp_path_factory.mktemp("gguf")
    home = make_home(
        directory,
        save_gguf(tiny_llama, directory / "tiny.gguf"),
        rounds=1,
        lora={"rank": 2, "target_modules": "all-linear"},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERFIT_CACHE", str(directory / "cache"))
        result = home.stored("run", home.file)
        assert result.code == 0, result.err
        yield home


def test_a_gguf_base_is_named_by_its_conversion(of_gguf):
    adapter = of_gguf.results / "adapters/ann"
    config = json.loads((adapter / "adapter_config.json").read_text())
    (converted,) = (of_gguf.directory / "cache").iterdir()
    assert config["base_model_name_or_path"] == str(converted)
    assert config["target_modules"] == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    assert f"the machine that wrote this has the result in {converted}" in (adapter / "README.md").read_text()
    run_card(adapter)


def test_a_base_by_another_name(of_gguf, tmp_path):
    result = of_gguf.stored("export", "ann", tmp_path / "ann", "--base", "owner/model")
    assert result.code == 0, result.err
    assert json.loads((tmp_path / "ann/adapter_config.json").read_text())["base_model_name_or_path"] == "owner/model"
    card = (tmp_path / "ann/README.md").read_text()
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == "owner/model"
    assert 'from_pretrained("owner/model", dtype=' in card.replace("'", '"')


def test_as_stored(trained, tmp_path):
    assert trained.stored("export", "ann", tmp_path, "--adapter-only").code == 0
    assert files(tmp_path) == files(trained.site.root / "clients/ann/adapter")


def test_export_again(trained, bob):
    before = files(bob)
    (bob / "adapter_model.safetensors").write_bytes(b"old")
    (bob / "left.over").write_bytes(b"old")
    assert trained.stored("export", "bob", bob).code == 0
    assert files(bob) == before
    assert [path.name for path in bob.parent.iterdir()] == ["bob"]


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_export_replaces_nothing_else(trained, tmp_path, kind):
    target = tmp_path / "mine"
    if kind == "directory":
        target.mkdir()
        (target / "thesis.txt").write_text("years of work")
    else:
        target.write_text("years of work")
    there = files(tmp_path)
    result = trained.stored("export", "ann", target)
    assert (result.code, result.err) == (
        1,
        f"error: {target} exists and holds no adapter\n  fix: give a new directory\n",
    )
    assert files(tmp_path) == there


def test_export_of_a_client_without_an_adapter(trained, tmp_path):
    result = trained.stored("export", "zoe", tmp_path / "zoe")
    assert (result.code, result.err) == (
        1,
        "error: client 'zoe' of federation 'tiny' has no adapter yet\n"
        "  fix: run a round with it; the clients are: ann, bob\n",
    )
    assert not (tmp_path / "zoe").exists()


def test_weights_that_a_client_broke(trained, tmp_path):
    copy = tmp_path / "store"
    shutil.copytree(trained.directory / "store", copy)
    (copy / "federations/tiny/clients/bob/adapter/adapter_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0nothing!")
    result = trained.perfit("export", "bob", tmp_path / "bob", "--store", copy.as_uri())
    assert (result.code, result.err.splitlines()[0]) == (
        1,
        "error: the personal adapter's adapter_model.safetensors is damaged",
    )


# The prompts


@pytest.mark.parametrize("template", [True, False])
def test_a_portable_tokenizer_makes_the_prompts_of_the_training(template):
    messages = [{"role": "user", "content": "Name the capital of France."}]
    answered = [*messages, {"role": "assistant", "content": "Paris."}]
    example = tokenize(answered, tiny_tokenizer(template), 128)
    prompt = [t for t, label in zip(example.input_ids, example.labels, strict=True) if label == IGNORE_INDEX]
    tokenizer = with_chat_template(tiny_tokenizer(template))
    assert tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"] == prompt


# chat


def chat(home, *arguments, piped: str | None = None):
    with pytest.MonkeyPatch.context() as patch:
        if piped is not None:
            patch.setattr(sys, "stdin", io.StringIO(piped))
        return home.stored("chat", *arguments)


def test_chat_with_a_pipe_prints_the_answer_alone(trained, bob):
    result = chat(trained, "bob", "--max-tokens", 5, piped="What is two plus three?\n")
    assert (result.code, result.err) == (0, ""), result.err
    assert result.out == chat(trained, "bob", "What is two plus three?", "--max-tokens", 5).out
    model, tokenizer = AutoPeftModelForCausalLM.from_pretrained(bob), AutoTokenizer.from_pretrained(bob)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is two plus three?"}], add_generation_prompt=True, return_tensors="pt"
    )
    output = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert result.out == tokenizer.decode(output, skip_special_tokens=True) + "\n"


def test_chat_without_the_adapter(trained, tiny_llama):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], add_generation_prompt=True, return_tensors="pt"
    )
    output = model.generate(**ids, max_new_tokens=5, do_sample=False)[0, ids["input_ids"].shape[1] :]
    result = chat(trained, "ann", "Hi", "--max-tokens", 5, "--without-adapter")
    assert result.out == tokenizer.decode(output, skip_special_tokens=True) + "\n"


def test_chat_in_a_terminal(trained):
    """Three questions: the second knows the first, the third, after /new, gets the first's answer again."""
    options = ("--max-tokens", "8", "--store", trained.site.store_uri)
    with perfit_in_terminal("chat", "bob", *options, cwd=trained.directory) as terminal:
        end, answers = terminal.wait_for("you talk to bob's model"), []
        for question in ("Name the capital.", "Name the capital.", "/new", "", "Name the capital."):
            start = terminal.wait_for("> ", end)
            terminal.send(f"{question}\n")
            end = terminal.wait_for("\r\n", start)
            if question not in ("", "/new"):
                answers.append(terminal.shown[end : terminal.wait_for("\n> ", end)].strip())
        terminal.wait_for("> ", end)
        terminal.send("\x04")
        assert terminal.end() == 0
    assert answers[0] == answers[2]
    assert "Traceback" not in terminal.shown
    assert "Warning" not in terminal.shown


@pytest.mark.parametrize(
    ("arguments", "piped", "problem"),
    [
        (["bob"], " \n", "there is nothing on the standard input"),
        (["zoe", "Hi"], None, "client 'zoe' of federation 'tiny' has no adapter yet"),
        (["bob", "sea " * 200], None, "the conversation has "),
    ],
)
def test_chat_that_cannot_be(trained, arguments, piped, problem):
    result = chat(trained, *arguments, piped=piped)
    assert result.code == 1
    assert result.err.startswith(f"error: {problem}")
