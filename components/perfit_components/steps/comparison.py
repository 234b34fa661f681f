"""Compares federations that have run, by the summaries of their rounds: the tables of a bench, without a run."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perfit.bench.comparison import Comparison, compare_methods
from perfit.bench.results import Measurements, RoundResult
from perfit.cluster_spec import ClusterSpec
from perfit.errors import PerfitError
from perfit.protocol import UpdateRecord
from perfit_components.steps.context import FederationContext

USUAL_BASELINES = ("fedit", "local")
_SAME = 1e-3
"""Relative difference of two perplexities of the base model on the same records: precisions and machines differ."""


@dataclass(frozen=True)
class _Federation:
    """A federation that has run, and the records of each client by round, for those that ever delivered."""

    uri: str
    directory: str
    spec: ClusterSpec
    rounds: int
    records: Mapping[str, Mapping[int, UpdateRecord]]

    @property
    def seed(self) -> int:
        return self.spec.training.seed

    @property
    def settings(self) -> str:
        """All that tells methods apart, but not their seeds."""
        tree = self.spec.fixed() | self.spec.model_dump(mode="json", include={"participation", "aggregation"})
        tree["training"].pop("seed")
        ranks = {client.id: self.spec.rank_of(client) for client in self.spec.clients}
        return json.dumps({**tree, "name": "", "ranks": ranks}, sort_keys=True)

    def measurements(self, clients: Sequence[str], rounds: int) -> Measurements:
        """Return what its records say of some clients, all of which have delivered, in its first rounds."""
        records = {client: self.records[client] for client in clients}
        return Measurements(
            trainable={client: max(of.items())[1].budget for client, of in records.items()},
            start={client: _first(of).perplexity.round_0 for client, of in records.items()},
            rounds=tuple(_round(records, number) for number in range(1, rounds + 1)),
        )


def compare_federations(contexts: Sequence[FederationContext], baselines: Sequence[str] | None = None) -> Comparison:
    """Compare federations over the clients that have delivered in each of them.

    Those that differ in their seeds and names alone are one method. A method's label is its name, or that of the
    federation's directory where several methods have the name. All count up to the last round that each has committed.

    Args:
        contexts: The federations.
        baselines: Labels of methods; None for those of ``USUAL_BASELINES`` that there are.

    Raises:
        PerfitError: The federations cannot be compared, or a store cannot be reached.
    """
    federations = [_read(context) for context in contexts]
    labelled = _labelled(federations)
    seeds = tuple(sorted(by_seed := next(iter(labelled.values()))))
    for label, of in labelled.items():
        if sorted(of) != sorted(by_seed):
            raise PerfitError(
                f"{label} has the seeds {sorted(of)}, {next(iter(labelled))} {sorted(by_seed)}: differences are paired",
                "compare federations of the same seeds (training.seed), or leave the others out",
            )
    baselines = [label for label in USUAL_BASELINES if label in labelled] if baselines is None else baselines
    rounds, clients = min(federation.rounds for federation in federations), _common_clients(federations)
    results = {label: [of[seed].measurements(clients, rounds) for seed in seeds] for label, of in labelled.items()}
    about = (
        f"{federations[0].spec.model} · {len(clients)} clients · {rounds} rounds · "
        f"seeds {', '.join(map(str, seeds))} · {'; '.join(federation.uri for federation in federations)}"
    )
    return compare_methods(results, baselines, seeds=seeds, name=_name(federations), about=about)


def _read(context: FederationContext) -> _Federation:
    summaries = context.summaries()
    if not summaries:
        raise PerfitError(f"{context.store.uri} has no committed round", "run it first, or leave it out")
    records: dict[str, dict[int, UpdateRecord]] = {}
    for summary in summaries:
        for record in summary.trained:
            records.setdefault(record.client, {})[summary.round] = record
    return _Federation(context.store.uri, context.store.name, context.spec, len(summaries), records)


def _labelled(federations: Sequence[_Federation]) -> dict[str, dict[int, _Federation]]:
    """Group federations by method; return each method's by seed, by label."""
    groups: dict[str, list[_Federation]] = {}
    for federation in federations:
        groups.setdefault(federation.settings, []).append(federation)
    names = [group[0].spec.method.name for group in groups.values()]
    labelled: dict[str, dict[int, _Federation]] = {}
    for group in groups.values():
        name = group[0].spec.method.name
        label = name if names.count(name) == 1 else group[0].directory
        by_seed = {federation.seed: federation for federation in group}
        if len(by_seed) < len(group) or label in labelled:
            raise PerfitError(
                f"{' and '.join(federation.uri for federation in group)} have the same settings and seeds, or a name "
                f"that another method has too ({label})",
                "name each federation once, and give federations that are compared names of their own",
            )
        labelled[label] = by_seed
    return labelled


def _common_clients(federations: Sequence[_Federation]) -> list[str]:
    """Return the clients that delivered in all federations, and were evaluated on the same records where seeds are."""
    first = federations[0]
    clients = [c for c in first.records if all(c in federation.records for federation in federations)]
    if not clients:
        raise PerfitError(
            "no client has delivered in all of the federations", "compare federations of the same clients"
        )
    for federation in federations[1:]:
        if federation.spec.model != first.spec.model:
            problem = f"{first.uri} is of model {first.spec.model}, {federation.uri} of {federation.spec.model}"
            raise PerfitError(problem, "compare federations of one model: perplexities of two have no common unit")
        other = next(f for f in federations if f.seed == federation.seed)
        for client in clients:
            mine, its = (_first(f.records[client]) for f in (federation, other))
            pairs = (mine.held_out_records, its.held_out_records), (mine.perplexity.round_0, its.perplexity.round_0)
            if not all(math.isclose(*pair, rel_tol=_SAME) for pair in pairs):
                raise PerfitError(
                    f"client {client!r} was evaluated on other records in {federation.uri} than in {other.uri} "
                    f"({its.held_out_records} and {mine.held_out_records} of them, base perplexity "
                    f"{its.perplexity.round_0:.4g} and {mine.perplexity.round_0:.4g})",
                    "compare federations of the same data, held-out records and sequence length",
                )
    return clients


def _round(records: Mapping[str, Mapping[int, UpdateRecord]], number: int) -> RoundResult:
    """Return a round's figures; what clients would start from is known if all took part in the next one too."""
    personal = {client: _last(of, number) for client, of in records.items()}
    now = {client: of[number] for client, of in records.items() if number in of}
    following = {client: of[number + 1].perplexity.before for client, of in records.items() if number + 1 in of}
    return RoundResult(
        personal=personal,
        shared=following if len(following) == len(records) else {},
        bytes_up={client: record.bytes_up for client, record in now.items()},
        bytes_down={client: record.bytes_down for client, record in now.items()},
        seconds={},
    )


def _last(records: Mapping[int, UpdateRecord], number: int) -> float:
    """Return a client's perplexity after its last tuning up to a round; before its first, that of the base model."""
    until = [of for at, of in sorted(records.items()) if at <= number]
    return until[-1].perplexity.after if until else _first(records).perplexity.round_0


def _first(records: Mapping[int, UpdateRecord]) -> UpdateRecord:
    return records[min(records)]


def _name(federations: Sequence[_Federation]) -> str:
    names = {federation.spec.name for federation in federations}
    return names.pop() if len(names) == 1 else "federations"
