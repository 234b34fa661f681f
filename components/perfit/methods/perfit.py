"""PerFIT: a personal sparse LoRA for each client (Zhang et al., 2024, arXiv 2402.16919).

Each client searches for its architecture in an expanded space (:mod:`perfit.search`) and trains its positions; the
server averages each position over the clients that hold it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from perfit.importance import MetricName
from perfit.methods.method import Method, MethodOptions, Search, SearchStart
from perfit.pruning import Scope


class Options(MethodOptions):
    """How clients search: ``scope`` is the group within which parameters compete, by ``metric``.

    They search before their first round, and again after every round that ``search_every`` divides, if it is not 0.
    """

    name: Literal["perfit"] = "perfit"
    metric: MetricName = "taylor"
    scope: Scope = "layer"
    search_steps: int = Field(default=20, ge=1)
    warmup_steps: int = Field(default=5, ge=0)
    pruning_iterations: int = Field(default=5, ge=1)
    search_every: int = Field(default=0, ge=0)
    search_from: SearchStart = "initial"

    @model_validator(mode="after")
    def _room_to_prune(self) -> Options:
        room = self.search_steps - self.warmup_steps
        if self.pruning_iterations > room:
            raise ValueError(
                f"{self.pruning_iterations} pruning iterations do not fit in the {room} of {self.search_steps} search "
                "steps that follow the warm-up: raise search_steps or lower pruning_iterations or warmup_steps"
            )
        return self


def search(options: Options) -> Search:
    """Return how clients search for their architectures."""
    return Search(
        metric=options.metric,
        scope=options.scope,
        steps=options.search_steps,
        warmup_steps=options.warmup_steps,
        pruning_iterations=options.pruning_iterations,
        every=options.search_every,
        start=options.search_from,
    )


METHOD = Method("PerFIT", "arXiv 2402.16919", Options, search=search)
