"""Component: find a client's personal architecture."""

from kfp import dsl

from perfit_components.images import CLIENT_IMAGE


@dsl.component(base_image=CLIENT_IMAGE, install_kfp_package=False)
def search_client(federation: str, client: str) -> dict[str, str]:
    """Search the architecture of a client that has none yet, in the client's own pod.

    Args:
        federation: URI of the federation.
        client: Id of the client.

    Returns:
        client, status (searched or failed) and reason.
    """
    from perfit_components.steps.client import search
    from perfit_components.steps.outcome import brief

    return brief(search(federation, client))
