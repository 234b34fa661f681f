"""The steps of a federated round as KFP components, one a file; what they do, without kfp, is in ``steps``."""
