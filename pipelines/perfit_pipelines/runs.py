"""Dividing a federation's tuning into runs that Kubeflow can take: see docs/scaling.md, "Several runs"."""

from __future__ import annotations

from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit_pipelines.compile import PipelineName, compile_part, participants_by_tier
from perfit_pipelines.pipelines import Images, Part
from perfit_pipelines.workflow_size import KEPT_BYTES, WorkflowSize

_SAMPLE = 64
"""Clients of which a larger number is extrapolated."""


def divide(
    spec: ClusterSpec, pipeline: PipelineName, store: str, images: Images, file: str | None = None, first: int = 1
) -> list[Part]:
    """Return what each of a pipeline's runs does, one run after the other; a single one if it is not too large.

    A tuning begins with round ``first``. A run takes as many rounds as fit. Where not even one does, several runs serve
    a round's participants in turn, and the last of them commits it.

    Raises:
        PerfitError: A run of one client would be too large; or as for compiling.
    """
    one, further = _rounds(spec, store, images, file)
    all_rounds = spec.rounds - first + 1 if pipeline == "federated_tuning" else 1
    rounds = 1 + (KEPT_BYTES - one.kept) // further.kept if one.kept <= KEPT_BYTES else 0
    if rounds >= all_rounds:
        return [Part(first)]
    if rounds:
        begins = range(first, spec.rounds + 1, rounds)
        return [Part(begin, min(begin + rounds - 1, spec.rounds)) for begin in begins]
    clients = sum(participants_by_tier(spec).values())
    runs = -(-clients // _capacity(spec, store, images, file))
    at_most = -(-clients // runs)
    if pipeline == "federated_round":
        return [Part(at_most=at_most)] * runs
    return [Part(round, round, at_most) for round in range(first, spec.rounds + 1) for _ in range(runs)]


def _capacity(spec: ClusterSpec, store: str, images: Images, file: str | None) -> int:
    """How many clients a run of one round may have."""
    compiled = compile_part(spec, "federated_round", store, images, Part(at_most=_SAMPLE), file)
    fixed, sample = compiled.size(dict.fromkeys(compiled.loops, 0)), compiled.size()
    half = compiled.size({tier: count // 2 for tier, count in compiled.loops.items()})
    client = (sample.kept - half.kept) / (_SAMPLE // 2)
    capacity = int(_SAMPLE + (KEPT_BYTES - sample.kept) / client)
    if capacity < 1:
        raise PerfitError(
            f"a run without clients takes {fixed.kept:,} bytes, more than a cluster takes ({KEPT_BYTES:,})",
            "shorten the file's node selectors, tolerations and image names, or use fewer tiers",
        )
    return capacity


def _rounds(spec: ClusterSpec, store: str, images: Images, file: str | None) -> tuple[WorkflowSize, WorkflowSize]:
    """The size of a run of one round with all its clients, and what each further round adds."""
    one, two = (compile_part(spec, "federated_tuning", store, images, Part(1, last), file).size() for last in (1, 2))
    return one, two.plus(one, -1)
