"""Figures of a record as scalars, and how the loggers that people have take them."""

import math
from collections.abc import Callable
from typing import Any

from sonde.core.errors import InputError
from sonde.run.bundles.fitted import Fitted

Log = Callable[[dict[str, float], int], object]


def figures_of(fitted: Fitted) -> dict[str, float]:
    """Return every finite result that is one number, by ``sonde/METHOD/SITE``."""
    found: dict[str, float] = {}
    for (method, site), result in fitted:
        value = result.table().to_pylist()
        if len(value) == 1 and math.isfinite(value[0]["value"]):
            found[f"sonde/{method}/{site}"] = value[0]["value"]
    return found


def log_of(target: Any) -> Log:
    """Return the function that hands figures and their step to a logger.

    Parameters
    ----------
    target : object
        A ``Trainer`` of transformers (which hands them to TensorBoard, W&B or MLflow, as it is set
        up), a ``Trainer`` or logger of Lightning, a run of W&B, the module ``mlflow``, a
        ``SummaryWriter`` of TensorBoard, or a function of the figures and the step.

    Raises
    ------
    InputError
        If it is none of these.
    """
    if hasattr(target, "callback_handler") and hasattr(target, "log"):
        return lambda figures, step: target.log(dict(figures))
    if hasattr(target, "loggers"):
        return lambda figures, step: _each(target.loggers, figures, step)
    if hasattr(target, "log_metrics"):
        return lambda figures, step: target.log_metrics(figures, step=step)
    if hasattr(target, "add_scalar"):
        return lambda figures, step: _scalars(target, figures, step)
    if hasattr(target, "log") and not isinstance(target, type):
        return lambda figures, step: target.log(figures, step=step)
    if callable(target):
        return target
    raise InputError(
        "log_to: expected a Trainer, a logger of Lightning, a run of W&B, mlflow, a SummaryWriter "
        f"or a function of figures and step, got {type(target).__name__}."
    )


def _each(loggers: Any, figures: dict[str, float], step: int) -> None:
    for logger in loggers:
        logger.log_metrics(figures, step=step)


def _scalars(writer: Any, figures: dict[str, float], step: int) -> None:
    for name, value in figures.items():
        writer.add_scalar(name, value, step)
