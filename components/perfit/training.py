"""Local training of a model's trainable parameters, by transformers' Trainer."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from perfit.errors import TrainingDiverged
from perfit.examples import Example
from perfit.responses import only_responses, response_tokens
from perfit.spec import Training

OnStep = Callable[[int, int, float], None]
"""Called after every optimiser step with the step (from 1), the number of steps and the loss (nats per token)."""

_OPTIMIZERS = {"adamw": "adamw_torch", "sgd": "sgd"}
_CHECKPOINTING = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


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
) -> list[float]:
    """Train the parameters of a model that require gradients, at a constant rate.

    Args:
        model: A causal language model; its parameters change in place.
        examples: Tokenised records; shuffled by ``seed`` in every pass over them.
        tokenizer: For padding.
        options: Batch, rate and precision.
        steps: Number of optimiser steps.
        seed: Seed of the order of the examples.
        on_step: Reports progress.
        callbacks: Further callbacks of the Trainer.

    Returns:
        The loss of every step, nats per response token.

    Raises:
        TrainingDiverged: A loss is not finite.
    """
    losses = _Losses(on_step)
    with tempfile.TemporaryDirectory() as unused:
        trainer = _Trainer(
            model=model,
            args=_arguments(options, steps, seed, unused),
            train_dataset=[features(example) for example in examples],
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            compute_loss_func=_loss,
            callbacks=[losses, *callbacks],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return losses.values


def _arguments(options: Training, steps: int, seed: int, directory: str) -> TrainingArguments:
    return TrainingArguments(
        output_dir=directory,
        max_steps=steps,
        per_device_train_batch_size=options.batch_size,
        gradient_accumulation_steps=options.gradient_accumulation,
        learning_rate=options.learning_rate,
        weight_decay=options.weight_decay,
        max_grad_norm=options.max_gradient_norm,
        lr_scheduler_type="constant",
        optim=_OPTIMIZERS[options.optimizer],
        bf16=options.precision == "bfloat16",
        **_CHECKPOINTING if options.gradient_checkpointing else {},
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


class _Trainer(Trainer):
    """Computes each parametrised weight once per step, though PEFT reads it twice, and logits of responses alone.

    With gradient checkpointing it computes weights twice: the second computation of a layer must do what the first
    did, including what a cache would skip.
    """

    def compute_loss(self, model, inputs, *args, **kwargs):
        with only_responses(model, inputs["labels"]):
            return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args, **kwargs) -> torch.Tensor:
        with nullcontext() if self.args.gradient_checkpointing else parametrize.cached():
            return super().training_step(*args, **kwargs)


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
