"""The method: personalised federated instruction tuning by architecture search (PerFIT, arXiv 2402.16919)."""
