"""A row's length outside the principal space of fitted rows, compared with its logits.

For the layer that feeds a classifier's last linear layer; combines what ``Energy`` sees in the
logits with what the logits cannot see.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import SAMPLE, Detector
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import HEAD_INPUT
from sonde.core.statistic import Statistic
from sonde.detect._head import check_head
from sonde.detect._logits import LogitScoreSum, LogitScoreSumState
from sonde.detect._metric import check_fitted_width
from sonde.detect.energy import energy_of
from sonde.detect.max_logit import MaxLogit
from sonde.stats import (
    HashSample,
    HashSampleState,
    HeadWeights,
    HeadWeightsState,
    Moments,
    MomentsState,
)

BLOCK = 4096  # rows at a time, so that memory does not grow with them


@final
@dataclass(frozen=True, kw_only=True)
class ViMScorer(Scorer):
    """Weighted residual length minus the logarithmic evidence of the logits.

    ``basis`` spans the rest of the space around ``origin``; ``middle`` is the mean of the fitted
    rows, and ``shift`` its coordinates along the basis; ``value`` is ``alpha``.
    """

    origin: Float[Tensor, "dim"]
    basis: Float[Tensor, "dim rest"]
    middle: Float[Tensor, "dim"]
    shift: Float[Tensor, "rest"]
    alpha: float
    n_classes: int

    def score(
        self, x: Float[Tensor, "row dim"], logits: Float[Tensor, "row class"]
    ) -> Float[Tensor, "row"]:
        """Return ``alpha`` times the residual length of each row, plus its energy."""
        check_fitted_width("ViM", x, len(self.origin))
        check_fitted_width("ViM", logits, self.n_classes, "classes")
        norms = [part.norm(dim=1) for part in _residuals(x, self.middle, self.basis, self.shift)]
        virtual = self.alpha * torch.cat(norms)
        return infinite_where_nonfinite(virtual + energy_of(logits, 1.0), x, logits=logits)

    def contributions(
        self, x: Float[Tensor, "row dim"], logits: Float[Tensor, "row class"]
    ) -> Float[Tensor, "row dim"]:
        """Return each unit's squared residual; they sum to the squared residual length."""
        check_fitted_width("ViM", x, len(self.origin))
        parts = _residuals(x, self.middle, self.basis, self.shift)
        return torch.cat([(part @ self.basis.to(part).T).square() for part in parts])


@final
@dataclass(frozen=True)
class ViM(Detector):
    """Length of each row outside the fitted rows' principal space, compared with its logits.

    The residual length is scaled so that on average it is as large as the largest logit, and
    enters as the logit of one more class: ``alpha |R^T (x - u)| - ln sum_c exp f_c``, with ``R``
    the directions of least energy about ``u = -pinv(W) b``, the point that the head maps nearest
    to zero. Rows without any residual leave ``alpha = 0``, the energy alone (flag ``dead``).

    Range        (-inf, inf), in units of the logits; higher = more unusual.
    Cost         one pass; state 8 dim^2 bytes; result O(dim^3); O(dim^2) per row.
    Assumes      rows are the input of the model's final linear layer; the mean largest logit is
                 positive.
    Differs      from the paper: ``alpha`` is exact from moments (root mean square of the residual
                 instead of its mean); ``alpha="paper"`` estimates the mean on a sample.

    Parameters
    ----------
    principal : int or "auto", default="auto"
        Directions that count as usual. "auto": 1000 from 2048 dimensions on, 512 from 768 on, else
        half of them.
    alpha : {"rms", "paper"}, default="rms"
        How the residual's typical length is taken.
    m : int, default=2048
        Most rows in the sample of ``alpha="paper"``.

    Examples
    --------
    >>> x = torch.tensor([[3.0, 0.0, 0.1], [0.0, 3.0, -0.1], [2.0, 1.0, 0.2], [1.0, 2.0, -0.2]])
    >>> weight, bias = torch.eye(2, 3), torch.tensor([0.5, -0.5])
    >>> scorer = ViM(principal=2).fit(x, logits=x @ weight.T + bias, head=(weight, bias))
    >>> usual, unusual = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0]])
    >>> rows = torch.stack([usual, unusual])
    >>> scorer.score(rows, rows @ weight.T + bias).double().round(decimals=1).tolist()
    [-1.4, 42.5]

    References
    ----------
    wang2022vim
    """

    principal: int | Literal["auto"] = "auto"
    alpha: Literal["rms", "paper"] = "rms"
    m: int = SAMPLE
    word: ClassVar[str] = "vim"
    paper: ClassVar[str] = "wang2022vim"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"principal": 1, "alpha": "paper"})

    def __post_init__(self) -> None:
        if isinstance(self.principal, str) and self.principal != "auto":
            raise InputError(f"ViM: expected principal 'auto' or a number, got {self.principal!r}.")
        if not isinstance(self.principal, str) and self.principal < 0:
            raise InputError(f"ViM: expected principal of at least 0, got {self.principal}.")
        check_ranges(self, alpha=("rms", "paper"), m=">= 1")

    def reading(self) -> dict[str, Any]:
        """Return the reading of the final linear layer's input."""
        return {"sites": HEAD_INPUT}

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the requests for moments, mean largest logit, head and perhaps a sample."""
        statistics = {
            "moments": Moments(),
            "mean": LogitScoreSum(MaxLogit()),
            "head": HeadWeights(),
        }
        return statistics if self.alpha == "rms" else {**statistics, "sample": HashSample(self.m)}

    def result(
        self,
        moments: MomentsState,
        mean: LogitScoreSumState,
        head: HeadWeightsState,
        sample: HashSampleState | None = None,
    ) -> ViMScorer:
        """Split the space by energy about the origin, and weight the residual."""
        dim = len(moments.mean)
        check_head("ViM", head, dim)
        reach, origin = _reach(mean), _origin(head)
        energies, basis = _least_energy(moments, origin, self._principal(dim))
        middle = moments.mean.float().double()  # without rounding in either type
        shift = (middle - origin) @ basis
        size, error = math.sqrt(float(energies.sum())), 0.0
        if sample is not None:
            parts = _residuals(sample.rows, middle, basis, shift)
            size, error = _mean_length(torch.cat([p.norm(dim=1) for p in parts]), sample.n)
        dead = float(energies.sum()) == 0.0 or size == 0.0
        alpha = 0.0 if dead else reach / size
        flags = ["dead"] if dead else []
        flags += [] if sample is None or sample.is_everything else ["sampled"]
        return ViMScorer(
            value=alpha,
            n=moments.n,
            unit="units of the logits",
            flags=tuple(flags),
            conventions={
                "value": "weight of the residual length",
                "principal": dim - basis.shape[1],
                "alpha": self.alpha,
                "alpha_se": None if sample is None or dead else alpha * error / size,
                "se": "not given for a scorer: calibrate its scores",
            },
            origin=origin,
            basis=basis,
            middle=middle,
            shift=shift,
            alpha=alpha,
            n_classes=mean.n_classes,
        )

    def _principal(self, dim: int) -> int:
        if isinstance(self.principal, str):
            return 1000 if dim >= 2048 else 512 if dim >= 768 else dim // 2
        if self.principal >= dim:
            raise InputError(
                f"ViM: expected principal below dim={dim}, got {self.principal}. "
                "Leave at least one direction for the residual."
            )
        return self.principal


def _reach(mean: LogitScoreSumState) -> float:
    """Return the mean of the rows' largest logits."""
    reach = -float(mean.sum) / mean.n
    if not reach > 0.0:
        raise InputError(
            "ViM: expected a positive mean of the largest logits, which scales the residual, "
            f"got {reach:.6g}. Use Mahalanobis for a model with such logits."
        )
    return reach


def _origin(head: HeadWeightsState) -> Float[Tensor, "dim"]:
    """Return the row that the final layer maps nearest to zero logits.

    Weights that sum to 0 over classes do so up to the rounding of their type. Directions that
    rounding could have made do not count.
    """
    weight = head.weight.double()
    if head.bias is None:
        return weight.new_zeros(weight.shape[1])
    unit = torch.finfo(head.weight.dtype).eps / 2
    rounding = unit * float(weight.norm()) * sum(n**-0.5 for n in weight.shape)
    return -(torch.linalg.pinv(weight, atol=rounding, rtol=0.0) @ head.bias.double())


def _least_energy(
    moments: MomentsState, origin: Float[Tensor, "dim"], principal: int
) -> tuple[Float[Tensor, "rest"], Float[Tensor, "dim rest"]]:
    """Return energies and directions about the origin, except the ``principal`` largest.

    Energies that rounding could have made are 0.
    """
    gap = moments.mean - origin
    energies, directions = torch.linalg.eigh(moments.covariance + torch.outer(gap, gap))
    rest = len(gap) - principal
    floor = len(gap) * torch.finfo(energies.dtype).eps * energies[-1].clamp(min=0.0)
    kept = energies[:rest]
    return kept.where(kept > floor, torch.zeros_like(kept)), directions[:, :rest].contiguous()


def _residuals(
    x: Float[Tensor, "row dim"],
    middle: Float[Tensor, "dim"],
    basis: Float[Tensor, "dim rest"],
    shift: Float[Tensor, "rest"],
) -> Iterator[Float[Tensor, "_row rest"]]:
    """Yield rows relative to the origin in the basis, in chunks.

    Products are those of rows around their middle, so that a large common mean costs no digits.
    """
    kind = x.dtype if x.dtype in (torch.float32, torch.float64) else torch.float32
    middle, basis, shift = (t.to(x.device, kind) for t in (middle, basis, shift))
    for rows in x.split(BLOCK):
        yield torch.addmm(shift, rows.to(kind) - middle, basis)


def _mean_length(lengths: Float[Tensor, "sample"], n: int) -> tuple[float, float]:
    """Return the mean of a sample out of ``n`` rows, and its standard error."""
    m, wide = len(lengths), lengths.double()
    spread = float(wide.std(correction=1)) if m > 1 else 0.0
    return float(wide.mean()), spread * math.sqrt((1.0 - m / n) / m)
