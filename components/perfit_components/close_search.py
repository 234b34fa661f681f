"""Component: end the search."""

from kfp import dsl

from perfit_components.images import SERVER_IMAGE


@dsl.component(base_image=SERVER_IMAGE, install_kfp_package=False)
def close_search(federation: str, statuses: list[dict[str, str]]) -> str:
    """Say which clients found no architecture, and stop if too few did.

    Args:
        federation: URI of the federation.
        statuses: What the search tasks returned.

    Returns:
        URI of the federation, for the first round.
    """
    from perfit_components.steps.search_result import check_search

    check_search(federation, statuses)
    return federation
