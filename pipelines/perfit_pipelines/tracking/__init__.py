"""A federation's metrics in MLflow, TensorBoard or Weights & Biases: one run for it, and one below for each client.

All come from the committed rounds in the store, so a federation can be tracked while it runs, when it is resumed, or
long after. Writing what is written already changes nothing.
"""
