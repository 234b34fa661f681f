"""The running of one cell, in a process of its own: ``python -m perfit.bench.cell RESULT CACHE < JOB``."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3

from perfit.adapter import mask_hash
from perfit.adapter_file import AdapterHeader, dump_mask, dump_server_vectors, dump_transfer
from perfit.bench.answers import exact_match, greedy_answers, rouge_l
from perfit.bench.results import AnswerScores, CellResult, RoundResult
from perfit.bench.spec import Generation, Job
from perfit.client import ClientData, evaluate
from perfit.errors import PerfitError, TrainingDiverged
from perfit.examples import draw_held_out
from perfit.lora import set_dense
from perfit.round import download, split_state
from perfit.sampling import sample_clients
from perfit.seeds import derive_seed
from perfit.simulation import Simulation, State
from perfit.spec import Client

OnRound = Callable[[int, RoundResult], None]


def run_cell(job: Job, cache: Path, on_round: OnRound = lambda number, result: None) -> CellResult:
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


def _run(job: Job, simulation: Simulation, validation: dict[str, ClientData], on_round: OnRound) -> CellResult:
    state, rounds = simulation.start(), []
    start = _shared(simulation, state)
    for number in range(1, job.spec.rounds + 1):
        began = time.perf_counter()
        before, state = state, simulation.next_round(state)
        rounds.append(round_result(simulation, before, state, start, time.perf_counter() - began))
        on_round(number, rounds[-1])
    base = simulation.model.space.initial_values(job.spec.training.seed)
    values = {client.id: base for client in job.spec.clients}
    values |= {client: result.adapter.dense() for client, result in state.results.items()}
    return CellResult(
        job=job,
        environment=_environment(),
        trainable={client: _trained(simulation, held) for client, held in state.architectures.items()},
        start=start,
        rounds=tuple(rounds),
        validation={id: _finite(evaluate(simulation.model, job.spec, validation[id], v)) for id, v in values.items()},
        answers=_answers(simulation, values, job.answers) if job.answers else {},
        peak_memory=_peak_memory(),
    )


def round_result(
    simulation: Simulation, before: State, after: State, start: Mapping[str, float], seconds: float
) -> RoundResult:
    """Measure a round.

    Args:
        simulation: The federation.
        before: Its state before the round.
        after: Its state after it.
        start: Perplexity of each client before the first round, which stands for one that has not taken part.
        seconds: What the round took.

    Raises:
        TrainingDiverged: A perplexity is not finite.
    """
    spec = simulation.spec
    base = dump_server_vectors(spec, simulation.model.space, before.round, split_state(spec, before.vectors)[0])
    base_digest = blake3(base).hexdigest()
    participants = sample_clients(spec.clients, spec.participation, spec.training.seed, after.round)
    sizes = {client.id: _bytes(simulation, before, after, client, base_digest) for client in participants}
    return RoundResult(
        personal={**start, **{client: result.perplexity_after for client, result in after.results.items()}},
        shared=_shared(simulation, after),
        bytes_up={client: up for client, (up, _) in sizes.items()},
        bytes_down={client: down for client, (_, down) in sizes.items()},
        seconds={client.id: seconds / len(participants) for client in participants},
    )


def _bytes(simulation: Simulation, before: State, after: State, client: Client, base: str) -> tuple[int, int]:
    """Return the bytes up and down of a client's round: of the very files that the pipeline's steps would write."""
    spec, space, number = simulation.spec, simulation.model.space, after.round
    result = after.results[client.id]
    held, following = result.adapter.mask, after.architectures[client.id]
    budget, digest = int(np.count_nonzero(held)), mask_hash(space, held)
    header = AdapterHeader.of_client(spec, client.id, number, budget, digest)
    is_first = client.id not in before.results
    size = len(dump_mask(header, space, held))
    up = size * (is_first + (not np.array_equal(following, held)))
    if result.updated.any():
        up += len(dump_transfer(header.at_base(base), result.updated, result.upload))
    if not result.exchanged.any() or (is_first and spec.search):  # then the server does not know its architecture yet
        return up, 0
    header = AdapterHeader.of_download(spec, client.id, number, budget, digest, base)
    sent = download(spec, before.vectors, result.exchanged, number, client)
    return up, len(dump_transfer(header, spec.roles(space, held).shared, sent))


def _shared(simulation: Simulation, state: State) -> dict[str, float]:
    def perplexity(client: str, values: np.ndarray) -> float:
        last = state.results.get(client)
        if last and np.array_equal(values, last.adapter.dense()):  # nothing was exchanged
            return last.perplexity_after
        return _finite(evaluate(simulation.model, simulation.spec, simulation.data[client], values))

    return {client.id: perplexity(client.id, values) for client, values in simulation.next_starts(state)}


def _trained(simulation: Simulation, held: np.ndarray) -> int:
    return int(np.count_nonzero(simulation.spec.roles(simulation.model.space, held).trained))


def _finite(perplexity: float) -> float:
    if not math.isfinite(perplexity):
        raise TrainingDiverged(f"a perplexity is {perplexity:g}")
    return perplexity


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
