"""Kubeflow pipelines of a federation, their compilation and launch, and the ``perfit`` command."""
