"""Local training of a model's trainable parameters, by transformers' Trainer."""

from __future__ import annotations

import logging
import math
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from perfit import processes
from perfit.checkpoint import Checkpoint, Checkpoints
from perfit.errors import TrainingDiverged
from perfit.examples import IGNORE_INDEX, Example
from perfit.responses import only_responses, response_tokens
from perfit.seeds import derive_seed
from perfit.spec import Training

OnStep = Callable[[int, int, float], None]
"""Called after every optimiser step with the step (from 1), the number of steps and the loss (nats per token)."""

_OPTIMIZERS = {"adamw": "adamw_torch", "sgd": "sgd"}
_OPTIMIZER_STATE = {"adamw": ("step", "exp_avg", "exp_avg_sq"), "sgd": ()}
"""What torch's optimiser keeps for each parameter; the step is a scalar."""
_GRADIENT_CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}

_LOG = logging.getLogger(__name__)


class StatefulCallback(TrainerCallback, ABC):
    """A callback with a state that the rest of the training depends on."""

    @abstractmethod
    def state(self) -> dict[str, torch.Tensor]:
        """Return the state by name: the tensors themselves, into which those of a checkpoint are copied."""


def train(
    model: torch.nn.Module,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    options: Training,
    *,
    steps: int,
    seed: int,
    on_step: OnStep | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoints: Checkpoints | None = None,
) -> list[float]:
    """Train the parameters of a model that require gradients, at a constant rate.

    Several processes that call this with the same arguments divide the examples of each step among them, and all get
    the values and losses of one process, up to the order in which gradients are summed; but each draws its own dropout.

    Args:
        model: A causal language model; its parameters change in place.
        examples: Tokenised records; shuffled by ``seed`` in every pass over them.
        tokenizer: For padding.
        options: Batch, rate and precision.
        steps: Number of optimiser steps.
        seed: Seed of the order of the examples.
        on_step: Reports progress.
        callbacks: Further callbacks of the Trainer. They do not see the steps before a checkpoint; what they need of
            those is the state of a :class:`StatefulCallback`.
        checkpoints: What the training goes on from, and where it leaves others.

    Returns:
        The loss of every step, nats per response token.

    Raises:
        TrainingDiverged: A loss is not finite.
    """
    losses = _Losses(on_step)
    if processes.count() > 1:
        _keep_frozen(model)
    with tempfile.TemporaryDirectory() as unused:
        trainer = _Trainer(
            model=model,
            args=_arguments(options, steps, seed, unused),
            train_dataset=[features(example) for example in examples],
            data_collator=_Collator(tokenizer),
            compute_loss_func=_loss,
        )
        trainer.remove_callback(PrinterCallback)
        state = _OPTIMIZER_STATE[options.optimizer]
        trainer.add_callback(_Resumption(trainer, losses, callbacks, state, checkpoints or Checkpoints()))
        try:
            trainer.train()
        finally:
            _restore(trainer)
    return losses.values


def _arguments(options: Training, steps: int, seed: int, directory: str) -> TrainingArguments:
    size, batches = processes.share_of(options.batch_size, options.gradient_accumulation, processes.count())
    return TrainingArguments(
        output_dir=directory,
        max_steps=steps,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=batches,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_gradient_norm,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=options.warmup_steps,
        optim=_OPTIMIZERS[options.optimizer],
        bf16=options.precision == "bfloat16",
        ddp_find_unused_parameters=True,  # one process would also train a model of which an input uses a part
        **_GRADIENT_CHECKPOINTING if options.gradient_checkpointing else {},
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        logging_steps=1,
        logging_nan_inf_filter=False,
    )


def features(example: Example) -> dict[str, list[int]]:
    """Return an example as the inputs of a causal language model."""
    return {
        "input_ids": example.input_ids,
        "attention_mask": [1] * len(example.input_ids),
        "labels": example.labels,
    }


class _Collator(DataCollatorForSeq2Seq):
    """Pads a batch. In place of an empty one it gives an example without a response, of no loss and no gradient."""

    def __call__(self, features, return_tensors=None):
        token = self.tokenizer.pad_token_id
        empty = {"input_ids": [token] * 2, "attention_mask": [1] * 2, "labels": [IGNORE_INDEX] * 2}
        return super().__call__(features or [empty], return_tensors)


class _Trainer(Trainer):
    """Computes each parametrised weight once per step, though PEFT reads it twice, and logits of responses alone.

    With gradient checkpointing it computes weights twice: the second computation of a layer must do what the first
    did, including what a cache would skip.

    Of the ``done`` steps before a checkpoint it only draws the batches, so that the order of the others is that of an
    uninterrupted training, across passes over the data too.

    Where there are several processes, accelerate would give each other batches than those of one process at the end of
    a pass over the data, and copy the whole model from the first process to the others.
    """

    done = 0

    def get_train_dataloader(self) -> DataLoader:
        if processes.count() == 1:
            return super().get_train_dataloader()
        size, batches = self.args.per_device_train_batch_size, self.args.gradient_accumulation_steps
        order = SeedableRandomSampler(self.train_dataset, data_seed=self.args.seed)  # that of one process
        shares = processes.Shares(order, size, batches, processes.index(), processes.count())
        return DataLoader(self.train_dataset, batch_sampler=shares, collate_fn=self.data_collator)

    def compute_loss(self, model, inputs, *args, **kwargs):
        with only_responses(self.model, inputs["labels"]):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        if self.state.global_step < self.done:
            return torch.zeros((), device=self.args.device)
        with nullcontext() if self.args.gradient_checkpointing else parametrize.cached():
            return super().training_step(*args, **kwargs)


def _keep_frozen(model: torch.nn.Module) -> None:
    """Let the processes exchange trained parameters alone: all else is the same, and may be gigabytes."""
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    buffers = {name for name, _ in model.named_buffers()}
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen | buffers)


def _restore(trainer: Trainer) -> None:
    """Take off the model what would stay for evaluations and trainings to come: autocast, gradient checkpointing."""
    if trainer.args.gradient_checkpointing:
        trainer.model.gradient_checkpointing_disable()
    trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    vars(trainer.model).pop("_is_accelerate_prepared", None)  # or the next training would run without


def _loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.logits.float(), response_tokens(labels), reduction="sum") / num_items_in_batch


class _Losses(TrainerCallback):
    def __init__(self, on_step: OnStep | None):
        self.values: list[float] = []
        self._on_step = on_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise TrainingDiverged(f"the loss is {loss} at step {len(self.values) + 1} of {args.max_steps}")
        self.values.append(loss)
        if self._on_step:
            self._on_step(len(self.values), args.max_steps, loss)


class _Resumption(TrainerCallback):
    """Goes on from a checkpoint, if there is one, and leaves others.

    The other callbacks begin at the first step that is not done. What a step draws (dropout) follows from its number,
    so that no generator has a state to keep.
    """

    def __init__(
        self,
        trainer: _Trainer,
        losses: _Losses,
        callbacks: Sequence[TrainerCallback],
        optimizer_state: Sequence[str],
        checkpoints: Checkpoints,
    ):
        self._trainer, self._losses, self._callbacks = trainer, losses, callbacks
        self._optimizer_state, self._checkpoints = optimizer_state, checkpoints
        self._last: Checkpoint | None = None

    def on_train_begin(self, args, state, control, optimizer=None, **kwargs):
        self._last = self._checkpoints.take_last(lambda: self._tensors(optimizer), args.max_steps)
        if self._last:
            self._trainer.done = len(self._last.losses)
            _LOG.warning("going on after step %d of %d, from a checkpoint", self._trainer.done, args.max_steps)

    def on_step_begin(self, args, state, control, optimizer=None, **kwargs):
        step, done = state.global_step, self._trainer.done
        further = (processes.index(),) if processes.index() else ()  # each process has other examples
        torch.manual_seed(derive_seed(args.seed, "step", step, *further))
        if step == done:
            if self._last:
                self._restore(self._last, optimizer)
                self._last = None  # as large as the optimiser's state
            for callback in (self._losses, *self._callbacks):
                self._trainer.add_callback(callback)
        elif step > done and self._checkpoints.is_due(step):
            self._checkpoints.save(self._losses.values, self._tensors(optimizer))

    def _tensors(self, optimizer) -> dict[str, torch.Tensor]:
        """Return all that a step changes, by name. Before a parameter's first gradient its state is zero."""
        tensors = {}
        for i, parameter in enumerate(_parameters(optimizer)):
            tensors[f"values/{i}"] = parameter.detach()
            state = optimizer.state.get(parameter) or {
                name: torch.zeros(()) if name == "step" else torch.zeros_like(parameter)
                for name in self._optimizer_state
            }
            tensors |= {f"{name}/{i}": state[name] for name in self._optimizer_state}
        for callback in self._callbacks:
            if isinstance(callback, StatefulCallback):
                tensors |= callback.state()
        return tensors

    def _restore(self, checkpoint: Checkpoint, optimizer) -> None:
        for name, tensor in self._tensors(optimizer).items():
            tensor.copy_(checkpoint.tensors[name])
        state = {
            i: {name: checkpoint.tensors[f"{name}/{i}"] for name in self._optimizer_state}
            for i in range(len(_parameters(optimizer)))
        }
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        self._losses.values[:] = checkpoint.losses


def _parameters(optimizer) -> list[torch.nn.Parameter]:
    """Return the parameters of an optimiser in the order in which its state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
