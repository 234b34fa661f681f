"""Checkpoints: all that the rest of a training depends on, between two optimiser steps, as a file.

A client whose task was killed goes on from its last checkpoint, to the bytes of an uninterrupted training. Losing a
checkpoint costs time and nothing else: if one cannot be written, read or used, that is logged and the training does
without.

The file is safetensors. Its header holds the losses so far, a hash of what the training depends on, and a hash of
everything in the file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from safetensors.torch import load, save

from perfit import processes
from perfit.adapter_file import read_fields
from perfit.errors import PerfitError

if TYPE_CHECKING:
    from perfit.examples import ExampleSet
    from perfit.spec import Client, FederationSpec

FORMAT_VERSION = 1

_LOG = logging.getLogger(__name__)


class CheckpointFile(Protocol):
    """Where a client keeps the last checkpoint of the training that it is in."""

    def load(self, limit: int) -> bytes | None:
        """Return the content, None if there is none.

        Raises:
            PerfitError: It cannot be read, or has more than ``limit`` bytes.
        """
        ...

    def save(self, data: bytes) -> None:
        """Replace the content, wholly or not at all.

        Raises:
            PerfitError: It cannot be written.
        """
        ...


class CheckpointError(ValueError):
    """The bytes are not a checkpoint of this training."""


@dataclass(frozen=True)
class Checkpoint:
    """A training between two optimiser steps.

    Args:
        losses: Of the steps that are done, nats per response token.
        measured: What was measured before the first step, by name.
        tensors: Trainable values, and the state of the optimiser and of callbacks, by name.
    """

    losses: list[float]
    measured: dict[str, float]
    tensors: Mapping[str, torch.Tensor]

    def dump(self, training: str) -> bytes:
        """Return the file; ``training`` is the hash of what the training depends on."""
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        fields = {
            "format_version": FORMAT_VERSION,
            "training": training,
            "losses": self.losses,
            "measured": self.measured,
        }
        return save(tensors, metadata={"perfit": json.dumps({**fields, "sha256": _content_hash(fields, tensors)})})

    @classmethod
    def parse(cls, data: bytes, training: str) -> Checkpoint:
        """Read a file.

        Raises:
            CheckpointError: It is damaged, or belongs to another training.
        """
        try:
            fields = read_fields(data)
            if (fields["format_version"], fields["training"]) != (FORMAT_VERSION, training):
                raise CheckpointError("it belongs to another training")
            tensors, sha256 = load(data), fields.pop("sha256")
            if sha256 != _content_hash(fields, tensors):
                raise CheckpointError("its content does not have its hash")
            losses = [float(loss) for loss in fields["losses"]]
            measured = {name: float(value) for name, value in fields["measured"].items()}
        except CheckpointError:
            raise
        except Exception as error:  # of any type: the parsers are given any bytes
            raise CheckpointError(f"it is damaged ({type(error).__name__})") from error
        return cls(losses, measured, tensors)

    def check(self, expected: Mapping[str, torch.Tensor], steps: int) -> None:
        """Compare the checkpoint with a training of so many steps, and with its tensors in name, shape and type.

        Raises:
            CheckpointError: They differ, or a number is not finite.
        """
        if not 0 < len(self.losses) < steps or not all(map(math.isfinite, self.losses)):
            raise CheckpointError(f"it has {len(self.losses)} losses, or one that is not finite")
        if self.tensors.keys() != expected.keys():
            raise CheckpointError("it has other tensors than the training")
        for name, tensor in self.tensors.items():
            if (tensor.shape, tensor.dtype) != (expected[name].shape, expected[name].dtype):
                raise CheckpointError(f"{name} is {tensor.dtype}{tuple(tensor.shape)}")
            if not torch.isfinite(tensor).all():
                raise CheckpointError(f"{name} is not finite")


class Checkpoints:
    """The checkpoints of one training. Of several processes the first alone reads and writes them.

    Args:
        file: Where the last one is kept; None for no checkpoints.
        training: Hash of what the training depends on, from :func:`training_hash`.
        every: Number of steps between two checkpoints.
        limit: Maximum number of bytes of one.
    """

    def __init__(self, file: CheckpointFile | None = None, training: str = "", every: int = 0, limit: int = 0):
        self._file, self._training, self._every = file, training, every
        self._last = self._load(limit) if file else None
        self._measured = dict(self._last.measured) if self._last else {}

    def measured(self, name: str, measure: Callable[[], float]) -> float:
        """Return a number that is measured before the first step, from the last checkpoint if that has it."""
        if name not in self._measured:
            self._measured[name] = measure()
        return self._measured[name]

    def take_last(self, expected: Callable[[], Mapping[str, torch.Tensor]], steps: int) -> Checkpoint | None:
        """Hand over the checkpoint to go on from, None if there is none that passes :meth:`Checkpoint.check`."""
        last, self._last = self._last, None
        try:
            if last:
                last.check(expected(), steps)
            return last
        except CheckpointError as error:
            _LOG.warning("the checkpoint is not used: %s", error)
            return None

    def is_due(self, step: int) -> bool:
        """Whether there is to be a checkpoint after this many steps."""
        return self._file is not None and step % self._every == 0

    def save(self, losses: list[float], tensors: Mapping[str, torch.Tensor]) -> None:
        """Write a checkpoint, if that is possible."""
        if processes.index() > 0:
            return
        try:
            self._file.save(Checkpoint(losses, self._measured, tensors).dump(self._training))
        except PerfitError as error:
            _LOG.warning("the checkpoint after step %d is not written: %s", len(losses), error.problem)

    def _load(self, limit: int) -> Checkpoint | None:
        data = processes.of_first(lambda: self._read(limit))
        try:
            return None if data is None else Checkpoint.parse(data, self._training)
        except CheckpointError as error:
            _LOG.warning("the checkpoint is not used: %s", error)
        return None

    def _read(self, limit: int) -> bytes | None:
        try:
            return self._file.load(limit)
        except PerfitError as error:
            _LOG.warning("the checkpoint is not used: %s", error.problem)
        return None


def training_hash(
    spec: FederationSpec,
    client: Client,
    round: int,
    examples: tuple[ExampleSet, ...],
    vectors: Mapping[str, np.ndarray],
) -> str:
    """Return the hash of what a client's training depends on.

    Args:
        spec: The federation.
        client: The client.
        round: From 1; 0 for a search.
        examples: The client's examples.
        vectors: Arrays that the training starts from, by name.
    """
    digest = hashlib.sha256()
    _update(digest, [spec.fixed(), spec.rank_of(client), client.id, round, [part.sha256 for part in examples]])
    if processes.count() > 1:  # each draws what it drops out
        _update(digest, {"processes": processes.count()})
    for name, vector in sorted(vectors.items()):
        _update(digest, [name, str(vector.dtype), vector.shape])
        digest.update(vector.tobytes())
    return digest.hexdigest()


def _content_hash(fields: dict[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    _update(digest, fields)
    for name, tensor in sorted(tensors.items()):
        _update(digest, [name, str(tensor.dtype), tensor.shape])
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _update(digest, fields: Any) -> None:
    digest.update(json.dumps(fields, sort_keys=True).encode())
