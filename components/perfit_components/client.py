"""Component: a client's part of a round."""

from kfp import dsl

from perfit_components.images import CLIENT_IMAGE


@dsl.component(base_image=CLIENT_IMAGE, install_kfp_package=False)
def client(federation: str, round: int, name: str, threads: int, metrics: dsl.Output[dsl.Metrics]) -> dict[str, str]:
    """Search for the client's architecture if it has none yet, tune its values on its own records, and upload them.

    Args:
        federation: URI of the federation.
        round: From 1.
        name: The client's name in the cluster, that of its Secret.
        threads: CPU threads of the training.
        metrics: Perplexities, loss, bytes and records of the client in this round; none if it did not deliver.

    Returns:
        client, status (trained, failed or out_of_memory) and reason.
    """
    from perfit_components.steps.client import train

    return train(federation, round, name, threads).show(metrics)
