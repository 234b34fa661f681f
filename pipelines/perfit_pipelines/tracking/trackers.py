"""The places that metrics can be written to, each with a library of its own."""

from __future__ import annotations

import os
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

from perfit.errors import PerfitError
from perfit_pipelines import places
from perfit_pipelines.writing import writing

if TYPE_CHECKING:
    from perfit_pipelines.tracking.history import History


class Kind(StrEnum):
    """Where to."""

    MLFLOW = "mlflow"
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


class Tracker(Protocol):
    """Writes a federation's metrics somewhere, and what is there already not again.

    Attributes:
        is_live: Whether it is quick enough to write after each round.
    """

    is_live: ClassVar[bool]

    def write(self, history: History) -> str:
        """Write what is not written yet; return where it is, for a person.

        Raises:
            PerfitError: It cannot be written.
        """
        ...


def open_tracker(kind: Kind) -> Tracker:
    """Open a tracker as its library's own variables say, and check that it can be written to.

    Raises:
        PerfitError: Its library is not installed, or its server does not answer.
    """
    if find_spec(kind.value) is None:
        package = "wandb" if kind == Kind.WANDB else f"'perfit-kubeflow[{kind.value}]'"
        raise PerfitError(f"{kind.value} is not installed", f"pip install {package}")
    if kind == Kind.MLFLOW:
        from perfit_pipelines.tracking.mlflow_tracker import MlflowTracker

        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "perfit"
        if uri := os.environ.get("MLFLOW_TRACKING_URI"):
            return MlflowTracker(uri, experiment)
        home = _made(places.home())
        return MlflowTracker(f"sqlite:///{home / 'mlflow.db'}", experiment, str(home / "mlflow"))
    if kind == Kind.TENSORBOARD:
        from perfit_pipelines.tracking.tensorboard_tracker import TensorBoardTracker

        given = os.environ.get("TENSORBOARD_LOGGING_DIR")  # the variable that transformers reads
        return TensorBoardTracker(_made(Path(given) if given else places.home() / "tensorboard"))
    from perfit_pipelines.tracking.wandb_tracker import WandbTracker

    return WandbTracker(os.environ.get("WANDB_PROJECT") or "perfit", _made(places.home()))


def _made(directory: Path) -> Path:
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    return directory
