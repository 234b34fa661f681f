"""The model card (README.md) of a client's adapter, or of the base model with the adapter merged into it."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from perfit.base_model import BaseModel
from perfit.model_files import ModelManifest
from perfit.protocol import UpdateRecord
from perfit.spec import FederationSpec

CARD_FILE = "README.md"
_PAPER = "arxiv:2402.16919"
_ADAPTER = """\
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained({base}, dtype={precision!r})
model = PeftModel.from_pretrained(base, ".")  # this directory
"""
_MERGED = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", dtype={precision!r})  # this directory
"""
_GENERATE = """\
tokenizer = AutoTokenizer.from_pretrained(".")

messages = [{"role": "user", "content": "Who are you?"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
output = model.generate(**prompt, max_new_tokens=32, pad_token_id=tokenizer.pad_token_id)
print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
"""


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Args:
        spec: The federation.
        client: The client's id.
        base: The base model.
        manifest: What files it consists of.
        record: Of the last committed round in which the client delivered; None if there is none.
        merged: Whether the card is that of a model, not of an adapter.
    """

    spec: FederationSpec
    client: str
    base: BaseModel
    manifest: ModelManifest
    record: UpdateRecord | None
    merged: bool = False

    def text(self) -> str:
        """Return the card: YAML for the hub, then Markdown."""
        sections = [self._title(), self._loading(), self._base(), self._results(), self._privacy()]
        return f"---\n{yaml.safe_dump(self._metadata(), sort_keys=False)}---\n\n" + "\n".join(filter(None, sections))

    def _metadata(self) -> dict[str, object]:
        # The hub takes nothing but its own ids for a base model.
        base = {"base_model": self.base.name} if self.base.is_hub_id else {}
        library = "transformers" if self.merged else "peft"
        tags = ["lora", "federated-learning", "perfit", self.spec.method.name, _PAPER]
        return {**base, "library_name": library, "pipeline_tag": "text-generation", "tags": tags}

    def _title(self) -> str:
        spec, lora = self.spec, self.spec.expanded_lora
        what = "base model with the personal LoRA adapter" if self.merged else "personal LoRA adapter"
        targets = lora.target_modules if isinstance(lora.target_modules, str) else ", ".join(lora.target_modules)
        return (
            f"# {self.client}, of the federation {spec.name}\n\n"
            f"The {what} of client `{self.client}`, tuned in a federation of {len(spec.clients)} clients by the method "
            f"`{spec.method.name}` with [PerFIT on Kubeflow](https://arxiv.org/abs/2402.16919). LoRA of rank "
            f"{lora.rank} and alpha {lora.alpha:g} on {targets}; the client's own rank is "
            f"{spec.rank_of(spec.client(self.client))}, and values off its architecture are zero.\n"
        )

    def _loading(self) -> str:
        pin = f", revision={self.base.revision!r}" if self.base.revision else ""
        fields = {"base": f"{self.base.name!r}{pin}", "precision": self.spec.training.precision}
        code = (_MERGED if self.merged else _ADAPTER).format(**fields) + _GENERATE
        return f"## Load it\n\nIn this directory:\n\n```python\n{code}```\n"

    def _base(self) -> str:
        weights = [file for file in self.manifest.files if file.name.endswith((".safetensors", ".bin"))]
        hashes = "".join(f"- `{file.name}`: `{file.sha256}`\n" for file in weights)
        held = self.spec.training.quantization
        quantised = f" The clients held its linear modules as {held}." if held else ""
        return (
            f"## Base model\n\n{self.base.origin}{quantised} SHA-256 of the weights that it was tuned on:\n\n{hashes}"
        )

    def _results(self) -> str:
        if self.record is None:
            return ""
        record, values = self.record, self.record.perplexity
        return (
            f"## Results\n\nPerplexity on the client's {record.held_out_records} held-out records: "
            f"{values.round_0:.2f} under the base model, {values.before:.2f} at the start of round {record.round}, "
            f"{values.after:.2f} under the adapter after it. Tuned on {record.samples} records of the client; "
            f"{record.budget:,} values trained.\n"
        )

    def _privacy(self) -> str:
        return (
            "## Before you pass it on\n\nIt was tuned on its owner's private records, and a model may repeat what it "
            "was tuned on: it is the owner's to give away. The base model's licence applies.\n"
        )
