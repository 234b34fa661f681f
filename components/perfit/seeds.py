"""Every random choice of a federation, derived from its one seed."""

from __future__ import annotations

import hashlib


def derive_seed(federation_seed: int, *path: str | int) -> int:
    """Return a seed for one purpose, such as ``derive_seed(seed, "tune", round, client)``.

    Args:
        federation_seed: ``training.seed`` of the federation file.
        path: What the seed is for; different paths give independent seeds.

    Returns:
        An int in [0, 2**31), the range that torch, numpy and transformers all take.
    """
    text = "/".join(str(part) for part in (federation_seed, *path))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1
