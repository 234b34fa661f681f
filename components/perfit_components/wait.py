"""Component: wait for the clients of a round that their owners run."""

from kfp import dsl

from perfit_components.images import SERVER_IMAGE


@dsl.component(base_image=SERVER_IMAGE, install_kfp_package=False)
def wait(federation: str, round: int, served: int = 0) -> str:
    """Wait for remote clients: until each has a record of the round, or its tier's deadline has passed.

    Args:
        federation: URI of the federation.
        round: From 1.
        served: Participants in pods that have had their run; 0 for all. Only the last run of a round waits.

    Returns:
        How many answered, and who did not.
    """
    from perfit_components.steps.wait import wait_for_clients

    answered = wait_for_clients(federation, round, served)
    print(answered, flush=True)
    return answered
