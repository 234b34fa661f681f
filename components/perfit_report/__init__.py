"""The HTML report of a federation: what its rounds, its architectures and its traffic came to."""

from perfit_report.page import last_tunings, render_report, scalar_metrics

__all__ = ["last_tunings", "render_report", "scalar_metrics"]
