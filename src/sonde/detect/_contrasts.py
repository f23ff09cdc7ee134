"""Answers that were read after several prompts: a sample, and the directions that they span."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.state import State
from sonde.core.statistic import Statistic
from sonde.detect._pair_sample import joined, smallest_pairs


@dataclass(frozen=True)
class ContrastSampleState(State):
    """Rows of the kept answers, sorted by the hash of ``pair``, then by side; ``n`` were seen."""

    n: int
    rows: Float[Tensor, "entry dim"]
    pair: Int[Tensor, "entry"]
    side: Int[Tensor, "entry"]
    draw: Int[Tensor, "entry"]

    def differences(self, first: int, second: int) -> Float[Tensor, "answer dim"]:
        """Return rows of side ``first`` minus rows of side ``second``, if an answer has both."""
        a, b = (torch.nonzero(self.side == side).flatten() for side in (first, second))
        a = a[torch.isin(self.pair[a], self.pair[b])]
        b = b[torch.isin(self.pair[b], self.pair[a])]
        # entries of both sides are sorted by the same hash
        rows = self.rows.double()
        return rows[a.to(rows.device)] - rows[b.to(rows.device)]


@final
@dataclass(frozen=True)
class ContrastSample(Statistic[ContrastSampleState]):
    """All sides of the ``m`` answers of smallest hash, exact under any split and any order.

    The rows of an answer share one value of ``pair`` and may arrive in different batches or shards.
    Rows of a negative side are left out. If a side has several rows, the row of smallest draw is
    kept.

    Parameters
    ----------
    m : int
        Most answers that are kept.
    sides : int
        Sides are below this number.
    """

    m: int
    sides: int

    def observe(
        self,
        x: Float[Tensor, "row dim"],
        pair: Int[Tensor, "row"],
        side: Int[Tensor, "row"],
        draw: Int[Tensor, "row"],
    ) -> ContrastSampleState:
        """Return the sample of these rows."""
        pair, side, draw = pair.cpu(), side.cpu(), draw.cpu()
        if int(side.max()) >= self.sides:
            raise InputError(
                f"ContrastSample: expected sides below {self.sides}, two for each feature, got "
                f"{int(side.max())}. Number the prompts of feature f as 2 f and 2 f + 1."
            )
        keep = torch.nonzero(side >= 0).flatten()
        return self._smallest(len(keep), x[keep.to(x.device)], pair[keep], side[keep], draw[keep])

    def merge(self, a: ContrastSampleState, b: ContrastSampleState) -> ContrastSampleState:
        """Return the smallest answers of both samples."""
        return self._smallest(a.n + b.n, *joined(a, b))

    def size_bytes(self, *dims: int) -> int:
        """Return the bytes of ``m`` answers with float32 rows of every side."""
        return self.sides * self.m * (4 * dims[0] + 24)

    def _smallest(
        self, n: int, rows: Tensor, pair: Tensor, side: Tensor, draw: Tensor
    ) -> ContrastSampleState:
        keep = smallest_pairs(self.m, pair, side, draw)
        kept = rows[keep.to(rows.device)].clone()
        return ContrastSampleState(n, kept, pair[keep], side[keep], draw[keep])


@dataclass(frozen=True)
class Directions:
    """A direction for each feature, and the cosine of its principal axis with its mean gap."""

    direction: list[Float[Tensor, "dim"]]
    cosine: Float[Tensor, "feature"]
    pairs: Int[Tensor, "feature"]


def directions_of(contrasts: ContrastSampleState, features: int, which: str) -> Directions:
    """Return a direction of unit length for each feature at one site; zeros without variation."""
    chosen, cosines, counts = [], [], []
    for f in range(features):
        gap = contrasts.differences(2 * f, 2 * f + 1)
        if len(gap) < 2:
            raise InputError(
                f"FeatureGaps: expected at least 2 answers with sides {2 * f} and {2 * f + 1}, the "
                f"two prompts of feature {f}, got {len(gap)}. Give both rows one value of 'pair', "
                "or say how many features there are (features=)."
            )
        mean = gap.mean(0)
        principal = _principal(gap - mean, 1e-9 * float(gap.norm()))
        length = mean.norm()
        middle = mean / length if float(length) > 0 else mean
        cosines.append((principal @ middle).abs())
        chosen.append(principal if which == "pc" else middle)
        counts.append(len(gap))
    return Directions(chosen, torch.stack(cosines), torch.tensor(counts))


def _principal(centred: Float[Tensor, "row dim"], floor: float) -> Float[Tensor, "dim"]:
    """Return the first principal axis of centred rows; zeros where they vary less than a floor."""
    n, dim = centred.shape
    gram = centred @ centred.T if n < dim else centred.T @ centred
    values, vectors = torch.linalg.eigh(gram)
    axis = centred.T @ vectors[:, -1] if n < dim else vectors[:, -1]
    varies = float(values[-1].clamp(min=0).sqrt()) > floor
    return axis / axis.norm() if varies else torch.zeros_like(axis)
