"""Send a track to TensorBoard, Weights & Biases or MLflow, imported only when used.

For a training of your own pass the run or writer to ``TrackCallback.log_to`` instead.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from sonde.core.errors import InputError, failed_import
from sonde.run.training.callback import Log, figures_of, log_of
from sonde.run.training.track import Track


def log_track(track: Track, word: str) -> int:
    """Log every step of a track and return the number of steps.

    Parameters
    ----------
    track : Track
    word : str
        ``tensorboard:FOLDER``, ``wandb:PROJECT`` or ``mlflow:EXPERIMENT``.

    Raises
    ------
    InputError
        If the word names none of these, or its package is not installed.
    """
    with open_logger(word) as log:
        for step in track.steps:
            log(figures_of(track.at(step)), step)
    return len(track.steps)


def open_logger(word: str) -> AbstractContextManager[Log]:
    """Return a context manager that opens a logger and yields the function that logs metrics.

    Parameters
    ----------
    word : str
        As in ``log_track``.
    """
    kind, _, name = word.partition(":")
    if kind not in OPENED or not name:
        raise InputError(
            "log: expected tensorboard:FOLDER, wandb:PROJECT or mlflow:EXPERIMENT, got "
            f"{word!r}. Write for example tensorboard:runs/one."
        )
    try:
        return OPENED[kind](name)
    except ImportError as error:
        raise InputError(
            f"log: {kind} needs {failed_import(kind, error)}. Run: pip install {kind}"
        ) from None


def _tensorboard(folder: str) -> AbstractContextManager[Log]:
    from torch.utils.tensorboard import SummaryWriter

    @contextmanager
    def opened() -> Iterator[Log]:
        with SummaryWriter(folder) as writer:
            yield log_of(writer)

    return opened()


def _wandb(project: str) -> AbstractContextManager[Log]:
    import wandb

    @contextmanager
    def opened() -> Iterator[Log]:
        with wandb.init(project=project) as run:
            yield log_of(run)

    return opened()


def _mlflow(experiment: str) -> AbstractContextManager[Log]:
    import mlflow

    @contextmanager
    def opened() -> Iterator[Log]:
        mlflow.set_experiment(experiment)
        with mlflow.start_run():
            yield log_of(mlflow)

    return opened()


OPENED: Final[dict[str, Callable[[str], AbstractContextManager[Log]]]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
}
