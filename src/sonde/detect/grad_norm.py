"""Norm of the final layer's weight gradient for a uniform target."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.instrument import Detector
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import HEAD_INPUT
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.detect._logits import CHUNK_ENTRIES, at_least_single
from sonde.detect._metric import check_fitted_width


@dataclass(frozen=True)
class GradNormSumState(State):
    """Sum of the scores of ``n`` rows of ``dim`` units and ``n_classes`` logits."""

    n: int
    sum: Float[Tensor, ""]
    dim: int
    n_classes: int


@final
@dataclass(frozen=True)
class GradNormSum(Statistic[GradNormSumState]):
    """Mean score of the fitted rows, independent of how data are split.

    Parameters
    ----------
    temperature : float, default=1.0
    """

    temperature: float = 1.0

    def observe(
        self, x: Float[Tensor, "row dim"], logits: Float[Tensor, "row class"]
    ) -> GradNormSumState:
        """Return the sum over a batch."""
        scores = self._scores(x, logits)
        return GradNormSumState(len(x), scores.sum(), x.shape[1], logits.shape[1])

    def merge(self, a: GradNormSumState, b: GradNormSumState) -> GradNormSumState:
        """Return the sum over both states."""
        return GradNormSumState(a.n + b.n, a.sum + b.sum, a.dim, a.n_classes)

    def influence(
        self,
        state: GradNormSumState,
        gradient: GradNormSumState,
        x: Float[Tensor, "row dim"],
        logits: Float[Tensor, "row class"],
    ) -> Float[Tensor, "row"]:
        """Return the gradient times each row's score minus the mean."""
        return (self._scores(x, logits) - state.sum / state.n) * gradient.sum

    def _scores(
        self, x: Float[Tensor, "row dim"], logits: Float[Tensor, "row class"]
    ) -> Float[Tensor, "row"]:
        """Return scores in float64, so that a sum does not depend on batches."""
        step = max(1, CHUNK_ENTRIES // max(x.shape[1], logits.shape[1]))
        parts = zip(x.split(step), logits.split(step), strict=True)
        return torch.cat([grad_norm(h.double(), f.double(), self.temperature) for h, f in parts])


def grad_norm(
    x: Float[Tensor, "row dim"], logits: Float[Tensor, "row class"], temperature: float
) -> Float[Tensor, "row"]:
    """Return ``-||x||_1 sum_c |p_c - 1 / K| / T`` with ``p = softmax(f / T)``."""
    p = torch.softmax(logits / temperature, dim=1)
    length = torch.linalg.vector_norm(x, ord=1, dim=1)
    pull = (p - 1.0 / logits.shape[1]).abs().sum(1).to(length)
    return -length * pull / temperature


@final
@dataclass(frozen=True, kw_only=True)
class GradNormScorer(Scorer):
    """Minus the norm of the gradient; ``value`` is its mean over the fitted rows."""

    temperature: float
    dim: int
    n_classes: int

    def score(
        self, x: Float[Tensor, "row dim"], logits: Float[Tensor, "row class"]
    ) -> Float[Tensor, "row"]:
        """Return minus the norm for each row."""
        check_fitted_width("GradNorm", x, self.dim)
        check_fitted_width("GradNorm", logits, self.n_classes, "classes")
        wide, f = at_least_single(x), at_least_single(logits)
        return infinite_where_nonfinite(grad_norm(wide, f, self.temperature), x, logits=logits)


@final
@dataclass(frozen=True)
class GradNorm(Detector):
    """Minus the gradient norm of the divergence from a uniform prediction.

    At the input ``x`` of a final linear layer the gradient of ``-(1/K) sum_c ln p_c`` in its weight
    is ``(p - 1/K) x^T / T``, so its sum of absolute entries is ``||x||_1 sum_c |p_c - 1/K| / T``:
    no backward pass is needed. Usual rows are long and decided.

    Range        (-inf, 0], in units of the rows; higher = more unusual.
    Cost         one pass; state 32 bytes; O(dim + classes) per row.
    Assumes      rows are the input of the model's final linear layer.
    Differs      the target's entries sum to 1; published code with entries of 1 gives ``classes``
                 times as much.

    Parameters
    ----------
    temperature : float, default=1.0
        Divisor of the logits, above 0.

    Examples
    --------
    >>> x = torch.tensor([[1.0, -2.0, 0.5]]).double()
    >>> logits = torch.tensor([[0.0, -1.05]]).double()
    >>> GradNorm().fit(x, logits=logits).score(x, logits).round(decimals=4).tolist()
    [-1.6854]

    References
    ----------
    huang2021gradnorm
    """

    temperature: float = 1.0
    paper: ClassVar[str] = "huang2021gradnorm"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"temperature": 2.0})

    def __post_init__(self) -> None:
        check_ranges(self, temperature="> 0")

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the mean score."""
        return {"norms": GradNormSum(self.temperature)}

    def result(self, norms: GradNormSumState) -> GradNormScorer:
        """Return the scorer with the temperature and the widths."""
        return GradNormScorer(
            value=norms.sum / norms.n,
            n=norms.n,
            unit="units of the rows",
            range=(float("-inf"), 0.0),
            conventions={"value": "mean score of the fitted rows", "norm": "sum of absolutes"},
            temperature=self.temperature,
            dim=norms.dim,
            n_classes=norms.n_classes,
        )
