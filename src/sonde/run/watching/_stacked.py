"""Mahalanobis scores of several sites by one product: small calls cost more than what they do."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.autocast import without_autocast
from sonde.core.result import Scorer
from sonde.detect.mahalanobis import MahalanobisScorer
from sonde.stats import CalibratedScorer


@dataclass(frozen=True)
class Stacked:
    """Distances to one mean at each of several sites of one width.

    Parameters
    ----------
    keys : tuple of str
        The rows of each site, by their name in a batch.
    root, origin, point : Tensor
        The map into the metric, what is taken off before it, and the mean after it.
    """

    keys: tuple[str, ...]
    root: Float[Tensor, "site dim rank"]
    origin: Float[Tensor, "site 1 dim"]
    point: Float[Tensor, "site 1 rank"]

    @classmethod
    def of(cls, scorers: Sequence[tuple[str, Scorer]]) -> "Stacked | None":
        """Return those of some (site, scorer) that go together; None for fewer than two."""
        fitting: list[tuple[str, MahalanobisScorer]] = []
        for key, scorer in scorers:
            inner = scorer.scorer if isinstance(scorer, CalibratedScorer) else scorer
            if isinstance(inner, MahalanobisScorer) and _fits(inner, fitting):
                fitting.append((key, inner))
        if len(fitting) < 2:
            return None
        spaces = [scorer.space for _, scorer in fitting]
        return cls(
            tuple(key for key, _ in fitting),
            torch.stack([space.metric.root for space in spaces]),
            torch.stack([space.origin[None] for space in spaces]),
            torch.stack([space.points for space in spaces]),
        )

    def scores(self, rows: dict[str, Tensor]) -> dict[str, Float[Tensor, "row"]]:
        """Return the scores at each site; none where sites differ in their rows."""
        x = [rows[key].to(self.root.device) for key in self.keys]
        if any(one.shape != x[0].shape or one.shape[1] != self.root.shape[1] for one in x):
            return {}
        wide = torch.stack(x).to(self.root)
        with without_autocast(wide.device):
            found = torch.baddbmm(-self.point, wide - self.origin, self.root).square().sum(2)
        return dict(zip(self.keys, found.unbind(), strict=True))


def _fits(scorer: MahalanobisScorer, others: Sequence[tuple[str, MahalanobisScorer]]) -> bool:
    space = scorer.space
    if len(space.points) != 1 or space.metric.root.ndim != 2:
        return False
    return not others or space.metric.root.shape == others[0][1].space.metric.root.shape
