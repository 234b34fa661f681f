"""Component: wait for the clients of a round that their owners run.

Inputs: ``federation``, its URI; ``round``, from 1; ``served``, the participants in pods that have had their run, 0 for
all: only the last run of a round waits. Output: how many answered, and who did not.

Said here, not in the function: KFP repeats its text in the workflow for each round.
"""

from kfp import dsl

from perfit_components.images import SERVER_IMAGE


@dsl.component(base_image=SERVER_IMAGE, install_kfp_package=False)
def wait(federation: str, round: int, served: int = 0) -> str:
    """Wait for remote clients: until each has a record of the round, or its tier's deadline has passed."""
    from perfit_components.steps.wait import wait_for_clients

    answered = wait_for_clients(federation, round, served)
    print(answered, flush=True)
    return answered
