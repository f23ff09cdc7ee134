"""Shared parts of methods that erase a concept: joint moments, the edits, and the result."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.edit import AffineMap, Edit, EditContext
from sonde.core.errors import InputError, ShapeError, StateError
from sonde.core.result import Result
from sonde.core.site import Site
from sonde.stats import ClassMomentsState
from sonde.stats.shrinkage import Shrinkage, shrunk

FLOAT64, FLOAT32 = (torch.finfo(t).eps for t in (torch.float64, torch.float32))


@final
@dataclass(frozen=True, eq=False)
class Erase(Edit):
    """Subtract directions from each row, in proportion to linear functions of the row.

    ``x - strength ((x - mean) right) left^T``.

    Parameters
    ----------
    mean : Float[Tensor, "dim"]
        The point that stays where it is.
    left, right : Float[Tensor, "dim rank"]
        The directions of the change, and the linear functions of the row that give its size.
    strength : float, default=1.0
        Strength of the edit: 0 changes nothing.
    """

    mean: Float[Tensor, "dim"]
    left: Float[Tensor, "dim rank"]
    right: Float[Tensor, "dim rank"]
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the activation without the concept."""
        if self.strength == 0.0:
            return x
        if x.shape[-1] != len(self.mean):
            raise ShapeError(
                f"Erase.apply: expected dim={len(self.mean)}, got dim={x.shape[-1]} at {site}. "
                "Fit an eraser for that site."
            )
        return self.as_affine()(x)

    def as_affine(self) -> AffineMap:
        """Return the edit as an affine map of each row."""
        left = -self.strength * self.left
        return AffineMap(shift=-left @ (self.mean @ self.right), left=left, right=self.right)


@final
@dataclass(frozen=True, eq=False)
class Subtract(Edit):
    """Subtract a vector from all rows of an example.

    Parameters
    ----------
    shift : Float[Tensor, "example dim"]
        Vector for each example of the batch, or for each prompt if the model generates.
    strength : float, default=1.0
        Strength of the edit: 0 changes nothing.
    """

    shift: Float[Tensor, "example dim"]
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return ``x - strength shift``."""
        if self.strength == 0.0:
            return x
        shift = context.of_examples(self.shift.to(x))
        if shift.shape != (len(x), x.shape[-1]):
            raise ShapeError(
                f"Subtract.apply: expected {len(shift)} examples of dim={shift.shape[1]}, got "
                f"shape {tuple(x.shape)} at {site}. Give one vector for each example of the batch."
            )
        return x - self.strength * shift.reshape(len(x), *[1] * (x.ndim - 2), -1)


@final
@dataclass(frozen=True, kw_only=True)
class Eraser(Result):
    """Linear information about a concept at a site, and the edits that remove it.

    ``value`` is the mean squared change of the fitted rows at strength 1 over their total variance.
    ``correlation`` holds each removed function's correlation with the best linear function of the
    concept, largest first. ``gap`` is what the concept says about a row: for classes, the mean of
    each class minus the mean of all rows, in the order of ``labels``; for numbers, the slope of the
    rows on each number, around ``concept_mean``.
    """

    title: ClassVar[str] = "Concept erased"
    mean: Float[Tensor, "dim"]
    left: Float[Tensor, "dim rank"]
    right: Float[Tensor, "dim rank"]
    correlation: Float[Tensor, "_rank"]
    gap: Float[Tensor, "dim concept"]
    labels: Int[Tensor, "concept"] | None = None
    concept_mean: Float[Tensor, "concept"] | None = None

    @property
    def rank(self) -> int:
        """Number of removed dimensions."""
        return self.left.shape[1]

    def edit(self, strength: float = 1.0) -> Erase:
        """Return the edit for inputs whose concept is unknown."""
        return Erase(self.mean, self.left, self.right, strength)

    def oracle(self, concept: Tensor, strength: float = 1.0) -> Subtract:
        """Return the edit for a batch whose concept is known for each example.

        It takes away what the concept says about a row. No smaller change makes the rows
        uncorrelated with the concept.

        Parameters
        ----------
        concept : Int[Tensor, "example"] or Float[Tensor, "example concept"]
            Classes or numbers, coded as in the fit.
        strength : float, default=1.0

        Raises
        ------
        InputError
            If a class did not occur in the fit.
        """
        if self.labels is None:
            assert self.concept_mean is not None
            centred = concept.reshape(len(concept), -1).to(self.gap) - self.concept_mean
            return Subtract(centred @ self.gap.T, strength)
        is_class = concept.to(self.labels)[:, None] == self.labels
        if not bool(is_class.any(1).all()):
            seen = ", ".join(map(str, self.labels.tolist()[:8]))
            raise InputError(
                f"Eraser.oracle: expected classes among {seen}, got "
                f"{int(concept[~is_class.any(1)][0])}. Fit on rows of every class."
            )
        return Subtract(is_class.to(self.gap) @ self.gap.T, strength)


@dataclass(frozen=True)
class Joint:
    """Joint moments of rows and a concept, divided by the number of rows.

    ``cross`` is the covariance of rows with the concept, scaled: numbers have variance one, class
    indicators mean square one. ``rounding`` is the relative error of products in ``covariance``.
    """

    n: int
    mean: Float[Tensor, "dim"]
    covariance: Float[Tensor, "dim dim"]
    cross: Float[Tensor, "dim concept"]
    gap: Float[Tensor, "dim concept"]
    flags: tuple[str, ...]
    rounding: float = FLOAT64
    labels: Int[Tensor, "concept"] | None = None
    concept_mean: Float[Tensor, "concept"] | None = None

    @classmethod
    def of_classes(cls, owner: str, classes: ClassMomentsState, rounding: float) -> "Joint":
        """Return the joint moments of rows and class indicators (1 for rows of the class, else 0).

        Raises
        ------
        InputError
            If there are fewer than two classes.
        """
        if len(classes.labels) < 2:
            raise InputError(
                f"{owner}: expected rows of at least two classes, got {len(classes.labels)}: a "
                "concept that never varies cannot be erased. Pass labels, or check their column."
            )
        n, mean = classes.n_labelled, classes.grand_mean.detach()
        share = classes.weight.detach() / n
        gap = (classes.mean.detach() - mean).T
        covariance = classes.pooled.detach() / n + (gap * share) @ gap.T
        flags = ["unlabelled"] if classes.unlabelled is not None else []
        flags += ["few_rows"] if n <= len(mean) else []
        cross = gap * share.sqrt()
        return cls(n, mean, covariance, cross, gap, tuple(flags), rounding, classes.labels)

    def least(self) -> int:
        """Return the largest possible rank of the cross-covariance."""
        return self.cross.shape[1] - (self.labels is not None)

    def root(self, shrinkage: Shrinkage = 0.0) -> Float[Tensor, "dim dim"]:
        """Return a root of the inverse covariance, whose correlations are shrunk towards 0.

        Directions without variance are left out. If products are rounded more coarsely than
        float64, variances below the rounding error are raised to it instead.
        """
        scale = self.covariance.diagonal().clamp(min=0.0).sqrt()
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        matrix, _ = shrunk(self.covariance / scale[:, None] / scale, self.n, shrinkage)
        values, vectors = torch.linalg.eigh(matrix)
        if self.rounding > FLOAT64:
            inverse = values.clamp(min=self.rounding * len(scale) ** 0.5).rsqrt()
        else:
            alive = values > self.rounding * len(scale) * values[-1]
            inverse = torch.where(alive, values, torch.inf).rsqrt()
        return vectors * inverse / scale[:, None]

    def directions(
        self, root: Float[Tensor, "dim dim"] | None = None, most: int | None = None
    ) -> tuple[Float[Tensor, "dim rank"], Float[Tensor, "rank"], Float[Tensor, "concept rank"]]:
        """Return singular vectors and values of the cross-covariance, whitened if a root is given.

        Values above the rounding error of the means are kept, at most ``most``: the value of a rare
        class is small.
        """
        cross = self.cross if root is None else root.T @ self.cross
        u, s, vh = torch.linalg.svd(cross, full_matrices=False)
        spread = self.covariance.diagonal().clamp(min=0.0).sqrt()
        alive = spread > 0
        offset = float((self.mean.abs() / spread)[alive].amax()) if bool(alive.any()) else 0.0
        unit = 1.0 if root is not None else float(spread.max())
        rounding = FLOAT64 * max(cross.shape) * (1.0 + offset) * unit
        rank = min(int((s > rounding).sum()), self.least(), most if most is not None else len(s))
        return u[:, :rank], s[:rank], vh[:rank].T

    def eraser(
        self,
        left: Float[Tensor, "dim rank"],
        right: Float[Tensor, "dim rank"],
        **said: Any,
    ) -> Eraser:
        """Return an eraser that moves rows along ``left``, by the linear functions ``right``.

        Raises
        ------
        StateError
            If the moments are not finite.
        """
        if not bool(torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise StateError(
                "Eraser: expected finite moments. Look for broken rows with sonde scan."
            )
        total = self.covariance.diagonal().sum()
        change = left @ (right.T @ self.covariance @ right) @ left.T
        value = float(change.diagonal().sum() / total)
        figures = {"value": value, **said}
        flags = (*self.flags, *(() if float(total) > 0 else ("dead",)))
        return Eraser(
            n=self.n,
            range=(0.0, float("inf")),
            direction="higher",
            flags=tuple(dict.fromkeys([*flags, *figures.pop("flags", ())])),
            conventions={
                "value": "mean squared change over total variance",
                "rank": left.shape[1],
                "divisor": "n",
                "se": "an edit has no standard error: evaluate the edit's effect",
                **figures.pop("conventions", {}),
            },
            mean=self.mean,
            left=left,
            right=right,
            correlation=figures.pop("correlation", self.correlation(right)),
            gap=self.gap,
            labels=self.labels,
            concept_mean=self.concept_mean,
            **figures,
        )

    def correlation(self, right: Float[Tensor, "dim rank"]) -> Float[Tensor, "rank"]:
        """Return the correlation of each removed function of the row with the concept."""
        spread = ((self.covariance @ right) * right).sum(0).clamp(min=0.0).sqrt()
        return (right.T @ self.cross).norm(dim=1) / torch.where(spread > 0, spread, torch.inf)
