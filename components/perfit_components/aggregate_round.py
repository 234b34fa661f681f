"""Component: average a round's updates and commit it."""

from kfp import dsl

from perfit_components.images import SERVER_IMAGE


@dsl.component(base_image=SERVER_IMAGE, install_kfp_package=False)
def aggregate_round(federation: str, round: int, statuses: list[dict[str, str]]) -> str:
    """Average the updates parameter by parameter and move the federation's head.

    Args:
        federation: URI of the federation.
        round: From 1.
        statuses: What the round's client tasks returned.

    Returns:
        URI of the federation, for the round that comes next.
    """
    from perfit_components.steps.aggregate import aggregate_updates

    aggregate_updates(federation, round, statuses)
    return federation
