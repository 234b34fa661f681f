"""Component: tune a client's values for a round."""

from kfp import dsl

from perfit_components.images import CLIENT_IMAGE


@dsl.component(base_image=CLIENT_IMAGE, install_kfp_package=False)
def train_client(federation: str, round: int, client: str) -> dict[str, str]:
    """Tune a client's values on its own records, in the client's own pod, and upload them.

    Args:
        federation: URI of the federation.
        round: From 1.
        client: Id of the client.

    Returns:
        client, status (trained or failed) and reason.
    """
    from perfit_components.steps.client import train
    from perfit_components.steps.outcome import brief

    return brief(train(federation, round, client))
