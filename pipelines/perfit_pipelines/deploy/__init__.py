"""``perfit deploy``: an overlay of manifests/ with the keys of a federation's server and clients in it."""
