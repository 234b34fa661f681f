"""Component: found a federation, or find it again."""

from typing import NamedTuple

from kfp import dsl

from perfit_components.images import CLIENT_IMAGE


@dsl.component(base_image=CLIENT_IMAGE, install_kfp_package=False)
def prepare_federation(federation_file: str, store: str, method: str = "as in the file") -> NamedTuple(
    "Prepared", [("federation", str), ("next_round", int)]
):  # type: ignore[valid-type]
    """Write the federation file and the initial adapter to the store, once.

    Args:
        federation_file: The text of the federation file (YAML).
        store: Where federations are kept, e.g. s3://bucket/prefix.
        method: perfit, fedit or local, to run the file's federation by that method, under a name of its own.

    Returns:
        The federation's URI, and the round that comes next.
    """
    from typing import NamedTuple

    from perfit_components.steps.prepare import prepare

    prepared = prepare(federation_file, store, method)
    outputs = NamedTuple("Prepared", [("federation", str), ("next_round", int)])  # noqa: UP014 (as KFP writes it)
    return outputs(prepared.uri, prepared.next_round)
