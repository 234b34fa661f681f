"""The running of one cell, in a process of its own: ``python -m perfit.bench.cell RESULT CACHE < JOB``."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from perfit.bench.answers import exact_match, greedy_answers, rouge_l
from perfit.bench.measure import OnRound, finite, measure
from perfit.bench.results import AnswerScores, CellResult, RoundResult
from perfit.bench.spec import Generation, Job
from perfit.client import ClientData, evaluate
from perfit.errors import PerfitError, TrainingDiverged
from perfit.examples import draw_held_out
from perfit.lora import set_dense
from perfit.seeds import derive_seed
from perfit.simulation import Simulation


def run_cell(job: Job, cache: Path, on_round: OnRound | None = None) -> CellResult:
    """Run a cell to its end.

    Args:
        job: What to run.
        cache: Where converted models are kept.
        on_round: Called after each round.

    Returns:
        Its results; if a training diverged or a search was refused, as at some point of a grid may be, only why.

    Raises:
        PerfitError: The model or the records are unusable.
    """
    if job.threads:
        torch.set_num_threads(job.threads)
    simulation, validation = load(job, cache)
    try:
        return _run(job, simulation, validation, on_round)
    except (TrainingDiverged, PerfitError) as error:
        return CellResult(job=job, environment=_environment(), failure=str(error).partition("\n")[0])


def load(job: Job, cache: Path) -> tuple[Simulation, dict[str, ClientData]]:
    """Return the simulation, and each client's data with the validation records in place of the held-out ones."""
    simulation, data, validation = Simulation.load(job.spec, cache), {}, {}
    for client, records in simulation.data.items():
        seed = derive_seed(job.spec.training.seed, "bench-validation", client)
        train, chosen = draw_held_out(records.train, job.validation_fraction, seed)
        data[client], validation[client] = ClientData(train, records.held_out), ClientData(train, chosen)
    return replace(simulation, data=data), validation


def _run(job: Job, simulation: Simulation, validation: dict[str, ClientData], on_round: OnRound | None) -> CellResult:
    measured, state = measure(simulation, on_round)
    base = simulation.model.space.initial_values(job.spec.training.seed)
    values = {client.id: base for client in job.spec.clients}
    values |= {client: result.adapter.dense() for client, result in state.results.items()}
    scores = {id: finite(evaluate(simulation.model, job.spec, validation[id], v)) for id, v in values.items()}
    answers = _answers(simulation, values, job.answers) if job.answers else {}
    own = {"validation": scores, "answers": answers, "peak_memory": _peak_memory()}
    return CellResult(job=job, environment=_environment(), **{**dict(measured), **own})


def _answers(simulation: Simulation, values: dict[str, np.ndarray], limits: Generation) -> dict[str, AnswerScores]:
    model, batch_size, scores = simulation.model, simulation.spec.training.batch_size, {}
    for client, dense in values.items():
        whole = [example for example in simulation.data[client].held_out.examples if not example.truncated]
        if examples := whole[: limits.records]:
            set_dense(model.peft, model.space, dense)
            pairs = greedy_answers(model.peft, examples, model.tokenizer, limits.tokens, batch_size)
            scores[client] = AnswerScores(
                records=len(pairs),
                exact_match=float(np.mean([exact_match(*pair) for pair in pairs])),
                rouge_l=float(np.mean([rouge_l(*pair) for pair in pairs])),
            )
    return scores


def _environment() -> str:
    versions = [f"{name} {version(name)}" for name in ("torch", "transformers", "peft")]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    return ", ".join([*versions, f"{torch.get_num_threads()} threads", device])


def _peak_memory() -> int | None:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        # Not getrusage: its peak includes that of the parent process.
        status = Path("/proc/self/status").read_text()
    except OSError:  # no Linux
        return None
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _main(target: str, cache: str) -> None:
    def show(number: int, result: RoundResult) -> None:
        personal, shared = (np.mean(list(values.values())) for values in (result.personal, result.shared))
        print(f"  round {number}: perplexity personal {personal:.2f}, shared {shared:.2f}", flush=True)

    result = run_cell(Job.model_validate_json(sys.stdin.read()), Path(cache), show)
    draft = Path(f"{target}.draft")
    draft.write_text(result.model_dump_json(indent=1))
    draft.replace(target)


if __name__ == "__main__":
    _main(*sys.argv[1:])
