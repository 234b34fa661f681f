"""Comparing methods: what a bench file says, the running of one of its cells, and the statistics of their results."""
