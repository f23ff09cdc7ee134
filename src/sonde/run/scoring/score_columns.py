"""Scores as columns of a batch, for pipelines of other libraries such as Ray Data."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np

from sonde.core.errors import InputError
from sonde.run.fitting.fitted import Fitted, as_fitted
from sonde.run.reading.load import load
from sonde.run.scoring.by_input import by_input
from sonde.run.scoring.score import score

ADDED = ("p", "alarm", "loudest")


@final
class ScoreColumns:
    """Add the p-value and the verdict of each input to a batch of columns.

    An instance loads model and detectors once and is called with batches, as
    ``ray.data.Dataset.map_batches(ScoreColumns, fn_constructor_args=..., concurrency=2)`` does in
    each of its actors. An input has the numbers that it has alone, however batches are cut.

    Parameters
    ----------
    fitted : Fitted, or the path of a bundle
        Calibrated detectors, or the path of their file.
    model : Model, nn.Module or str
        The model that the bundle was fitted on.
    alpha : float, default=0.05
        False-alarm rate of the verdict.
    **options
        Named options of ``sonde.read``, such as ``text_column``.
    """

    def __init__(
        self, fitted: Fitted | str | Path, model: Any, *, alpha: float = 0.05, **options: Any
    ) -> None:
        self._fitted = as_fitted(fitted, "ScoreColumns")
        self._model = load(model) if isinstance(model, str) else model
        self._alpha, self._options = alpha, options

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the columns of a batch, with ``p``, ``alarm`` and ``loudest``.

        Parameters
        ----------
        batch : mapping of str to array or list
            Columns of one length, as of a table that ``sonde.read`` takes.

        Returns
        -------
        dict of str to array
            ``p``: the input's p-value, NaN where it is not known; ``alarm``: whether it is at most
            ``alpha``; ``loudest``: the detector and site with the smallest p-value.

        Raises
        ------
        InputError
            If the batch has a column of one of these names.
        """
        taken = [name for name in ADDED if name in batch]
        if taken:
            raise InputError(
                f"ScoreColumns: expected no column {taken[0]!r}, which the scores are written to. "
                "Rename it."
            )
        columns = {name: np.asarray(values) for name, values in batch.items()}
        n_inputs = len(next(iter(columns.values()))) if columns else 0
        p, alarm = np.full(n_inputs, np.nan), np.zeros(n_inputs, dtype=bool)
        loudest = np.full(n_inputs, "", dtype=object)
        if n_inputs:
            scored = score(
                self._fitted,
                self._model,
                {name: values.tolist() for name, values in columns.items()},
                batch_invariant=True,
                progress=False,
                **self._options,
            )
            lines = by_input(scored, self._fitted, alpha=self._alpha).table
            rows = lines["row"].to_numpy()
            p[rows] = lines["p"].to_numpy(zero_copy_only=False)
            alarm[rows] = lines["alarm"].fill_null(False).to_numpy(zero_copy_only=False)
            named = zip(
                lines["loudest"].to_pylist(), lines["loudest_site"].to_pylist(), strict=True
            )
            loudest[rows] = [f"{name} at {site}" for name, site in named]
        return {**columns, "p": p, "alarm": alarm, "loudest": loudest}
