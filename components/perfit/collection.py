"""Python's garbage collection, where it takes long and finds nothing."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_collection() -> Iterator[None]:
    """Within the context no garbage is collected.

    For what makes very many objects: the collector looks through them again and again, which takes a fifth of the time
    of importing torch, transformers and PEFT, and a third of that of reading a GGUF file.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
