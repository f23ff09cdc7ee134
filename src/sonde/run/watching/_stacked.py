"""Compute squared distances at several sites in few matrix products."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.autocast import without_autocast
from sonde.core.result import Scorer
from sonde.stats import CalibratedScorer

Distance = tuple[Float[Tensor, "dim"], Float[Tensor, "dim rank"]]
BLOCKS = 4
"""Into how many blocks of columns a triangle is cut: 5/8 of a square are read."""


@dataclass(frozen=True)
class Stacked:
    """Distances to a mean at several sites of equal width, computed together.

    Parameters
    ----------
    keys : tuple of str
        The rows of each site, by their name in a batch.
    mean : Tensor
    blocks : tuple of Tensor
        Columns of maps into the metric. Each block has a row for each trailing unit that it reads.
    """

    keys: tuple[str, ...]
    mean: Float[Tensor, "site 1 dim"]
    blocks: tuple[Float[Tensor, "site _rows _columns"], ...]

    @classmethod
    def of(cls, scorers: Sequence[tuple[str, Scorer]]) -> "Stacked | None":
        """Stack the scorers of equal shape, or return None for fewer than two."""
        fitting: list[tuple[str, Distance]] = []
        for key, scorer in scorers:
            inner = scorer.scorer if isinstance(scorer, CalibratedScorer) else scorer
            distance = inner.squared_distance
            if distance is None:
                continue
            shape = fitting[0][1][1].shape if fitting else distance[1].shape
            if distance[1].shape == shape:
                fitting.append((key, distance))
        if len(fitting) < 2:
            return None
        return cls(
            tuple(key for key, _ in fitting),
            torch.stack([mean[None] for _, (mean, _) in fitting]),
            triangle(torch.stack([root for _, (_, root) in fitting])),
        )

    def scores(self, rows: dict[str, Tensor]) -> dict[str, Float[Tensor, "row"]]:
        """Return the scores at each site; empty if the sites' rows differ in shape."""
        x = [rows[key].to(self.mean.device) for key in self.keys]
        if any(one.shape != x[0].shape or one.shape[1] != self.mean.shape[2] for one in x):
            return {}
        wide = torch.stack(x).to(self.mean)
        with without_autocast(wide.device):
            gap = wide - self.mean
            parts = [
                torch.bmm(gap[:, :, gap.shape[2] - block.shape[1] :], block).square().sum(2)
                for block in self.blocks
            ]
            sums = torch.stack(parts).sum(0)
        return dict(zip(self.keys, sums.unbind(), strict=True))


def triangle(
    root: Float[Tensor, "site dim rank"],
) -> tuple[Float[Tensor, "site _row _column"], ...]:
    """Return blocks of columns of a lower triangle ``L`` with ``L L^T = root root^T``.

    Entries above the triangle are not read: reading is the cost of a product with one row. On an
    accelerator ``root`` is returned as it is, for one large product.
    """
    if root.device.type != "cpu":
        return (root,)
    lower = torch.linalg.qr(root.double().mT, mode="r").R.mT.to(root)
    edges = [round(i * root.shape[2] / BLOCKS) for i in range(BLOCKS + 1)]
    pairs = [(a, b) for a, b in itertools.pairwise(edges) if a < b] or [(0, 0)]
    return tuple(lower[:, a:, a:b].contiguous() for a, b in pairs)
