"""Parts shared by linear probes: two groups of rows, and a signed projection on a direction."""

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.instrument import Where
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.detect._metric import CHUNK, check_fitted_width
from sonde.stats import TwoGroups


@final
@dataclass(frozen=True)
class Labelled(Where):
    """Selects rows with a label."""

    def mask(self, batch: Batch, key: str) -> Bool[Tensor, "row"]:
        """Keep rows with a label of at least 0."""
        return batch.column("label", key) >= 0


@final
@dataclass(frozen=True, kw_only=True)
class ProbeScorer(Scorer):
    """Signed projection ``(x - origin) . axis``; the decision boundary is 0.

    ``value`` is the distance of the two groups' means along the axis, in standard deviations within
    a group.
    """

    axis: Float[Tensor, "dim"]
    origin: Float[Tensor, "dim"]
    positive: int

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the signed projection of each row, higher on the side of the positive class."""
        check_fitted_width("ProbeScorer", x, len(self.axis))
        return infinite_where_nonfinite(projected(x, self.origin, self.axis), x)


def projected(
    x: Float[Tensor, "row dim"], origin: Float[Tensor, "dim"], axis: Float[Tensor, "dim"]
) -> Float[Tensor, "row"]:
    """Return ``(x - origin) . axis`` in at least float32."""
    x = x if x.dtype in (torch.float32, torch.float64) else x.float()
    origin, axis = origin.to(x), axis.to(x)
    out = x.new_empty(len(x))
    for start in range(0, len(x), CHUNK):
        out[start : start + CHUNK] = ((x[start : start + CHUNK] - origin) * axis).sum(1)
    return out


def probe_scorer(
    groups: TwoGroups,
    axis: Float[Tensor, "dim"],
    origin: Float[Tensor, "dim"],
    positive: int,
    **said: Any,
) -> ProbeScorer:
    """Return the scorer that projects rows on an axis between two groups."""
    spread = (axis @ groups.within @ axis / sum(groups.n)).clamp(min=0.0).sqrt()
    value = float(axis @ groups.gap / spread)
    dead = not bool(torch.isfinite(torch.tensor(value)))
    return ProbeScorer(
        value=value,
        n=groups.n_rows,
        unit="standard deviations within a group",
        flags=(*groups.flags, *(["dead"] if dead else [])),
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
