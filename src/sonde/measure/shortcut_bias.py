"""Test whether a model relies on a feature more than its predictive value justifies.

A generator of rows with a core and a shortcut feature of chosen predictivity and availability, the
grid of rows on which a trained model is asked, and the figure from the model's answers.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.chart import Chart, matrix
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.tensors import as_tensor

SIDE = 41
REACH = 3.0


@final
@dataclass(frozen=True, kw_only=True)
class ShortcutBias(Result):
    """Reliance on the shortcut feature beyond the best linear rule's.

    ``reliance`` and ``best_reliance`` are those of the model and of the best rule, on the shortcut
    and on the core. ``boundary`` is the model's answer (-1, 0, 1) over shortcut (lines) and core
    (columns).
    """

    title: ClassVar[str] = "Answers over shortcut and core"
    direction: Direction = "none"
    reliance: Float[Tensor, "2"]
    best_reliance: Float[Tensor, "2"]
    boundary: Float[Tensor, "shortcut core"]

    def chart(self) -> Chart:
        """Return a chart with a map of the answers."""
        at = axis().tolist()
        rows = [
            {"shortcut": at[i], "core": at[j], "answer": v}
            for i, row in reversed(list(enumerate(self.boundary.tolist())))
            for j, v in enumerate(row)
        ]
        return matrix(self.title, rows, "core", "shortcut", "answer")


@final
@dataclass(frozen=True)
class ShortcutRows:
    """Rows of two classes with a core and a shortcut feature along two directions.

    ``z_i = q_i y + noise`` with ``q_i = probit(predictivity_i)``: the best rule on feature ``i``
    alone has the accuracy ``predictivity_i``, whatever the scale. A row is ``z_s`` times its
    availability along a direction, and ``z_c`` along an orthogonal direction.

    Parameters
    ----------
    core, shortcut : float, default=0.97, 0.95
        Predictivity of each feature, in (0.5, 1).
    availability : float, default=8.0
        Length of the shortcut's direction; the core's is 1.
    dim : int, default=100
        Units of a row.
    seed : int, default=0
        Seed of the two directions.
    """

    core: float = 0.97
    shortcut: float = 0.95
    availability: float = 8.0
    dim: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("core", "shortcut"):
            if not 0.5 < getattr(self, name) < 1.0:
                raise InputError(
                    f"ShortcutRows: expected {name} in (0.5, 1), got {getattr(self, name)}."
                )
        check_ranges(self, dim=">= 2")

    @property
    def strength(self) -> Float[Tensor, "2"]:
        """Distance of the class means from 0, for shortcut and core."""
        share = torch.tensor([self.shortcut, self.core], dtype=torch.float64)
        return torch.special.ndtri(share)

    @property
    def best_accuracy(self) -> float:
        """Accuracy of the best rule on both features."""
        return float(torch.special.ndtr(self.strength.norm()))

    def rows(
        self, n: int, seed: int = 0
    ) -> tuple[Float[Tensor, "row dim"], Int[Tensor, "row"], Float[Tensor, "row 2"]]:
        """Return rows, their classes 0 and 1, and their features (shortcut, core)."""
        generator = torch.Generator().manual_seed(seed)
        label = torch.randint(0, 2, (n,), generator=generator)
        noise = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        z = (2 * label[:, None] - 1) * self.strength + noise
        return self.embedded(z), label, z

    def grid(self) -> Float[Tensor, "cell dim"]:
        """Return the test rows: 41 x 41 values of both features, from -3 to 3."""
        return self.embedded(torch.cartesian_prod(axis(), axis()))

    def embedded(self, z: Float[Tensor, "row 2"]) -> Float[Tensor, "row dim"]:
        """Return the rows with these features (shortcut, core)."""
        generator = torch.Generator().manual_seed(self.seed)
        basis = torch.randn(self.dim, 2, generator=generator, dtype=torch.float64)
        scale = torch.tensor([self.availability, 1.0], dtype=torch.float64)
        return ((z * scale) @ torch.linalg.qr(basis).Q.T).float()


def axis() -> Float[Tensor, "41"]:
    """Return the values of a feature on the grid."""
    return torch.linspace(-REACH, REACH, SIDE, dtype=torch.float64)


def shortcut_bias(answers: Any, rows: ShortcutRows) -> ShortcutBias:
    """Return how much more a model relies on the shortcut than the best linear rule.

    Reliance on a feature is the mean over the grid of the sign of the answer times that of the
    feature. The value is the reliance on the shortcut less the reliance on the core, minus that
    difference for the best rule. The weights of the best rule are the distances of the class means.

    Range        [-2, 2]; above 0 the shortcut is used too much. The null is 0, the best rule.
    Cost         one answer of the model for each of 1,681 rows.
    Assumes      both classes equally often. The bias of nets fades during training: measure it at
                 several steps, beside the training loss, over many seeds.
    Differs      from the paper: constants of the generator and of the grid, and no nested features.

    Parameters
    ----------
    answers : array (1681,)
        What the model says of ``rows.grid()``: above 0 for class 1, below 0 for class 0.
    rows : ShortcutRows
        What the model was trained on.

    Examples
    --------
    >>> rows = ShortcutRows()
    >>> ask = rows.grid().double()
    >>> x, label, _ = rows.rows(20_000)
    >>> mean = x[label == 1].mean(0).double()
    >>> abs(shortcut_bias(ask @ mean, rows).value) > 0.5  # the difference of means is no best rule
    True

    References
    ----------
    hermann2024foundations
    """
    flat = as_tensor("shortcut_bias", answers, "answers", InputError).double().flatten().cpu()
    if len(flat) != SIDE * SIDE:
        raise InputError(
            f"shortcut_bias: expected {SIDE * SIDE} answers, one for each row of grid(), got "
            f"{len(flat)}."
        )
    if not bool(flat.isfinite().all()):
        raise InputError("shortcut_bias: expected finite answers, got NaN or infinity.")
    model = reliance(flat)
    best = reliance(torch.cartesian_prod(axis(), axis()) @ rows.strength)
    dead = bool((flat.sign() == flat[0].sign()).all())
    value = float((model[0] - model[1]) - (best[0] - best[1]))
    return ShortcutBias(
        value=math.nan if dead else value,
        null=0.0,
        n=len(flat),
        range=(-2.0, 2.0),
        flags=("dead",) if dead else (),
        conventions={
            "grid": f"{SIDE} x {SIDE} in [-3, 3]",
            "se": "none: an exact number for one model; take several seeds",
        },
        reliance=model,
        best_reliance=best,
        boundary=flat.sign().reshape(SIDE, SIDE),
    )


def reliance(answers: Float[Tensor, "cell"]) -> Float[Tensor, "2"]:
    """Return the mean agreement of the model's answers with shortcut and core on the grid."""
    z = torch.cartesian_prod(axis(), axis())
    return (answers.sign()[:, None] * z.sign()).mean(0)
