"""Component: a client's part of a round.

Inputs: ``federation``, its URI; ``round``, from 1; ``name``, the client's in the cluster, that of its Secret;
``threads`` of the CPU for its training. Output: client, status (trained, failed or out_of_memory) and reason.

Said here, not in the function: KFP repeats its text about eight times in the workflow for each client of each round,
and a workflow's size is limited (docs/scaling.md).
"""

from kfp import dsl

from perfit_components.images import CLIENT_IMAGE


@dsl.component(base_image=CLIENT_IMAGE, install_kfp_package=False)
def client(federation: str, round: int, name: str, threads: int) -> dict[str, str]:
    """Search, if the client has no architecture yet; tune its values on its own records; upload them."""
    from perfit_components.steps.client import train

    return train(federation, round, name, threads)
