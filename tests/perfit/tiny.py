"""Models, tokenizers and federations that are small enough for every test to make its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGUFWriter, TokenType
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from perfit.adapter import SparseAdapter
from perfit.client import ClientData, ExpandedModel, load_client_data, load_expanded
from perfit.cluster_spec import ClusterSpec
from perfit.examples import Example
from perfit.lora import compact
from perfit.spec import FederationSpec

SENTENCES = [
    "Name the capital of France. The capital of France is Paris.",
    "What is two plus three? Two plus three is five.",
    "Write a short line about the sea. The sea is wide and blue.",
    "user system assistant Instruction Response You are a helpful assistant.",
]
CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{{ '<|im_start|>assistant\\n' if add_generation_prompt else '' }}"
)


def tiny_tokenizer(chat_template: bool = True) -> PreTrainedTokenizerFast:
    """Make a byte-level BPE tokenizer of 320 tokens that encodes any text and, like Llama's, adds a bos token."""
    special = ["<pad>", "<s>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=CHATML if chat_template else None,
    )


def save_llama(directory: Path) -> str:
    """Save a random Llama of two layers (hidden size 32, grouped keys and values) and its tokenizer."""
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    return _save(LlamaForCausalLM, config, directory)


def save_gpt2(directory: Path) -> str:
    """Save a random GPT-2 of two layers, with dropout, and its tokenizer."""
    config = GPT2Config(
        vocab_size=320,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.1,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=0,
    )
    return _save(GPT2LMHeadModel, config, directory)


def _save(factory, config, directory: Path) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        factory(config).save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    return str(directory)


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def save_gguf(llama: str, file: Path) -> str:
    """Save what `save_llama` made as a GGUF file of float32 weights."""
    model = LlamaForCausalLM.from_pretrained(llama)
    writer = GGUFWriter(file, "llama")
    _add_gguf_header(writer, model.config, tiny_tokenizer())
    for name, tensor in model.state_dict().items():
        module, array = name.removesuffix(".weight"), tensor.numpy()
        prefix = ""
        if module.startswith("model.layers."):
            layer, module = module.removeprefix("model.layers.").split(".", 1)
            prefix = f"blk.{layer}."
        if module.endswith(("q_proj", "k_proj")):
            # llama.cpp rotates neighbouring features of a head, transformers those half a head apart.
            halves = array.reshape(-1, 2, model.config.head_dim // 2, array.shape[1])
            array = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(array.shape)
        writer.add_tensor(f"{prefix}{GGUF_NAMES[module]}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(file)


def _add_gguf_header(writer: GGUFWriter, config: LlamaConfig, tokenizer: PreTrainedTokenizerFast) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    special = set(tokenizer.all_special_tokens)
    tokens = sorted(vocabulary, key=vocabulary.get)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL if token in special else TokenType.NORMAL for token in tokens])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)


def write_records(path: Path, topic: str, count: int) -> None:
    """Write ``count`` records of a few words, which depend only on the topic."""
    words = ["Paris", "sea", "blue", "two", "five", "line", "short", "wide", "capital", "France"]
    with path.open("w") as file:
        for i in range(count):
            answer = " ".join(words[(i * len(topic) + ord(topic[0]) + j) % len(words)] for j in range(1 + i % 3))
            record = {"instruction": f"What is {topic} {words[i % len(words)]}?", "output": f"{answer}."}
            file.write(json.dumps(record) + "\n")


SEARCH = {"search_steps": 3, "warmup_steps": 1, "pruning_iterations": 2}
"""A search of a few steps, for the method perfit."""


def federation(model: str, data: Path, /, **sections: Any) -> ClusterSpec:
    """Make a federation of two clients, the second of half the rank; sections by keyword are merged in.

    The exchange is in float32, so that what crosses can be compared exactly; tests of other types, the default among
    them, say so.
    The section ``method`` is merged into a search of few steps where it is perfit's; any other method's replaces it.
    """
    tree: dict[str, Any] = {
        "name": "tiny",
        "model": model,
        "lora": {"rank": 2, "alpha": 4, "target_modules": ["q_proj", "v_proj"]},
        "training": {"steps": 2, "batch_size": 2, "learning_rate": 0.01, "sequence_length": 64},
        "exchange": {"dtype": "float32"},
        "rounds": 1,
        "clients": [
            {"id": "ann", "data": str(data / "ann.jsonl")},
            {"id": "bob", "data": str(data / "bob.jsonl"), "rank": 1},
        ],
    }
    if sections.get("method", {}).get("name", "perfit") == "perfit":
        tree["method"] = SEARCH
        tree["lora"]["expansion"] = 2
    for key, value in sections.items():
        tree[key] = {**tree.get(key, {}), **value} if isinstance(value, dict) else value
    return ClusterSpec.model_validate(tree)


def loaded(spec: FederationSpec) -> tuple[ExpandedModel, dict[str, ClientData]]:
    """Load a federation's model and every client's data."""
    model = load_expanded(spec, Path("no-cache-needed"))
    return model, {c.id: load_client_data(spec, c, model.tokenizer) for c in spec.clients}


def compact_adapter(
    model: ExpandedModel, adapter: SparseAdapter
) -> AbstractContextManager[dict[str, torch.nn.Parameter]]:
    """Put an adapter on a model and train all its values; see `perfit.lora.compact`."""
    return compact(model.peft, adapter.space, adapter.dense(), adapter.mask)


def base_hash(model: torch.nn.Module) -> str:
    """Hash every parameter and buffer of a PEFT model that is not part of its LoRA, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted([*model.named_parameters(), *model.named_buffers()]):
        if "lora_" not in name:
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def logits(model: torch.nn.Module, examples: Sequence[Example]) -> list[torch.Tensor]:
    """Return a model's logits on each example alone, without dropout."""
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([example.input_ids])).logits for example in examples]
