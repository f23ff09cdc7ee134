"""Test whether many models' accuracies on two subpopulations lie on a line or a curve.

Each point is a model, or an epoch of one: its accuracy on the majority and on the minority.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from scipy.special import fdtrc  # pyright: ignore
from torch import Tensor

from sonde.core.chart import Chart, ChartAxis, curves, marks, overlaid
from sonde.core.errors import InputError
from sonde.core.few_groups import widen_error
from sonde.core.result import Direction, Result
from sonde.core.tensors import as_tensor
from sonde.stats.normal_equations import GRAM_CUT


@final
@dataclass(frozen=True, kw_only=True)
class SubpopulationCurve(Result):
    """Curvature, with both fits in probits.

    ``line`` and ``curve`` hold coefficients from the constant upwards; ``rms_line`` and
    ``rms_curve`` are the residuals, ``r2_gain`` what the curve explains beyond the line;
    ``p_value`` is that of the F-test of the curvature; ``peak`` is the probit of the majority where
    the curve turns.
    """

    title: ClassVar[str] = "Accuracy on two subpopulations"
    direction: Direction = "none"
    line: Float[Tensor, "2"]
    curve: Float[Tensor, "3"]
    rms_line: float
    rms_curve: float
    r2_line: float
    r2_gain: float
    p_value: float
    peak: float
    x: Float[Tensor, "point"]
    y: Float[Tensor, "point"]

    def chart(self) -> Chart:
        """Return a chart with the points and the curve."""
        grid = torch.linspace(float(self.x.min()), float(self.x.max()), 41, dtype=torch.float64)
        fitted = _design(grid, 2) @ self.curve
        models, curve = (
            [
                {"majority": a, "minority": b}
                for a, b in zip(x.tolist(), y.tolist(), strict=True)
                if math.isfinite(a) and math.isfinite(b)
            ]
            for x, y in ((self.x, self.y), (grid, fitted))
        )
        x = ChartAxis("majority", title="majority, probit")
        y = ChartAxis("minority", title="minority, probit")
        through = curves(self.title, curve, x, y, dots=False)
        return overlaid(marks(self.title, models, x, y), through)


def subpopulation_curve(
    majority: Any,
    minority: Any,
    n_majority: int | None = None,
    n_minority: int | None = None,
    *,
    group: Any = None,
) -> SubpopulationCurve:
    """Return the curvature of the relation between two accuracies over models, in probits.

    Least squares of degree 1 and 2 of ``probit(minority)`` on ``probit(majority)``. The value is
    the coefficient of the square: 0 for a line; below 0 the minority gains less and less, or
    loses, as the majority gains.

    Range        any number; the null is 0, a line.
    Assumes      the error of the majority's accuracy is small beside its spread over models.
    Differs      from the paper: weights by the binomial variance of the minority's probit if
                 ``n_minority`` is given; test and error count nets, not epochs.

    Parameters
    ----------
    majority, minority : array (point,)
        Accuracies in [0, 1].
    n_majority, n_minority : int, optional
        Examples behind each accuracy: accuracies of 0 and 1 are then moved half an example inwards
        (flag ``clipped``). Without this number, accuracies of 0 and 1 are an error.
    group : array (point,), optional
        Which points are epochs of one net. The F-test then uses the means of nets, and the standard
        error leaves out one net at a time; without groups, one point at a time.

    Examples
    --------
    >>> import torch
    >>> x, y = accuracies_at_angles(torch.linspace(0, torch.pi / 4, 9))
    >>> round(subpopulation_curve(x, y).value, 5)
    -0.63558

    References
    ----------
    liang2023accuracy
    """
    p, q = (_accuracies(v, name) for v, name in ((majority, "majority"), (minority, "minority")))
    if len(p) != len(q):
        raise InputError(
            "subpopulation_curve: expected as many minority accuracies as majority accuracies, "
            f"got {len(q)} and {len(p)}."
        )
    (x, cut), (y, cut2) = _probit(p, n_majority), _probit(q, n_minority)
    weight = torch.ones_like(y) if n_minority is None else _binomial_weight(y, n_minority)
    member = _members(group, len(x))
    n_nets = int(member.max()) + 1 if len(x) else 0
    if n_nets < 5:
        raise InputError(
            f"subpopulation_curve: expected at least 5 {'points' if group is None else 'groups'}, "
            f"got {n_nets}. Add models."
        )
    line, curve = _fitted(x, y, weight, 1), _fitted(x, y, weight, 2)
    left = [_left(x, y, weight, c) for c in (line, curve)]
    total = _left(x, y, weight, _fitted(x, y, weight, 0))
    means = [_by_net(v, weight, member) for v in (x, y)]
    total_weight = torch.zeros(n_nets, dtype=torch.float64).index_add_(0, member, weight)
    kept = [
        _fitted(x[member != g], y[member != g], weight[member != g], 2)[2] for g in range(n_nets)
    ]
    spread = torch.stack(kept).var(correction=0) * (n_nets - 1)
    sum_weight = float(weight.sum())
    return SubpopulationCurve(
        value=float(curve[2]),
        se=widen_error(float(spread.sqrt()), n_nets),
        null=0.0,
        n=n_nets,
        flags=("clipped",) if cut or cut2 else (),
        conventions={
            "axes": "probits",
            "weights": "none" if n_minority is None else "binomial, of the minority",
            "se": f"one {'point' if group is None else 'group'} left out after another",
        },
        line=line,
        curve=curve,
        rms_line=math.sqrt(left[0] / sum_weight),
        rms_curve=math.sqrt(left[1] / sum_weight),
        r2_line=1.0 - left[0] / total,
        r2_gain=(left[0] - left[1]) / total,
        p_value=_f_test(means[0], means[1], total_weight),
        peak=float(-curve[1] / (2 * curve[2])),
        x=x,
        y=y,
    )


def accuracies_at_angles(
    angle: Any, core: float = 1.0, spurious: float = 2.0
) -> tuple[Float[Tensor, "point"], Float[Tensor, "point"]]:
    """Return accuracies of linear classifiers at angles between a core and a spurious feature.

    Features are normal with variance 1 and means ``core`` and ``spurious`` times the class; the
    spurious one points the other way in the minority. ``Phi(core cos a +- spurious sin a)``: the
    probits lie on an ellipse.

    Parameters
    ----------
    angle : object
        Angle between the classifier's direction and the core feature, in radians.
    core : float, default=1.0
        Size of the core feature.
    spurious : float, default=2.0
        Size of the spurious feature.
    """
    a = as_tensor("accuracies_at_angles", angle, "angles", InputError).double()
    own, other = core * a.cos(), spurious * a.sin()
    return torch.special.ndtr(own + other), torch.special.ndtr(own - other)


def _accuracies(values: Any, name: str) -> Float[Tensor, "point"]:
    p = as_tensor("subpopulation_curve", values, name, InputError).double().flatten()
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise InputError(f"subpopulation_curve: expected {name} accuracies in [0, 1], got {p}.")
    return p


def _probit(p: Float[Tensor, "point"], n: int | None) -> tuple[Float[Tensor, "point"], bool]:
    """Return the probits, and whether accuracies of 0 or 1 were moved inwards."""
    edge = 0.0 if n is None else 0.5 / n
    z = torch.special.ndtri(p.clamp(edge, 1.0 - edge))
    if not bool(z.isfinite().all()):
        raise InputError(
            "subpopulation_curve: expected accuracies strictly between 0 and 1, or the "
            "number of examples from which they were computed. Pass n_majority and "
            "n_minority."
        )
    return z, bool(((p < edge) | (p > 1.0 - edge)).any())


def _binomial_weight(z: Float[Tensor, "point"], n: int) -> Float[Tensor, "point"]:
    """Return the inverse variance of the probit of a fraction of ``n`` examples."""
    share = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
    return n * density.square() / (share * (1.0 - share))


def _members(group: Any, n: int) -> Int[Tensor, "point"]:
    if group is None:
        return torch.arange(n)
    names = {name: i for i, name in enumerate(dict.fromkeys(_plain(group)))}
    if len(_plain(group)) != n:
        raise InputError(f"subpopulation_curve: expected {n} groups, got {len(_plain(group))}.")
    return torch.tensor([names[name] for name in _plain(group)], dtype=torch.int64)


def _plain(group: Any) -> list[Any]:
    return group.tolist() if hasattr(group, "tolist") else list(group)


def _design(x: Float[Tensor, "point"], degree: int) -> Float[Tensor, "point power"]:
    return torch.stack([x**k for k in range(degree + 1)], 1)


def _fitted(
    x: Float[Tensor, "point"],
    y: Float[Tensor, "point"],
    weight: Float[Tensor, "point"],
    degree: int,
) -> Float[Tensor, "power"]:
    """Return the coefficients of a weighted least-squares polynomial."""
    root = weight.sqrt()[:, None]
    return torch.linalg.lstsq(
        root * _design(x, degree), root * y[:, None], rcond=GRAM_CUT, driver="gelsd"
    ).solution[:, 0]


def _left(
    x: Float[Tensor, "point"],
    y: Float[Tensor, "point"],
    weight: Float[Tensor, "point"],
    coefficients: Float[Tensor, "power"],
) -> float:
    """Return a polynomial's weighted sum of squared residuals."""
    gap = y - _design(x, len(coefficients) - 1) @ coefficients
    return float((weight * gap.square()).sum())


def _by_net(
    values: Float[Tensor, "point"], weight: Float[Tensor, "point"], member: Int[Tensor, "point"]
) -> Float[Tensor, "net"]:
    n = int(member.max()) + 1
    sums = torch.zeros(2, n, dtype=torch.float64)
    sums.index_add_(1, member, torch.stack([weight * values, weight]))
    return sums[0] / sums[1]


def _f_test(
    x: Float[Tensor, "net"], y: Float[Tensor, "net"], weight: Float[Tensor, "net"]
) -> float:
    """Return the p-value of the quadratic term in a weighted regression over models."""
    left = [_left(x, y, weight, _fitted(x, y, weight, degree)) for degree in (1, 2)]
    freedom = len(x) - 3
    if left[1] <= 0.0:
        return 0.0
    f = (left[0] - left[1]) / (left[1] / freedom)
    return float(fdtrc(1.0, freedom, f))
