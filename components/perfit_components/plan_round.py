"""Component: draw a round's clients."""

from kfp import dsl

from perfit_components.images import SERVER_IMAGE


@dsl.component(base_image=SERVER_IMAGE, install_kfp_package=False)
def plan_round(federation: str, round: int, tier: str) -> list[dict[str, str]]:
    """Return the clients of one tier that take part in a round.

    Args:
        federation: URI of the federation.
        round: From 1; 0 stands for the search, in which all clients take part.
        tier: Name of the tier.

    Returns:
        A dict a client with its id, secret and volume.
    """
    from perfit_components.steps.plan import plan

    return plan(federation, round, tier)
