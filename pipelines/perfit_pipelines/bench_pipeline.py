"""The pipeline of a bench: a loop over cells, each a pod that runs one and stores its result."""

# No `from __future__ import annotations` here: KFP reads the annotations themselves.
from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from perfit.bench.spec import Pods
from perfit_components.bench_cell import bench_cell
from perfit_components.images import CLIENT_IMAGE
from perfit_pipelines.brief import brief
from perfit_pipelines.pod_settings import on_machine, run_limits, with_model, with_store

LOOP = "Cells"
"""Display name of the loop."""


def bench_pipeline(bench: str, pods: Pods, secret: str) -> BaseComponent:
    """Build the pipeline that runs cells of a bench.

    Args:
        bench: URI of the bench in the store; default of the parameter ``bench``.
        pods: What each pod needs.
        secret: Name of the Kubernetes Secret with the keys to the store.
    """
    description = "Compares methods: each cell is a method at a point of its grid with a seed, in a pod of its own."

    @dsl.pipeline(name="bench", description=description, pipeline_config=run_limits(pods))
    def pipeline(cells: list[str], bench: str = bench):
        """Run cells of a bench.

        Args:
            cells: Their names.
            bench: URI of the bench in the store.
        """
        with dsl.ParallelFor(cells, name=LOOP, parallelism=pods.parallelism or None) as cell:
            task = brief(bench_cell)(bench=bench, cell=cell, threads=pods.threads)
            with_store(task, secret, "client", pods).set_container_image(pods.image or CLIENT_IMAGE)
            on_machine(task, pods)
            with_model(task, pods)
            task.set_display_name("Cell")

    return pipeline
