"""``perfit deploy``: an overlay of manifests/ with the keys of a federation's server and clients in it."""

from perfit_pipelines.deploy.command import register

__all__ = ["register"]
