"""The steps of a federated round as KFP components: one file each, and what they do, without kfp, under ``steps``."""
