"""Component: average a round's updates, commit it, report, and plan the next.

Inputs: ``federation``, its URI; ``round``, from 1; the ``tiers`` that the pipeline was compiled for, in order;
``plan_next``, whether this run continues with the next round; ``served``, how many participants have had their run, 0
for all: before the last of them nothing is committed. Outputs: the report of all rounds up to this one; perplexity,
loss, bytes and numbers of clients; for each tier the names of the clients that the next round still needs.

Said here, not in the function: see ``client.py``.
"""

from typing import NamedTuple

from kfp import dsl

from perfit_components.images import SERVER_IMAGE


@dsl.component(base_image=SERVER_IMAGE, install_kfp_package=False)
def aggregate(
    federation: str,
    round: int,
    tiers: list,
    plan_next: bool,
    page: dsl.Output[dsl.HTML],
    metrics: dsl.Output[dsl.Metrics],
    served: int = 0,
) -> NamedTuple("Participants", [(f"tier_{number}", list) for number in range(1, 9)]):  # type: ignore[valid-type]
    """Average the updates by the method's rule, move the federation's head, draw the report, plan the next round."""
    from pathlib import Path

    from perfit_components.steps.aggregate import close_round

    closed = close_round(federation, round, tiers if plan_next else None, served)
    Path(page.path).write_text(closed.report.html, encoding="utf-8")
    for name, value in closed.report.metrics.items():
        metrics.log_metric(name, value)
    return tuple((closed.participants + [[]] * 8)[:8])
