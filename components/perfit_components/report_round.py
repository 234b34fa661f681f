"""Component: the report of a round."""

from kfp import dsl

from perfit_components.images import SERVER_IMAGE


@dsl.component(base_image=SERVER_IMAGE, install_kfp_package=False)
def report_round(federation: str, round: int, page: dsl.Output[dsl.HTML], metrics: dsl.Output[dsl.Metrics]) -> None:
    """Draw the report of all rounds up to this one, and log its scalar metrics.

    Args:
        federation: URI of the federation.
        round: From 1.
        page: The report.
        metrics: Perplexity, loss, bytes and numbers of clients.
    """
    from pathlib import Path

    from perfit_components.steps.report import report

    drawn = report(federation, round)
    Path(page.path).write_text(drawn.html, encoding="utf-8")
    for name, value in drawn.metrics.items():
        metrics.log_metric(name, value)
