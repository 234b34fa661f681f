"""Average a round's updates and move the head, or say who is missing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
from pydantic import ValidationError

from perfit.adapter import SparseAdapter
from perfit.adapter_file import AdapterFileError, AdapterHeader, dump_values, load_mask, load_values
from perfit.aggregation import Contribution, aggregate
from perfit.errors import PerfitError
from perfit_components.steps.opening import OpenFederation, global_header, open_federation
from perfit_components.steps.outcome import FAILED, TRAINED
from perfit_components.steps.record import TrainedRecord
from perfit_storage import CorruptObject, Head, ObjectNotFound

MISSING, REFUSED = "missing", "refused"


class _Refused(ValueError):
    """Why an update does not count."""


@dataclass
class _Tally:
    """Outcomes of a round's participants, filled in while their updates pass by."""

    outcomes: list[dict] = field(default_factory=list)
    held: np.ndarray | None = None

    @property
    def delivered(self) -> int:
        return sum(outcome["status"] == TRAINED for outcome in self.outcomes)


def aggregate_updates(uri: str, round: int, statuses: Iterable[dict]) -> dict:
    """Commit a round: average its updates parameter by parameter, then move the head to the result.

    An update of the wrong shape, budget, round, base model or mask, or with a value that is not finite, is left out and
    named. A round that is committed already is left as it is.

    Args:
        uri: Of the federation.
        round: From 1.
        statuses: What the client tasks returned; they explain clients that have no record in the store.

    Returns:
        The summary of the round, as kept in ``summary.json``.

    Raises:
        PerfitError: Fewer than the minimum of clients delivered, or the head was moved by somebody else.
        StoreError: The store cannot be reached or written.
    """
    opened = open_federation(uri)
    store = opened.store
    head = store.read_head()
    summary = store.read_summary(round) if head.round >= round else None
    if summary:
        return summary
    plan = store.read_plan(round)
    base = Head(**plan["base"])
    previous, _ = opened.global_adapter(base)
    tally = _Tally(held=np.zeros(previous.space.size, dtype=bool))
    reasons = {status["client"]: status.get("reason") for status in statuses}
    values = aggregate(previous.values, _contributions(opened, plan, previous, reasons, tally))
    if head.round < round:
        _check_quorum(opened, plan, tally)
        adapter = SparseAdapter(previous.space, previous.mask, values)
        new = store.put_global(round, dump_values(global_header(opened.spec, round), adapter))
        if not store.advance_head(base, new):
            raise PerfitError(
                f"round {round} of {opened.spec.name!r} was committed by another run with other values",
                "nothing is lost: look which runs train this federation, and let one of them go on",
            )
    summary = {
        "federation": opened.spec.name,
        "method": opened.spec.method.name,
        "round": round,
        "base": asdict(base),
        "minimum_clients": opened.spec.participation.minimum_clients,
        "positions": previous.space.size,
        "positions_held": int(np.count_nonzero(tally.held)),
        "clients": tally.outcomes,
    }
    store.put_summary(round, summary)
    return summary


def _contributions(
    opened: OpenFederation, plan: dict, previous: SparseAdapter, reasons: dict, tally: _Tally
) -> Iterator[Contribution]:
    """Yield the updates that count, one in memory at a time, and note every participant's outcome."""
    for participant in plan["participants"]:
        client = participant["id"]
        known = {"client": client, "tier": participant["tier"], "rank": participant["rank"]}
        try:
            record = opened.store.read_record(plan["round"], client)
            if record is None:
                reason = reasons.get(client) or "its task left no record"
                tally.outcomes.append({**known, "status": MISSING, "reason": reason})
                continue
            if record.get("status") != TRAINED:
                tally.outcomes.append({**known, "status": FAILED, "reason": str(record.get("reason"))})
                continue
            contribution = _verified(opened, plan, participant, record, previous)
        except (_Refused, AdapterFileError, CorruptObject, ObjectNotFound) as error:
            tally.outcomes.append({**known, "status": REFUSED, "reason": str(error)})
            continue
        tally.outcomes.append(record)
        tally.held |= contribution.adapter.mask
        if opened.spec.method.exchanges:
            yield contribution


def _verified(
    opened: OpenFederation, plan: dict, participant: dict, record: dict, previous: SparseAdapter
) -> Contribution:
    """Read a client's update and hold it against the plan."""
    client, rank = participant["id"], participant["rank"]
    try:
        trained = TrainedRecord.model_validate(record)
    except ValidationError as error:
        raise _Refused(f"its record is malformed: {error.errors()[0]['loc']}: {error.errors()[0]['msg']}") from error
    budget = previous.space.budget(rank)
    promised = {
        "client": client,
        "round": plan["round"],
        "tier": participant["tier"],
        "rank": rank,
        "budget": budget,
    }
    for name, value in promised.items():
        if getattr(trained, name) != value:
            raise _Refused(f"its record says {name} {getattr(trained, name)!r}, the plan {value!r}")
    _, space, mask = load_mask(opened.store.get_mask(client, trained.mask_sha256))
    if space != previous.space:
        raise _Refused("its mask stands in another space")
    if np.count_nonzero(mask) != budget:
        raise _Refused(f"its mask holds {np.count_nonzero(mask)} positions, its rank gives {budget}")
    expected = AdapterHeader(
        federation=opened.spec.name,
        round=plan["round"],
        client=client,
        base_model=opened.spec.model,
        rank=rank,
        expansion=opened.spec.expansion,
        budget=budget,
        mask_sha256=trained.mask_sha256,
    )
    if not opened.spec.method.exchanges:  # its values stay with the client
        return Contribution(SparseAdapter(space, mask, np.zeros(np.count_nonzero(mask), np.float32)), trained.samples)
    if not (trained.key or "").startswith(f"rounds/{plan['round']}/updates/{client}."):
        raise _Refused(f"its record names {trained.key!r} as its update")
    header, adapter = load_values(opened.store.read_update(record), mask)
    for name, value in asdict(expected).items():
        if getattr(header, name) != value:
            raise _Refused(f"its update says {name} {getattr(header, name)!r}, the plan {value!r}")
    return Contribution(adapter, trained.samples)


def _check_quorum(opened: OpenFederation, plan: dict, tally: _Tally) -> None:
    # As the file has it now: lowering it rescues a round whose planned clients are gone for good.
    minimum = opened.spec.participation.minimum_clients
    if tally.delivered >= minimum:
        return
    lost = [
        f"  {outcome['client']} ({outcome['status']}): {outcome['reason']}"
        for outcome in tally.outcomes
        if outcome["status"] != TRAINED
    ]
    head = (
        f"round {plan['round']} is not committed: {tally.delivered} of {len(tally.outcomes)} clients delivered, "
        f"participation.minimum_clients is {minimum}. The head stays where it was. Without an update:"
    )
    raise PerfitError(
        "\n".join([head, *lost]),
        "repair these clients and run again (who delivered does not train again), or lower minimum_clients",
    )
