"""``perfit doctor``: whether a cluster is ready for a federation, before anything is booked."""

from perfit_pipelines.doctor.command import register

__all__ = ["register"]
