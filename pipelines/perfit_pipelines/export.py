"""A client's personal adapter, from the store to a directory that other programs load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from perfit.base_model import BaseModel, base_model, portable_tokenizer
from perfit.errors import PerfitError
from perfit.export import CONFIG_FILE, WEIGHTS_FILE, peft_config, portable_lora
from perfit.model_card import CARD_FILE, Card
from perfit.model_files import ModelManifest
from perfit.models import checked_model, load_model
from perfit.quantization import check_quantization
from perfit_components.steps.client import ADAPTER_DIRECTORY
from perfit_components.steps.context import FederationContext, model_cache
from perfit_pipelines.writing import writing
from perfit_report import last_records
from perfit_storage import ObjectNotFound

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Exporter:
    """Exports the adapters of a federation.

    Args:
        context: The federation.
        base_name: What adapters name as their base; None for what this machine finds.
    """

    context: FederationContext
    base_name: str | None = None

    @cached_property
    def _manifest(self) -> ModelManifest:
        return self.context.model()

    @cached_property
    def _base(self) -> BaseModel:
        if self.base_name is None:
            return base_model(self._manifest, model_cache())
        origin = (
            f"The base is {self.base_name}, as the exporter named it; the federation's file has {self._manifest.model}."
        )
        return BaseModel(self.base_name, None, origin)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The base model's tokenizer, with the chat template of the federation's prompts."""
        return portable_tokenizer(self._manifest, model_cache())

    def weights(self, client: str) -> bytes:
        """Return the weights of a client's personal adapter: safetensors, float32.

        Raises:
            PerfitError: It has none, or the store does not let this key read the client's files.
        """
        return _client_file(self.context, client, WEIGHTS_FILE)

    def write_as_stored(self, client: str, directory: Path) -> None:
        """Write PEFT's two files as the client made them; nothing of the base model is needed."""
        files = {name: _client_file(self.context, client, name) for name in (CONFIG_FILE, WEIGHTS_FILE)}
        with _replacing(directory) as draft:
            for name, data in files.items():
                (draft / name).write_bytes(data)

    def write_adapter(self, client: str, directory: Path) -> None:
        """Write an adapter, its tokenizer and its card; an adapter that is there is replaced.

        Raises:
            PerfitError: The client has none, its base model is not to be had here, or the directory holds other things.
        """
        weights, tokenizer = self.weights(client), self.tokenizer
        with _replacing(directory) as draft:
            self._write_peft(weights, draft)
            tokenizer.save_pretrained(draft)
            (draft / CARD_FILE).write_text(self._card(client).text(), encoding="utf-8")

    def is_written(self, client: str, directory: Path) -> bool:
        """Whether a directory is what :meth:`write_adapter` would write now, as its weights and card tell."""
        path = directory / WEIGHTS_FILE
        return (directory / CARD_FILE).is_file() and path.is_file() and path.read_bytes() == self.weights(client)

    def write_merged(self, client: str, directory: Path) -> None:
        """Write the base model with a client's adapter merged into it, in the precision of the training, not quantised.

        Raises:
            PerfitError: As :meth:`write_adapter`; the base model's files are not those of the federation, or hold
                quantised weights, to which a merged one would be rounded.
        """
        with _replacing(directory, only_empty=True) as draft, self.load(client, quantized=False) as model:
            model.merge_and_unload().save_pretrained(draft)
            self.tokenizer.save_pretrained(draft)
            (draft / CARD_FILE).write_text(self._card(client, merged=True).text(), encoding="utf-8")

    @contextmanager
    def load(self, client: str | None, quantized: bool = True) -> Iterator[PeftModel]:
        """Load the base model, of the federation's own files, with a client's adapter; without one, the base alone.

        Args:
            client: The client's id.
            quantized: Whether the weights are held as in the training, if that quantises them.

        Raises:
            PerfitError: As :meth:`write_merged`.
        """
        from peft import PeftModel

        from perfit.lora import quiet_peft

        weights = None if client is None else self.weights(client)
        with tempfile.TemporaryDirectory() as scratch:
            source = checked_model(self._manifest, model_cache(), Path(scratch, "model"))
            training = self.context.spec.training
            if not quantized and check_quantization(source, None):
                raise PerfitError(
                    f"nothing is merged into quantised weights, which {self._manifest.model} has",
                    "export without --merged, or use a federation on the model that they were made from",
                )
            model = load_model(source, training.precision, training.quantization if quantized else None)
            if weights is not None:
                adapter = Path(scratch, "adapter")
                adapter.mkdir()
                self._write_peft(weights, adapter)
                with quiet_peft():
                    model = PeftModel.from_pretrained(model, adapter)
            yield model

    def _write_peft(self, weights: bytes, directory: Path) -> None:
        """The configuration follows the federation file: the stored one is whatever its client wrote."""
        lora = portable_lora(self.context.spec.expanded_lora, weights)
        (directory / CONFIG_FILE).write_bytes(peft_config(lora, self._base.name, self._base.revision))
        (directory / WEIGHTS_FILE).write_bytes(weights)

    def _card(self, client: str, merged: bool = False) -> Card:
        record = last_records(self.context.summaries()).get(client)
        return Card(self.context.spec, client, self._base, self._manifest, record, merged)


def _client_file(context: FederationContext, client: str, name: str) -> bytes:
    try:
        return context.store.get_client_file(client, f"{ADAPTER_DIRECTORY}/{name}")
    except ObjectNotFound as error:
        raise PerfitError(
            f"client {client!r} of federation {context.spec.name!r} has no adapter yet",
            f"run a round with it; the clients are: {', '.join(c.id for c in context.spec.clients)}",
        ) from error


@contextmanager
def _replacing(directory: Path, only_empty: bool = False) -> Iterator[Path]:
    """A directory to fill, which takes the place of an empty one or of an adapter's once it is complete."""
    with writing(directory):
        present = {path.name for path in directory.iterdir()} if directory.is_dir() else set()
        replaceable = directory.is_dir() and (not present or (CONFIG_FILE in present and not only_empty))
        if directory.exists() and not replaceable:
            problem = "is not empty" if only_empty and directory.is_dir() else "exists and holds no adapter"
            raise PerfitError(f"{directory} {problem}", "give a new directory")
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as scratch:
            draft = Path(scratch, "draft")
            draft.mkdir()
            yield draft
            if directory.exists():
                shutil.rmtree(directory)
            draft.rename(directory)
