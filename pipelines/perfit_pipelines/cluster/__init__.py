"""Federations on a Kubeflow cluster: submission, following, schedules."""
