"""A fitted detector as an estimator of scikit-learn, for pipelines and searches on plain features.

Import it from here: nothing else in sonde imports scikit-learn's base classes. On models and their
hidden states use ``sonde.fit``, which reads, calibrates and saves.
"""

from typing import Any, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from sonde.core.errors import InputError
from sonde.core.finite import finite_rows
from sonde.core.instrument import Detector, score_needs
from sonde.core.result import Scorer
from sonde.core.stream import Stream
from sonde.core.wording import plural
from sonde.run.fitting.fit import DEFAULT_HELD, fit
from sonde.run.instruments.catalogue import find
from sonde.stats import CalibratedScorer

Rows = Float[np.ndarray, "row dim"]


@final
class OutlierDetector(OutlierMixin, BaseEstimator):
    """A detector that scikit-learn's pipelines, searches and metrics can use.

    The signs are those of scikit-learn: ``score_samples`` is minus the detector's score, so *lower*
    is more unusual; ``predict`` gives -1 for unusual rows and 1 for all others. Rows with NaN,
    infinity or numbers too large to square (above 1e15 in float32, 1e60 in float64) are left out of
    the fit and score ``-inf``. Detectors that read logits alone take them as ``X``; those that need
    rows and logits, or gradients, cannot be used here.

    Parameters
    ----------
    detector : str or Detector, default="mahalanobis"
        A detector or its command-line word.
    alpha : float, default=0.05
        Share of usual rows that ``predict`` may call unusual.
    calibrate : float, default=0.2
        Share of the rows that is held out for the threshold, which then keeps ``alpha`` on new rows
        (at least ``1 / alpha - 1`` are needed); 0 takes it from the fitted rows' own scores, as
        scikit-learn's estimators do: that promises nothing for new rows.
    seed : int, default=0
        Key of the hash by which rows are held out and sampled.

    Attributes
    ----------
    scorer_ : Scorer
    offset_ : float
        Minus the threshold: ``decision_function`` is ``score_samples`` less this.
    classes_ : array
        Labels that were seen; empty without ``y``.
    n_features_in_ : int

    Examples
    --------
    >>> rows = np.random.default_rng(0).normal(size=(400, 3))
    >>> found = OutlierDetector("knn").fit(rows)
    >>> found.predict([[0.0, 0.1, 0.2], [np.nan, 0.0, 0.0]]).tolist()
    [1, -1]
    """

    def __init__(
        self,
        detector: Any = "mahalanobis",
        *,
        alpha: Any = 0.05,
        calibrate: Any = DEFAULT_HELD,
        seed: Any = 0,
    ) -> None:  # checked in fit, as scikit-learn wants it
        self.detector = detector
        self.alpha = alpha
        self.calibrate = calibrate
        self.seed = seed

    def __sklearn_tags__(self) -> Any:
        """Declare that NaN is accepted."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def fit(self, X: Any, y: Any = None) -> "OutlierDetector":
        """Fit on in-distribution rows; ``y`` holds their classes, of any type, or is missing.

        Raises
        ------
        InputError
            If the detector needs more than rows, or too few rows are held out for ``alpha``.
        """
        detector = self._detector()
        checked = self._rows(X, reset=True, least=2)
        rows = torch.from_numpy(checked)
        if (n_finite := int(finite_rows(rows).sum())) < 2:
            raise InputError(
                f"OutlierDetector.fit: expected at least 2 finite rows, got {n_finite}."
            )
        self.classes_, label = _classes(y, len(checked))
        stream = Stream.of(
            rows,
            label=None if label is None else torch.from_numpy(label),
            logits=rows if "logits" in score_needs(detector) else None,
            seed=self.seed,
        )
        fitted = fit(detector, stream, calibrate=self.calibrate, progress=False)
        self.scorer_: Scorer = next(iter(fitted.scorers.values()))
        self.offset_ = -self._threshold(rows)
        return self

    def score_samples(self, X: Any) -> Float[np.ndarray, "row"]:
        """Return minus the detector's score of each row: lower is more outlying."""
        check_is_fitted(self)
        rows = torch.from_numpy(self._rows(X, reset=False))
        with torch.no_grad():
            return -self.scorer_.score(rows).double().cpu().numpy()

    def decision_function(self, X: Any) -> Float[np.ndarray, "row"]:
        """Return ``score_samples`` less ``offset_``: below zero is outlying at level ``alpha``."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> Int[np.ndarray, "row"]:
        """Return -1 for each row above the threshold, 1 for all others."""
        return np.where(self.score_samples(X) < self.offset_, -1, 1)

    def p_values(self, X: Any) -> Float[np.ndarray, "row"]:
        """Return the conformal p-value of each row.

        Raises
        ------
        InputError
            If nothing was held out.
        """
        scores = -self.score_samples(X)
        if not isinstance(self.scorer_, CalibratedScorer):
            raise InputError(
                "OutlierDetector.p_values: no rows were held out. Fit with calibrate=0.2."
            )
        return self.scorer_.calibration.p_value(scores).numpy()

    def _detector(self) -> Detector:
        given: Any = find(self.detector)() if isinstance(self.detector, str) else self.detector
        needs = score_needs(given) if isinstance(given, Detector) else ("no detector",)
        if needs not in (("x",), ("logits",)) or given.span != "one":
            raise InputError(
                f"OutlierDetector: expected a detector that scores rows or logits alone, got "
                f"{self.detector!r} with {', '.join(needs)}. Use sonde.fit for it."
            )
        if not 0.0 < self.alpha < 1.0 or not 0.0 <= self.calibrate < 1.0:
            raise InputError(
                "OutlierDetector: expected alpha in (0, 1) and calibrate in [0, 1), got "
                f"{self.alpha} and {self.calibrate}."
            )
        return given

    def _rows(self, X: Any, *, reset: bool, least: int = 1) -> Rows:
        types: list[Literal["float64", "float32"]] = ["float64", "float32"]
        checked: Any = validate_data(
            self, X, reset=reset, dtype=types, ensure_all_finite=False, ensure_min_samples=least
        )
        return checked if checked.flags.writeable else checked.copy()

    def _threshold(self, rows: Float[torch.Tensor, "row dim"]) -> float:
        if isinstance(self.scorer_, CalibratedScorer):
            return self.scorer_.calibration.threshold(self.alpha)
        own = self.scorer_.score(rows).double()
        return float(own.quantile(1.0 - self.alpha, interpolation="lower"))


def _classes(y: Any, n: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the distinct labels, and the index of each row's label."""
    if y is None:
        return np.empty(0), None
    labels = column_or_1d(y)
    check_classification_targets(labels)
    if len(labels) != n:
        raise InputError(f"OutlierDetector.fit: expected {plural(n, 'label')}, got {len(labels)}.")
    distinct, which = np.unique(labels, return_inverse=True)
    return distinct, which.astype(np.int64)
