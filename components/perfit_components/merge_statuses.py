"""Component: join the statuses of two tiers of clients."""

from kfp import dsl

from perfit_components.images import SERVER_IMAGE


@dsl.component(base_image=SERVER_IMAGE, install_kfp_package=False)
def merge_statuses(first: list[dict[str, str]], second: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return both lists as one: a component takes the collected outputs of one loop for each input.

    Args:
        first: Statuses of clients.
        second: Statuses of other clients.

    Returns:
        All of them.
    """
    return first + second
