"""Component: a cell of a bench."""

from kfp import dsl

from perfit_components.images import CLIENT_IMAGE


@dsl.component(base_image=CLIENT_IMAGE, install_kfp_package=False)
def bench_cell(bench: str, cell: str, threads: int) -> dict[str, str]:
    """Run a method at a point of its grid with a seed, unless its result is there, and store the result.

    Args:
        bench: URI of the bench in the store.
        cell: The cell's name.
        threads: CPU threads, where the bench file leaves them to torch.

    Returns:
        cell, status (done or failed) and reason.
    """
    from perfit_components.steps.bench_cell import run

    return run(bench, cell, threads)
