"""Train a mask so that the hidden part of the input no longer predicts the class."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy, interpolate

from sonde.core.errors import InputError
from sonde.core.result import Result
from sonde.engine.steps import Descent, seeded
from sonde.explain._held_groups import RowGroups

Pictures = Float[Tensor, "row channel height width"]
Labels = Int[Tensor, "row"]
Nets = tuple[nn.Module, nn.Module, nn.Module]
"""The selector, the net that reads what was kept, and the one that reads what was left out."""
Held = tuple[Float[Tensor, "row2 channel height width"], Int[Tensor, "row2"]]


@final
@dataclass(frozen=True, kw_only=True)
class CometResult(Result):
    """Trained networks. ``value`` is the accuracy on the kept part of held-out images.

    ``complement`` is the accuracy of the net that reads what was left out, ``area`` the mean share
    of the picture that was kept.
    """

    title: ClassVar[str] = "Accuracy on the kept part and on the hidden part of the inputs"
    selector: nn.Module = field(repr=False)
    predictor: nn.Module = field(repr=False)
    detector: nn.Module = field(repr=False)
    complement: float
    area: float

    def mask(self, x: Pictures) -> Float[Tensor, "row height width"]:
        """Return the kept fraction of each pixel, in [0, 1]."""
        with torch.no_grad():
            return self.selector.eval()(x)[:, 0]

    def __call__(self, x: Pictures) -> Float[Tensor, "row class"]:
        """Return the logits of images, from the kept pixels."""
        with torch.no_grad():
            return self.predictor.eval()(self.mask(x)[:, None] * x)


@final
@dataclass(frozen=True)
class Comet:
    """A selector, a classifier of the selected part, and a classifier of the hidden part.

    The selector lowers ``CE(kept) + weight max(0, CE(kept) - CE(left) + gap) + area_weight
    max(0, mean(mask) - area)`` of each picture: it is punished while the rest still tells the
    class, so that selections are complete. Each net steps on its own loss alone.

    The three weights must balance. Keeping everything costs ``area_weight * (1 - area)`` and saves
    up to ``weight * gap``: if the cost is lower, everything is kept. If it is far higher, the
    gradients of the area dominate the step of the selector, which Adam scales by its largest
    gradients, and the mask stays even. So the rate of the selector is lower than the rate of the
    other nets.

    Range        accuracy, [0, 1]; beside it that of what was left out, which should be at chance.
    Cost         ``steps`` of three nets, and a quarter as many of a classifier before.
    Assumes      pictures whose telling part is smaller than ``area``. Where a pixel is 0, its mask
                 changes nothing and says nothing: take ``patch`` above 1 for dark pictures.
    Differs      from the paper: one step of each net for each batch, no schedule; smaller weights
                 of area and a lower rate of the selector.

    Parameters
    ----------
    area : float, default=0.2
        Share of the picture that may be kept without cost.
    gap : float, default=2.0
        Nats by which the loss on what is left out should exceed the loss on what is kept.
    weight : float, default=4.0
        Weight of the completeness loss; 0 leaves the third net out of the selector's loss.
    area_weight : float, default=20.0
        Weight of the selected area beyond ``area``.
    rate : float, default=3e-3
        Learning rate of the two nets that answer.
    selector_rate : float, default=1e-3
        Learning rate of the selector.
    steps : int, default=600
        Number of training steps.
    batch : int, default=128
        Number of pictures in a step.
    patch : int, default=1
        Side of the squares that are kept as one.
    seed : int, default=0
        Seed of the initial weights and of the order of batches.

    References
    ----------
    zhang2024comet
    """

    area: float = 0.2
    gap: float = 2.0
    weight: float = 4.0
    area_weight: float = 20.0
    rate: float = 3e-3
    selector_rate: float = 1e-3
    steps: int = 600
    batch: int = 128
    patch: int = 1
    seed: int = 0
    paper: ClassVar[str] = "zhang2024comet"

    def __post_init__(self) -> None:
        is_right = 0.0 < self.area <= 1.0 and min(self.gap, self.weight, self.area_weight) >= 0.0
        counts, rates = (self.steps, self.batch, self.patch), (self.rate, self.selector_rate)
        if not is_right or min(counts) < 1 or not min(rates) > 0.0:
            raise InputError(
                "Comet: expected an area in (0, 1], gap and weights of at least 0, steps, batch and"
                f" patch of at least 1 and rates above 0, got {self}."
            )
        if self.weight and self.area_weight * (1.0 - self.area) < self.weight * self.gap:
            raise InputError(
                f"Comet: expected area_weight * (1 - area) >= weight * gap = "
                f"{self.weight * self.gap:g}, got {self.area_weight * (1 - self.area):g}. "
                "Otherwise keeping everything costs less than removing uninformative parts. Raise "
                "area_weight."
            )

    def fit(
        self,
        classifier: Callable[[], nn.Module],
        x: Pictures,
        label: Labels,
        held: Held,
        group: Int[Tensor, "row2"] | None = None,
    ) -> CometResult:
        """Return the trained networks, evaluated on held-out images.

        Parameters
        ----------
        classifier : callable
            Makes a net with fresh weights: pictures -> logits.
        x : Float[Tensor, "row channel height width"]
        label : Int[Tensor, "row"]
        held : (pictures, labels)
        group : Int[Tensor, "row2"], optional
            Group of each picture held out, which the error counts; without, pictures that copy
            each other are one group.

        Raises
        ------
        InputError
            If a loss is not finite.
        """
        with seeded(self.seed) as draw:
            selector, predictor = _Selector(x.shape[1], self.patch), classifier()
            full = classifier()
            Descent("Comet.fit", full.parameters(), self.rate).run(
                lambda i: cross_entropy(full(x[i]), label[i]),
                (
                    torch.randint(len(x), (self.batch,), generator=draw)
                    for _ in range(self.steps // 4 + 1)
                ),
            )
            nets = selector, predictor, copy.deepcopy(full)
            self._train(nets, x, label, draw)
        return self._judged(nets, *held, RowGroups.of("Comet", group, held[0]))

    @torch.enable_grad()
    def _train(self, nets: Nets, x: Pictures, label: Labels, draw: torch.Generator) -> None:
        selector, predictor, detector = nets
        select, keep, leave = (
            Descent("Comet.fit", net.parameters(), rate)
            for net, rate in zip(nets, (self.selector_rate, self.rate, self.rate), strict=True)
        )
        for _ in range(self.steps):
            i = torch.randint(len(x), (self.batch,), generator=draw)
            part, y = x[i], label[i]
            mask = selector(part)
            fixed = mask.detach()
            keep.step(cross_entropy(predictor(fixed * part), y))
            leave.step(cross_entropy(detector((1.0 - fixed) * part), y))
            kept = cross_entropy(predictor(mask * part), y, reduction="none")
            left = cross_entropy(detector((1.0 - mask) * part), y, reduction="none")
            loss = kept + self.weight * (kept - left + self.gap).relu()
            loss = loss + self.area_weight * (mask.mean((1, 2, 3)) - self.area).relu()
            select.step(loss.mean())

    def _judged(self, nets: Nets, x: Pictures, label: Labels, groups: RowGroups) -> CometResult:
        selector, predictor, detector = nets
        with torch.no_grad():
            mask = selector.eval()(x)
            kept, left = predictor.eval()(mask * x), detector.eval()((1.0 - mask) * x)
        right, rest = ((z.argmax(1) == label).double() for z in (kept, left))
        judged = CometResult(
            value=float(right.mean()),
            se=groups.error(right),
            n=len(groups),
            range=(0.0, 1.0),
            direction="higher",
            conventions={
                "method": repr(self),
                "masking": "times the mask: zero where left out",
                "se": "over groups held out",
            },
            selector=selector,
            predictor=predictor,
            detector=detector,
            complement=float(rest.mean()),
            area=float(mask.mean()),
        )
        return groups.flagged(judged)


class _Selector(nn.Module):
    """Three convolutions that give a mask in [0, 1], constant within squares."""

    def __init__(self, channels: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.net = nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 16, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 1, 5, padding=2),
        )

    def forward(self, x: Tensor) -> Tensor:
        level = self.net(x)
        if self.patch > 1:
            level = avg_pool2d(level, self.patch, ceil_mode=True)
            level = interpolate(level, list(x.shape[2:]), mode="nearest")
        return level.sigmoid()
