"""Where the commands keep what they need: in one place for a user, whatever the working directory."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def home() -> Path:
    """Return the directory of everything below: $PERFIT_HOME, or ``perfit`` among the user's data (XDG_DATA_HOME).

    It need not exist.
    """
    if given := os.environ.get("PERFIT_HOME"):
        return Path(given).absolute()
    data = os.environ.get("XDG_DATA_HOME", "")
    # By the XDG specification, a relative path counts as none.
    return Path(data if os.path.isabs(data) else Path.home() / ".local" / "share", "perfit")


def local_s3() -> Path:
    """Return the directory of this machine's own store, where its S3 server can run."""
    return home() / "s3"


def local_files() -> Path:
    """Return the directory of this machine's own store, where its S3 server is not installed."""
    return home() / "store"


def all_results() -> Path:
    """Return the directory of all that runs leave, one directory for each federation and store."""
    return home() / "federations"


def results(name: str, store: str | None) -> Path:
    """Return where a run leaves a federation's adapters, report and log.

    Args:
        name: The federation's.
        store: URI of its store, so that federations of one name do not mix; None for this machine's own.
    """
    return all_results() / (f"{name}.{hashlib.sha256(store.encode()).hexdigest()[:8]}" if store else name)


def bench() -> Path:
    """Return where the results of benches are."""
    return home() / "bench"


def comparison() -> Path:
    """Return where the comparison of federations is."""
    return home() / "compare"


def deployments() -> Path:
    """Return where the overlays are that ``perfit deploy`` writes, with their secrets."""
    return home() / "deploy"
