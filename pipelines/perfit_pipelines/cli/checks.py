"""What can be known of a federation on this machine: its model, and the records that are here."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from perfit.collection import without_collection
from perfit.errors import PerfitError
from perfit.locations import is_local

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from perfit.cluster_spec import ClusterClient, ClusterSpec


@dataclass
class Checked:
    """What a check found.

    Attributes:
        lines: What was checked, and how much there is of it.
        unknown: What could not be checked here, and why.
        errors: What is wrong, by client.
    """

    lines: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    errors: dict[str, list[PerfitError]] = field(default_factory=dict)

    def error(self) -> PerfitError | None:
        """Return one error for all that is wrong, which names every client; None if nothing is."""
        if not self.errors:
            return None
        every = [(client, error) for client, errors in self.errors.items() for error in errors]
        problem = "\n".join(f"client {client}: {error.problem}" for client, error in every)
        return PerfitError(problem, "; ".join(dict.fromkeys(error.fix for _, error in every)))


def check_records(spec: ClusterSpec, tokenizer: PreTrainedTokenizerBase | None = None) -> Checked:
    """Read all records that are on this machine.

    Args:
        spec: The federation.
        tokenizer: Of its model: tokenise the records too, as their clients will.
    """
    checked = Checked()
    for client in spec.clients:
        if spec.is_remote(client):
            checked.unknown.append(f"{client.id}: its records are on its owner's machine and were not read")
        for uri in filter(None, (client.data, client.held_out)):
            if client.on_volume(uri):
                checked.unknown.append(f"{client.id}: {uri} is on the volume {client.volume} and was not read")
            elif not is_local(uri) and not uri.startswith("/"):
                checked.unknown.append(f"{client.id}: {uri} is not on this machine and was not read")
            else:
                try:
                    checked.lines.append(_check_source(spec, client, uri, tokenizer))
                except PerfitError as error:
                    checked.errors.setdefault(client.id, []).append(error)
    return checked


def _check_source(spec: ClusterSpec, client: ClusterClient, uri: str, tokenizer: PreTrainedTokenizerBase | None) -> str:
    if tokenizer is None:
        from perfit.records import check_records, to_messages

        checked, cut = check_records(uri, spec.data.bad_records), ""
        usable, skipped = len(checked.usable), checked.skipped
        first = to_messages(checked.usable[0].fields)
        alike = all(to_messages(record.fields) == first for record in checked.usable)
    else:
        from perfit.examples import load_examples

        examples = load_examples(uri, tokenizer, spec.training.sequence_length, spec.data.bad_records)
        usable, skipped, alike = len(examples.examples), examples.skipped, len(set(examples.digests)) == 1
        cut = f", {examples.truncated} of them cut to the sequence length" if examples.truncated else ""
    if alike and not client.held_out:
        problem = f"{uri}: {usable} record(s), all of the same messages: none can be held out"
        raise PerfitError(problem, "give more records, or held_out records")
    reasons = "".join(f"\n  skipped line {line}: {reason}" for line, reason in skipped)
    return f"{client.id}: {uri}: {usable} records{cut}{reasons}"


def check_federation(spec: ClusterSpec) -> Checked:
    """Check all that can be known here.

    Raises:
        PerfitError: Something is wrong.
    """
    if error := check_records(spec).error():  # before seconds are spent on a model
        raise error
    tokenizer, model, remarks = check_model(spec)
    checked = check_records(spec, tokenizer)
    if error := checked.error():
        raise error
    (checked.lines if tokenizer else checked.unknown).insert(0, model)
    checked.lines += remarks
    if spec.store:
        checked.unknown.append(f"store {spec.store} was not asked")
    checked.lines.extend(_remote_lines(spec))
    return checked


def _remote_lines(spec: ClusterSpec) -> Iterator[str]:
    """Say how long runs may wait for remote clients."""
    limit = spec.cluster.deadline_seconds
    for name in spec.remote_tiers():
        wait = spec.tiers[name].deadline_seconds
        together = wait * spec.rounds
        late = limit is not None and together > limit
        more = (
            f"; {spec.rounds} rounds without them take longer than cluster.deadline_seconds ({limit})" if late else ""
        )
        yield f"tier {name} is remote: a round waits up to {wait} s for its clients{more}"


def check_model(spec: ClusterSpec) -> tuple[PreTrainedTokenizerBase | None, str, list[str]]:
    """Check the modules, the rank and the memory that a federation needs, if its model is on this machine.

    Returns:
        The model's tokenizer, None if it is not here; what was checked, or why nothing was; and what is to be said of
        tiers with several accelerators.

    Raises:
        PerfitError: There is no such model, or something does not fit it.
    """
    from perfit.models import local_model
    from perfit_components.steps.context import model_cache

    source = local_model(spec.model, model_cache())
    if source is None:
        what = "modules, rank, memory and the lengths of prompts were not checked"
        return None, f"model {spec.model} is not on this machine: {what}", []
    with without_collection(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of PEFT and transformers, about each other
        from perfit.model_check import check_model
        from perfit.models import load_tokenizer

        space, remarks = check_model(spec, source)
        return load_tokenizer(source), f"model {spec.model}: {len(space.matrices) // 2} adapted modules", remarks
