"""The search for a personal architecture: iterative pruning of the expanded LoRA (PerFIT, arXiv 2402.16919, section 3).

The expanded LoRA is trained on the client's data and pruned step by step until exactly the budget is left. B starts at
zero, so the gradient of A does too; scores are therefore accumulated over warm-up steps before the first pruning. Only
the mask is the result: the trained values are discarded, and tuning starts from the global values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from perfit import processes
from perfit.checkpoint import Checkpoints
from perfit.errors import PerfitError, TrainingDiverged
from perfit.examples import Example
from perfit.importance import METRICS
from perfit.lora import dense_weights, set_dense
from perfit.methods import Search
from perfit.pruning import cubic_schedule, dead_layers, prune
from perfit.space import LoraSpace
from perfit.spec import Training
from perfit.training import OnStep, StatefulCallback, train


def search_architecture(
    model: torch.nn.Module,
    space: LoraSpace,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    search: Search,
    options: Training,
    *,
    initial: np.ndarray,
    rank: int,
    seed: int,
    on_step: OnStep | None = None,
    checkpoints: Checkpoints | None = None,
) -> np.ndarray:
    """Find the positions that matter most to these examples, or draw them if the metric needs no data.

    Args:
        model: PEFT model with the expanded LoRA, dense; its values are overwritten.
        space: The expanded space of N positions.
        examples: The client's training examples.
        tokenizer: For padding.
        search: Metric, scope and schedule.
        options: How to train while pruning; ``steps`` is for tuning and not used here.
        initial: Values that the search starts from, float32, shape (N,).
        rank: The client's rank, which gives the budget.
        seed: Seed of the order of the examples and of the order among ties, which is all that a drawn mask follows.
        on_step: Reports progress.
        checkpoints: What the search goes on from, and where it leaves others.

    Returns:
        bool, shape (N,), exactly ``space.budget(rank)`` of them set.

    Raises:
        PerfitError: Of some module only A or only B would be left; several processes found different masks.
        TrainingDiverged: The loss is not finite.
    """
    if rank == space.rank:
        return np.ones(space.size, dtype=bool)
    if search.is_drawn:
        everything, scores = np.ones(space.size, dtype=bool), np.zeros(space.size, dtype=np.float32)
        mask = prune(space, everything, scores, rank=rank, redundant=0, scope=search.scope, seed=seed)
    else:
        set_dense(model, space, initial)
        pruner = _Pruner(model, space, search, rank, seed, initial)
        train(
            model,
            examples,
            tokenizer,
            options,
            steps=search.steps,
            seed=seed,
            on_step=on_step,
            callbacks=[pruner],
            checkpoints=checkpoints,
        )
        mask = pruner.mask
        processes.check_alike("masks", mask)
    if dead := dead_layers(space, mask):
        raise PerfitError(
            f"the search by method.metric {search.metric} left only A or only B of {len(dead)} modules, of which the "
            f"first is {dead[0]}: they would never adapt anything",
            "set method.scope: matrix, in which A and B each keep their share, or raise method.search_steps",
        )
    return mask


class _Pruner(StatefulCallback):
    """Accumulates importance before each optimiser step, and prunes after the steps that the schedule names."""

    def __init__(
        self, model: torch.nn.Module, space: LoraSpace, search: Search, rank: int, seed: int, initial: np.ndarray
    ):
        self._weights = dense_weights(model)
        self._scores = {name: torch.zeros_like(weight) for name, weight in self._weights.items()}
        self._alive = {name: torch.ones_like(weight, dtype=torch.bool) for name, weight in self._weights.items()}
        self._start = {
            name: torch.from_numpy(block).to(self._weights[name].device) for name, block in space.split(initial).items()
        }
        self._schedule = cubic_schedule(search.steps, search.warmup_steps, search.pruning_iterations)
        self._space, self._search, self._rank, self._seed = space, search, rank, seed

    @property
    def mask(self) -> np.ndarray:
        """The positions that are not pruned: bool, shape (N,)."""
        return _flat(self._alive)

    def state(self) -> dict[str, torch.Tensor]:
        scores = {f"scores/{name}": score for name, score in self._scores.items()}
        return scores | {f"alive/{name}": alive for name, alive in self._alive.items()}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        metric = METRICS[self._search.metric]
        with torch.no_grad():
            for name, weight in self._weights.items():
                self._scores[name] = metric(self._scores[name], weight, weight.grad, self._start[name])

    def on_optimizer_step(self, args, state, control, **kwargs):
        step = state.global_step + 1
        if step in self._schedule:
            self._prune(step, args.max_steps)
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.mul_(self._alive[name])

    def _prune(self, step: int, steps: int) -> None:
        scores = _flat(self._scores)
        if not np.isfinite(scores).all():
            raise TrainingDiverged(f"an importance score is not finite at step {step} of {steps}")
        mask = prune(
            self._space,
            self.mask,
            scores,
            rank=self._rank,
            redundant=self._schedule[step],
            scope=self._search.scope,
            seed=self._seed,
        )
        for name, block in self._space.split(mask).items():
            self._alive[name].copy_(torch.from_numpy(block))


def _flat(tensors: dict[str, torch.Tensor]) -> np.ndarray:
    """Return one tensor for each matrix as one flat array, in the order of the space."""
    return np.concatenate([tensor.cpu().numpy().ravel() for tensor in tensors.values()])
