"""Detect wrong reasoning traces by the nearest centroid of their state changes in all layers.

Rows are deltas: the state at the end of the trace minus the state at its start, as the reducer
``step_deltas`` makes them, at every site. To order several traces for one prompt see ``rerank`` and
``top_majority``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError, ShapeError
from sonde.core.instrument import Detector, NotLabelled, Where
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Span, Statistic
from sonde.core.wording import plural
from sonde.detect._logits import at_least_single
from sonde.detect._metric import check_fitted_width
from sonde.stats import ClassMoments, ClassMomentsState

Scale = Literal["none", "rms"]


@final
@dataclass(frozen=True)
class CLUELayer:
    """Centroids of the deltas of one layer, and the weight of its distances."""

    success: Float[Tensor, "dim"]
    failure: Float[Tensor, "dim"]
    weight: float


@final
@dataclass(frozen=True, kw_only=True)
class CLUEScorer(Scorer):
    """Mean distance to success centroids minus that to failure centroids; above 0 = failure.

    ``layers`` has None for a layer that was not chosen; ``value`` is the mean distance between the
    two centroids.
    """

    layers: tuple[CLUELayer | None, ...]

    def score(self, x: Sequence[Float[Tensor, "row _dim"]]) -> Float[Tensor, "row"]:
        """Return how much nearer traces are to failures; ``x`` holds their deltas by layer.

        A trace with a delta that is not finite at a chosen layer scores ``+inf``.
        """
        if len(x) != len(self.layers) or not len(x):
            raise ShapeError(
                f"CLUE.score: expected rows at {plural(len(self.layers), 'site')} (as fitted), "
                f"got {len(x)}."
            )
        pairs = [(at_least_single(r), c) for r, c in zip(x, self.layers, strict=True) if c]
        total = pairs[0][0].new_zeros(len(x[0]))
        for rows, layer in pairs:
            check_fitted_width("CLUE", rows, len(layer.success))
            gap = _distance(rows, layer.success) - _distance(rows, layer.failure)
            total = total + layer.weight * gap.to(total)
        return infinite_where_nonfinite(total, *(rows for rows, _ in pairs))


@final
@dataclass(frozen=True)
class CLUE(Detector):
    """Distance to the mean success minus distance to the mean failure, averaged over layers.

    ``d(V_s) - d(V_f)`` with ``d(V) = (1/L) sum_l |delta_l - V_l|``, the mean over layers of the
    distance to the mean delta of the successes ``V_s`` or failures ``V_f``. Nothing is trained.

    Range        (-inf, inf), units of the rows, or typical distances (``scale="rms"``); higher =
                 more like a failure, above 0 = judged a failure.
    Cost         one pass; state 16 layers dim bytes; O(layers dim) per trace.
    Assumes      rows are deltas (reducer ``step_deltas``), one for each trace; ``positive`` labels
                 a failure, any other label a success. Compare with the length of the trace alone,
                 and within prompts (``auroc_within``): deltas follow length and difficulty. Name
                 the prompt as group, so that no prompt is on both sides of a split.
    Differs      nothing with ``scale="none"``.

    Parameters
    ----------
    layers : tuple of int or "all", default="all"
        Which of the sites count, by their number in the order of execution; -1 = the last.
    scale : {"none", "rms"}, default="none"
        ``rms`` divides the distances of a layer by the root mean square distance of its fitted
        rows to their own centroid; else layers of long states decide alone.
    positive : int, default=1
        The label of failures.

    Examples
    --------
    >>> first = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    >>> second = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0], [0.0, 2.0]])
    >>> scorer = CLUE().fit({"layer 1": first, "layer 2": second}, [0, 0, 1, 1])
    >>> scorer.score([torch.zeros(1, 2), torch.tensor([[0.0, 3.0]])]).tolist()
    [1.0]

    References
    ----------
    liang2025clue
    """

    layers: tuple[int, ...] | Literal["all"] = "all"
    scale: Scale = "none"
    positive: int = 1
    span: ClassVar[Span] = "all"
    least_sites: ClassVar[int] = 1
    paper: ClassVar[str] = "liang2025clue"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"layers": (0, -1), "scale": "rms"})

    def __post_init__(self) -> None:
        if self.layers != "all" and (not self.layers or len(set(self.layers)) < len(self.layers)):
            raise InputError(f"CLUE: expected layers 'all' or distinct numbers, got {self.layers}.")

    @property
    def usual(self) -> Where:
        """Select rows not labelled as failures."""
        return NotLabelled(self.positive)

    def reading(self) -> dict[str, Any]:
        """Return the reading of each trace's state change."""
        return {"reducer": "step_deltas"}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for count, mean and scatter of each label's deltas."""
        return {"deltas": ClassMoments("trace")}

    def result(self, deltas: tuple[ClassMomentsState, ...]) -> CLUEScorer:
        """Compute the centroids of failures and of all other labelled traces."""
        chosen = self._chosen(len(deltas))
        clusters = [
            _centroids(s, self.positive) if i in chosen else None for i, s in enumerate(deltas)
        ]
        live = [c for c in clusters if c is not None and (self.scale == "none" or c.radius > 0)]
        layers = tuple(
            None if c is None else CLUELayer(c.success, c.failure, self._weight(c, len(live)))
            for c in clusters
        )
        gaps = [c.weight * float((c.success - c.failure).norm()) for c in layers if c is not None]
        first = next(c for c in clusters if c is not None)
        flags = ["unlabelled"] if any(s.unlabelled is not None for s in deltas) else []
        flags += ["dead"] if len(live) < len(chosen) else []
        return CLUEScorer(
            value=sum(gaps),
            n=first.n_success + first.n_failure,
            unit="units of the rows" if self.scale == "none" else "typical distances",
            flags=tuple(flags),
            conventions={
                "value": "mean distance between the two centroids",
                "layers": sorted(chosen),
                "scale": self.scale,
                "positive": self.positive,
                "successes": first.n_success,
                "failures": first.n_failure,
                "se": "not given for a scorer: calibrate its scores",
            },
            layers=layers,
        )

    def _chosen(self, n: int) -> set[int]:
        if self.layers == "all":
            return set(range(n))
        wrong = [i for i in self.layers if not -n <= i < n]
        chosen = {i % n for i in self.layers}
        if wrong or len(chosen) < len(self.layers):
            raise InputError(
                f"CLUE: expected distinct layers in [-{n}, {n}), the sites that are read, got "
                f"{self.layers}. Read other sites or name other layers."
            )
        return chosen

    def _weight(self, layer: "_Centroids", n_live: int) -> float:
        if self.scale == "none":
            return 1.0 / n_live
        return 1.0 / (n_live * layer.radius) if layer.radius > 0 else 0.0


@dataclass(frozen=True)
class _Centroids:
    """Mean deltas of successes and failures at one layer; ``radius`` is a typical distance."""

    success: Float[Tensor, "dim"]
    failure: Float[Tensor, "dim"]
    n_success: int
    n_failure: int
    radius: float


def _centroids(classes: ClassMomentsState, positive: int) -> _Centroids:
    failed = classes.labels == positive
    weight = classes.weight
    n_failure, n_success = float(weight[failed].sum()), float(weight[~failed].sum())
    if min(n_failure, n_success) == 0:
        raise InputError(
            f"CLUE: expected traces of label {positive} (failures) and of another (successes), got "
            f"{n_failure:.0f} and {n_success:.0f}. Give labelled traces of both kinds."
        )
    failure = (weight * failed / n_failure) @ classes.mean
    success = (weight * ~failed / n_success) @ classes.mean
    apart = (classes.mean - torch.where(failed[:, None], failure, success)).square().sum(1)
    square = float(classes.within.sum() + (weight * apart).sum()) / (n_failure + n_success)
    return _Centroids(success, failure, round(n_success), round(n_failure), square**0.5)


def _distance(x: Float[Tensor, "row dim"], point: Float[Tensor, "dim"]) -> Float[Tensor, "row"]:
    return (x - point.to(x)).norm(dim=1)
