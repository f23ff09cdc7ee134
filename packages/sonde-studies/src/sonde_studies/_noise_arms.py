"""Noise added to states of images, and a net that separates the two."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sonde.core import Scorer
from sonde.detect import SimpleNet
from sonde_studies._defects import PATCHES, SITE, Objects
from sonde_studies._patches import patches_of
from sonde_studies.arms import note, part

Parts = dict[str, Tensor]

COPIES, USUAL_SHAPE, ROWS, SLOPE = 4, 0.3, 256, 0.2


def scored(scorer: "Scorer | AdaptedJudge", rows: Parts) -> Parts:
    return {part: scorer.score(x).reshape(-1, PATCHES) for part, x in rows.items() if part != "fit"}


def fitted(detector: SimpleNet, x: Tensor) -> Scorer:
    """Return the scorer of a detector, and note what it was given.

    Parameters
    ----------
    detector : SimpleNet
    x : (patch, unit)
        Usual patches.
    """
    scorer = detector.fit(x)
    net = AdaptedJudge(x, detector, torch.Generator())
    weights = sum(p.numel() for p in net.parameters())
    adapter = 0 if detector.adapter else sum(p.numel() for p in net.adapter.parameters())
    steps = float(str(scorer.conventions["steps"]))
    note(rows=len(x), updates=steps, parameters=weights - adapter)
    return scorer


def noisy(d: Objects, level: float, seed: int) -> list[Tensor]:
    """Return patches of the training images with noise added to their pixels."""
    source = torch.Generator().manual_seed(1000 + seed)
    noise = [torch.randn(d.fit.shape, generator=source) for _ in range(COPIES)]
    return [patches_of(d.model, d.fit + level * e, SITE)[0] for e in noise]


def shaped(x: Tensor, noisy: Sequence[Tensor], seed: int) -> dict[str, list[Tensor]]:
    """Return copies with anisotropic noise in feature space.

    It moves as image noise moves another patch, or along the difference of two usual patches.
    """
    source = torch.Generator().manual_seed(2000 + seed)
    moved: list[Tensor] = []
    along: list[Tensor] = []
    for fake in noisy:
        one, other = (torch.randperm(len(x), generator=source) for _ in range(2))
        moved.append(x + fake[one] - x[one])
        along.append(x + USUAL_SHAPE * (x[one] - x[other]) / 2**0.5)
    return {"moved as by image noise": moved, "moved as usual ones differ": along}


def judge_against(x: Tensor, fakes: Sequence[Tensor], detector: SimpleNet) -> "AdaptedJudge":
    """Train a net as ``SimpleNet`` does, with given rows instead of noisy copies."""
    source = torch.Generator().manual_seed(detector.seed)
    net = AdaptedJudge(x, detector, source)
    true, *false = map(net.scaled, (x, *fakes))
    judge = [*net.first.parameters(), *net.norm.parameters(), *net.last.parameters()]
    weights = sum(p.numel() for p in net.parameters())
    n = max(1, len(x) // ROWS)
    note(rows=len(x), updates=detector.passes * n, parameters=weights)
    adapter = torch.optim.AdamW(net.adapter.parameters(), detector.adapter_rate, weight_decay=1e-2)
    steps = adapter, torch.optim.Adam(judge, detector.rate)
    with part("judges"):  # two optimisers, which are one update
        for walk in range(detector.passes):
            for rows in torch.randperm(len(x), generator=source).tensor_split(n):
                for step in steps:
                    step.zero_grad()
                net.loss(true[rows], false[walk % len(false)][rows], detector.margin).backward()
                for step in steps:
                    step.step()
    return net.eval()


class AdaptedJudge(nn.Module):
    """Adapter and discriminator of ``SimpleNet`` in plain torch, for any negative rows."""

    def __init__(self, x: Tensor, detector: SimpleNet, source: torch.Generator) -> None:
        super().__init__()
        self.spread, self.mean = torch.std_mean(x, dim=0)
        self.adapter = nn.Linear(x.shape[1], x.shape[1])
        self.first = nn.Linear(x.shape[1], detector.hidden)
        self.norm = nn.BatchNorm1d(detector.hidden)
        self.last = nn.Linear(detector.hidden, 1, bias=False)
        for layer in (self.adapter, self.first, self.last):
            nn.init.xavier_normal_(layer.weight, generator=source)
        for layer in (self.adapter, self.first):
            nn.init.zeros_(layer.bias)

    def scaled(self, x: Tensor) -> Tensor:
        """Standardise rows by the mean and standard deviation of normal rows in each unit."""
        return (x - self.mean) / torch.where(self.spread > 0, self.spread, self.spread.mean())

    @torch.enable_grad()
    def loss(self, true: Tensor, false: Tensor, margin: float) -> Tensor:
        """Return the hinge loss; hidden units are standardised by the normal rows."""
        usual, other = (self.first(self.adapter(rows)) for rows in (true, false))
        spread, centre = torch.var_mean(usual, dim=0, correction=0)
        normal = (other - centre) * (spread + self.norm.eps).rsqrt()
        given = self._said(normal * self.norm.weight + self.norm.bias)
        usual = self._said(self.norm(usual))
        return (margin - usual).clamp(min=0).mean() + (margin + given).clamp(min=0).mean()

    def _said(self, normal: Tensor) -> Tensor:
        return self.last(nn.functional.leaky_relu(normal, SLOPE))[:, 0]

    @torch.no_grad()
    def score(self, x: Tensor) -> Tensor:
        """Return the discriminator's score of each row; higher is more anomalous."""
        return -self._said(self.norm(self.first(self.adapter(self.scaled(x)))))
