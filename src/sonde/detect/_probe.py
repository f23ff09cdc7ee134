"""What linear probes share: two groups of rows, and the signed projection on one direction."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.errors import InputError
from sonde.core.instrument import Where
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.detect._metric import CHUNK, check_width
from sonde.stats import ClassMomentsState


@final
@dataclass(frozen=True)
class Labelled(Where):
    """Rows that have a label."""

    def mask(self, batch: Batch, key: str) -> Bool[Tensor, "row"]:
        """Keep rows with a label of at least 0."""
        return batch.column("label", key) >= 0


@final
@dataclass(frozen=True, kw_only=True)
class ProbeScorer(Scorer):
    """Signed projection ``(x - origin) . axis``; 0 is the decision border.

    ``value`` is the distance of the two groups' means along the axis, in standard deviations within
    a group.
    """

    axis: Float[Tensor, "dim"]
    origin: Float[Tensor, "dim"]
    positive: int

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the signed projection of each row, higher on the side of the positive class."""
        check_width("ProbeScorer", x, len(self.axis))
        return infinite_where_nonfinite(projected(x, self.origin, self.axis), x)


def projected(
    x: Float[Tensor, "row dim"], origin: Float[Tensor, "dim"], axis: Float[Tensor, "dim"]
) -> Float[Tensor, "row"]:
    """Return ``(x - origin) . axis`` in a float type of at least 32 bits."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    origin, axis = origin.to(x), axis.to(x)
    out = x.new_empty(len(x))
    for start in range(0, len(x), CHUNK):
        out[start : start + CHUNK] = ((x[start : start + CHUNK] - origin) * axis).sum(1)
    return out


@final
@dataclass(frozen=True)
class TwoGroups:
    """Moments of the positive class (``n[1]``, ``mean[1]``) and of all other labelled rows."""

    n: tuple[float, float]
    mean: Float[Tensor, "2 dim"]
    within: Float[Tensor, "dim dim"]
    flags: tuple[str, ...]

    @classmethod
    def of(cls, owner: str, classes: ClassMomentsState, positive: int) -> "TwoGroups":
        """Return the groups of class moments with a pooled scatter.

        Raises
        ------
        InputError
            If one of the groups has no row.
        """
        chosen = classes.labels == positive
        weight = classes.weight.detach()
        n = float(weight[~chosen].sum()), float(weight[chosen].sum())
        if min(n) == 0:
            raise InputError(
                f"{owner}: expected rows of class {positive} and of another class, got {n[1]:.0f} "
                f"and {n[0]:.0f}. Give labelled rows of both, or pass positive=."
            )
        mean = classes.mean.detach()
        shares = torch.stack([weight * ~chosen / n[0], weight * chosen / n[1]])
        means = shares @ mean
        gap = (mean - means[chosen.long()]) * weight.sqrt()[:, None]
        within = classes.pooled.detach() + gap.T @ gap
        flags = ["unlabelled"] if classes.unlabelled is not None else []
        flags += ["few_rows"] if sum(n) <= mean.shape[1] else []
        return cls(n, means, within, tuple(flags))

    @property
    def n_rows(self) -> int:
        """Labelled rows."""
        return round(sum(self.n))

    @property
    def gap(self) -> Float[Tensor, "dim"]:
        """Mean of the positive class minus mean of the others."""
        return self.mean[1] - self.mean[0]

    @property
    def total(self) -> Float[Tensor, "dim dim"]:
        """Scatter of all labelled rows around their mean."""
        weight = self.n[0] * self.n[1] / sum(self.n)
        return self.within + weight * torch.outer(self.gap, self.gap)

    def scorer(
        self, axis: Float[Tensor, "dim"], origin: Float[Tensor, "dim"], positive: int, **said: Any
    ) -> ProbeScorer:
        """Return the projection on an axis."""
        spread = (axis @ self.within @ axis / sum(self.n)).clamp(min=0.0).sqrt()
        value = float(axis @ self.gap / spread)
        dead = not bool(torch.isfinite(torch.tensor(value)))
        return ProbeScorer(
            value=value,
            n=self.n_rows,
            unit="standard deviations within a group",
            flags=(*self.flags, *(["dead"] if dead else [])),
            conventions={
                "value": "distance of the two means along the axis",
                "positive": positive,
                "divisor": "n",
                "se": "not given for a scorer: calibrate its scores",
                **said,
            },
            axis=axis,
            origin=origin,
            positive=positive,
        )
