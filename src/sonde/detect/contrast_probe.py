"""A truth direction learned without labels from pairs of contradictory statements.

Use it where a text can be written with both answers and nobody knows which is right. With labels,
``MassMean`` and ``LinearProbe`` are stronger.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.instrument import Detector, NotLabelled, Where
from sonde.core.ranges import check_ranges
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.statistic import Statistic
from sonde.core.wording import plural
from sonde.detect._metric import check_fitted_width
from sonde.detect._pair_sample import PairSample, PairSampleState
from sonde.detect._probe import projected
from sonde.stats import auroc


@final
@dataclass(frozen=True, kw_only=True)
class ContrastScorer(Scorer):
    """Signed projection of each row after normalising its side; ``axis`` has a row per side.

    ``value`` is the lowest loss (``ccs``), or the share of the differences' variance along the axis
    (``crc``). With ``sign == "undefined"`` high scores may mean either class.
    """

    axis: Float[Tensor, "2 dim"]
    mean: Float[Tensor, "2 dim"]
    bias: float
    sign: Literal["labels", "undefined"]
    positive: int

    def score(self, x: Float[Tensor, "row dim"], side: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return the signed projection of each row; ``side`` is its index in the pair.

        A row of no pair (side -1) is taken for either member, and scored by the mean of both.
        """
        check_fitted_width("ContrastProbe", x, self.axis.shape[1])
        first = projected(x, self.mean[0], self.axis[0])
        second = projected(x, self.mean[1], self.axis[1])
        side = side.to(first.device)
        either = torch.where(side == 0, first, (first + second) / 2)
        return infinite_where_nonfinite(torch.where(side == 1, second, either) + self.bias, x)

    def pair_score(
        self, x0: Float[Tensor, "pair dim"], x1: Float[Tensor, "pair dim"]
    ) -> Float[Tensor, "pair"]:
        """Return half the score of side 1 minus that of side 0.

        What both members share cancels, so this score is sharper than the score of a single row.
        """
        side = torch.zeros(len(x0), dtype=torch.int64)
        return (self.score(x1, side + 1) - self.score(x0, side)) / 2


@final
@dataclass(frozen=True)
class ContrastProbe(Detector):
    """Direction that consistently separates two contradicting statements.

    Rows of each side are standardised for each unit, so that the wording of the
    sides cannot be read. ``ccs``: a probability ``p = sigmoid(w . z + b)`` with the least mean of
    ``(p_1 - (1 - p_0))^2 + min(p_1, p_0)^2`` over pairs: consistent, and not undecided. ``crc``:
    the first principal axis of the differences ``z_1 - z_0``, in closed form.

    Pairs alone cannot tell which end means true. Labels of a few rows fix the sign; without labels,
    ``sign`` of the scorer is ``"undefined"``: then only max(AUROC, 1 - AUROC) means something.

    Range        (-inf, inf); log odds (ccs) or units of the normalised rows (crc); higher = more
                 like ``positive`` where the sign is fixed.
    Cost         one pass; state 8 m dim bytes; result O(m dim) for each of some hundred steps of
                 each restart (ccs), or O(m dim^2 + dim^3) (crc).
    Assumes      columns ``pair`` and ``side`` (0 or 1); pairs with one member are left out. More
                 pairs than units: some direction fits any fewer pairs (flag ``few_rows``).
    Differs      from the paper: L-BFGS on a sample of pairs instead of gradient steps; a row is
                 scored by itself, one of no pair (side -1, and what a guard reads) as the mean of
                 its scores on both sides.

    Parameters
    ----------
    method : {"ccs", "crc"}, default="ccs"
        Trained, or in closed form.
    positive : int, default=1
        The class of rows for which scores are high.
    restarts : int, default=10
        Trainings from different starts; the training with the lowest loss is kept.
    l2 : float, default=1e-3
        Penalty ``l2 / 2 |w|^2 / dim`` of ``ccs``.
    m : int, default=2048
        Most pairs in the sample.
    seed : int, default=0
        Seed of the random starting directions.

    Examples
    --------
    >>> true, wording = torch.tensor([1.0, -1.0, 1.0, -1.0, -1.0, 1.0]), torch.tensor([0.0, 9.0])
    >>> x = torch.cat([true[:, None] * torch.tensor([1.0, 0.0]),
    ...                -true[:, None] * torch.tensor([1.0, 0.0]) + wording])
    >>> pair, side = [*range(6)] * 2, [0] * 6 + [1] * 6
    >>> label = [1, 0] + [-1] * 10
    >>> scorer = ContrastProbe(method="crc").fit(x, label, pair=pair, side=side)
    >>> scorer.sign, [float(v) > 0 for v in scorer.score(x[:6], torch.zeros(6, dtype=torch.int64))]
    ('labels', [True, False, True, False, False, True])

    References
    ----------
    burns2023ccs
    """

    method: Literal["ccs", "crc"] = "ccs"
    positive: int = 1
    restarts: int = 10
    l2: float = 1e-3
    m: int = 2048
    seed: int = 0
    paper: ClassVar[str] = "burns2023ccs"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"restarts": 2, "m": 32},
        {"method": "crc", "m": 32},
    )

    def __post_init__(self) -> None:
        check_ranges(self, method=("ccs", "crc"))
        if min(self.restarts, self.m - 1) < 1 or not self.l2 >= 0.0:
            raise InputError(
                "ContrastProbe: expected restarts of at least 1, m of at least 2 and l2 of at "
                f"least 0, got {self.restarts}, {self.m} and {self.l2}."
            )

    @property
    def usual(self) -> Where:
        """Select rows not labelled ``positive``."""
        return NotLabelled(self.positive)

    def reads(self) -> dict[str, Statistic[Any]]:
        """Return the request for the sample of pairs."""
        return {"pairs": PairSample(self.m)}

    def result(self, pairs: PairSampleState) -> ContrastScorer:
        """Normalise the sides, fit the direction, and fix its sign by labels if possible."""
        entries = torch.stack(pairs.whole())
        n_pairs = entries.shape[1]
        if n_pairs < 2:
            raise InputError(
                f"ContrastProbe: expected at least 2 pairs with both sides, got {n_pairs} among "
                f"{plural(pairs.n, 'row')}. Give both rows of each pair the same value of 'pair'."
            )
        rows = pairs.rows[entries.to(pairs.rows.device)].double()
        mean, spread = rows.mean(1), rows.std(1, correction=0)
        live = spread > 0
        inverse = torch.where(live, 1.0 / torch.where(live, spread, 1.0), 0.0)
        z = (rows - mean[:, None]) * inverse[:, None]
        if self.method == "ccs":
            value, weight, bias = _lowest(z, self.restarts, self.l2, self.seed)
        else:
            value, weight, bias = _principal(z[1] - z[0])
        scores = z @ weight
        flip, sign, area = _sign(scores, pairs.label[entries], self.positive, weight)
        raised_flags = {
            "rank_deficient": not bool(live.all()),
            "few_rows": n_pairs <= rows.shape[2],  # some direction fits any pairs
            "dead": bool((z[1] == z[0]).all()),
        }
        return ContrastScorer(
            value=value,
            n=n_pairs,
            flags=tuple(flag for flag, raised in raised_flags.items() if raised),
            conventions={
                "value": "lowest loss" if self.method == "ccs" else "share of variance on the axis",
                "sign": sign
                if sign == "labels"
                else "undefined: labelled rows do not determine which end is which",
                "auroc_of_labelled": area,
                "left_out": pairs.n - 2 * n_pairs,
                "se": "not given for a scorer: calibrate its scores",
            },
            axis=flip * weight * inverse,
            mean=mean,
            bias=flip * bias,
            sign=sign,
            positive=self.positive,
        )


def contrast_loss(p1: Float[Tensor, "*pair"], p0: Float[Tensor, "*pair"]) -> Float[Tensor, "*pair"]:
    """Return ``(p1 - (1 - p0))^2 + min(p1, p0)^2`` for each side's probability of truth.

    Examples
    --------
    >>> round(float(contrast_loss(torch.tensor(0.7), torch.tensor(0.4))), 6)
    0.17
    """
    return (p1 + p0 - 1.0).square() + torch.minimum(p1, p0).square()


def _lowest(
    z: Float[Tensor, "2 pair dim"], restarts: int, l2: float, seed: int
) -> tuple[float, Float[Tensor, "dim"], float]:
    """Return loss, weight and bias of the training run with the lowest loss."""
    dim = z.shape[2]
    generator = torch.Generator().manual_seed(seed)
    best: tuple[float, np.ndarray] | None = None

    @torch.enable_grad()
    def objective(v: np.ndarray) -> tuple[float, np.ndarray]:
        point = torch.from_numpy(v).to(z).requires_grad_()
        p0, p1 = torch.sigmoid(z @ point[:-1] + point[-1])
        loss = contrast_loss(p1, p0).mean() + l2 / 2 * point[:-1].square().sum() / dim
        (slope,) = torch.autograd.grad(loss, point)
        return float(loss.detach()), slope.cpu().numpy()

    for _ in range(restarts):
        start = torch.randn(dim + 1, generator=generator, dtype=torch.float64) / dim**0.5
        start[-1] = 0.0
        optimum = minimize(  # pyright: ignore[reportUnknownVariableType, reportCallIssue]
            objective, start.numpy(), jac=True, method="L-BFGS-B", options={"maxiter": 500}
        )
        if best is None or optimum.fun < best[0]:
            best = float(optimum.fun), optimum.x
    assert best is not None  # at least one restart
    point = torch.from_numpy(best[1].copy()).to(z)
    p0, p1 = torch.sigmoid(z @ point[:-1] + point[-1])
    return float(contrast_loss(p1, p0).mean()), point[:-1], float(point[-1])


def _principal(gap: Float[Tensor, "pair dim"]) -> tuple[float, Float[Tensor, "dim"], float]:
    """Return the fraction of variance on the first principal axis, and the axis."""
    values, vectors = torch.linalg.eigh(gap.T @ gap)
    total = float(values.sum())
    return (float(values[-1]) / total if total > 0 else 0.0), vectors[:, -1], 0.0


def _sign(
    scores: Float[Tensor, "2 pair"],
    label: Int[Tensor, "2 pair"],
    positive: int,
    weight: Float[Tensor, "dim"],
) -> tuple[float, Literal["labels", "undefined"], float | None]:
    """Return the direction's sign, the rule that fixed it, and the AUROC on labelled rows."""
    ones, others = scores[label == positive], scores[(label >= 0) & (label != positive)]
    if len(ones) and len(others):
        area = auroc(others, ones).value
        if area != 0.5:
            return (1.0 if area > 0.5 else -1.0), "labels", max(area, 1.0 - area)
    return (1.0 if float(weight[weight.abs().argmax()]) >= 0 else -1.0), "undefined", None
