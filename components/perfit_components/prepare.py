"""Component: create a federation or open an existing one, and plan the first round of the run."""

from typing import NamedTuple

from kfp import dsl

from perfit_components.images import CLIENT_IMAGE


@dsl.component(base_image=CLIENT_IMAGE, install_kfp_package=False)
def prepare(
    federation_file: str,
    store: str,
    tiers: list,
    claim_tiers: list,
    method: str = "as in the file",
    round: int = 0,
    at_most: int = 0,
    waits: bool = False,
) -> NamedTuple(
    "Prepared",
    [("federation", str), ("next_round", int), ("served", int), *[(f"tier_{number}", list) for number in range(1, 9)]],
):  # type: ignore[valid-type]
    """Write the federation file and the initial adapter to the store, once, and plan a round.

    Args:
        federation_file: The text of the federation file (YAML), or its URI in the store.
        store: Where federations are kept, e.g. s3://bucket/prefix.
        tiers: The tiers that the pipeline was compiled for, in order.
        claim_tiers: Those of them whose loops pass the names of volume claims.
        method: A method's name, to run the file's federation with that method, under a name of its own.
        round: The round that the run begins with; 0 for the one after the head.
        at_most: Participants in pods that the run serves; 0 for all.
        waits: Whether the pipeline waits for clients of remote tiers.

    Returns:
        The federation's URI, the round, how many of its participants will have had their run after this one (0 for
        all), and for each tier the names of the clients that this run serves.
    """
    from perfit_components.steps.prepare import prepare

    prepared = prepare(federation_file, store, method, round, tiers, claim_tiers, at_most, waits)
    return (prepared.uri, prepared.round, prepared.served, *(prepared.participants + [[]] * 8)[:8])
