"""Do copies with noise in feature space stand in for defects, better than noise in the image."""

from collections.abc import Sequence
from statistics import fmean
from typing import final

import torch
from torch import Tensor, nn

from sonde.core import Scorer
from sonde.detect import PatchCore, SimpleNet
from sonde_studies._defects import DATA, PATCHES, SITE, Objects, objects
from sonde_studies._patches import image_area, patches_of, pixel_area
from sonde_studies.study import Claim, Figures, Study, Tick

SWEEP = (0.03, 0.1, 0.3, 1.0, 3.0)
IMAGE_NOISE, MIDDLE, COPIES = (0.05, 0.15, 0.5), 0.15, 4
USUAL_SHAPE = 0.3
NET = {"passes": 10, "hidden": 64, "rate": 3e-3}
ROWS = 256
SLOPE = 0.2
Parts = dict[str, Tensor]


@final
class SimpleNetStudy(Study):
    """Where the noise is added, how much of it, and the adapter.

    Noise in the image wins here at its two lower levels, and the adapter changes little, trained or
    not (``adapter not trained``). The shape of the noise says more than its place: added in feature
    space, but along directions in which image noise moves another patch (``moved as by image
    noise``), it does as well (.77 both, mean of images and pixels; digits, three seeds). Equal
    noise in all units teaches less about pasted squares (.68), noise along what usual patches
    differ in least (.62).
    """

    name = "simple-net"
    title = "do noisy copies in feature space teach a net to find pasted defects?"
    paper = "liu2023simplenet"
    fidelity = (
        "official loss and score; one layer, smaller nets, fixed passes; noise before the adapter, "
        "in units' standard deviations, so sigma differs from the published one; the original kept "
        "the best of 40 epochs on test images"
    )
    data = DATA
    claims = (
        Claim(
            "feature over image noise",
            "Noise in feature space (default sigma) beats noise in the image, the best of "
            f"{len(IMAGE_NOISE)} levels on test images.",
            "difference of AUROC, mean of images and pixels",
        ),
        Claim(
            "interior maximum",
            f"Over sigma in {', '.join(f'{s:g}' for s in SWEEP)} the best inner value beats the "
            "better end, both chosen on the other half of the test images.",
            "difference of AUROC, mean of images and pixels",
        ),
        Claim(
            "adapter",
            "With the adapter it is better than without, at the default sigma.",
            "difference of AUROC, mean of images and pixels",
        ),
    )
    null = Claim(
        "null", "Fresh usual images against fresh usual images, default sigma.", "AUROC", above=0.5
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the backbone and every arm."""
        tick("training the net")
        d = objects(seed, tiny)
        net = {**NET, "passes": 2 if tiny else NET["passes"], "seed": seed}
        rows = {
            part: patches_of(d.model, getattr(d, part), SITE)[0]
            for part in ("fit", "usual", "clean", "defective")
        }
        arms: dict[str, Parts] = {}
        for sigma in SWEEP:
            tick(f"sigma {sigma}")
            arms[f"sigma {sigma:g}"] = _scored(SimpleNet(sigma=sigma, **net).fit(rows["fit"]), rows)
        tick("adapter")
        for name, options in (
            ("no adapter", {"adapter": False}),
            ("adapter not trained", {"adapter_rate": 1e-12}),
        ):
            arms[name] = _scored(SimpleNet(**options, **net).fit(rows["fit"]), rows)
        for level in IMAGE_NOISE:
            tick(f"image noise {level}")
            fakes = _noisy(d, level, seed)
            arms[f"image noise {level:g}"] = _scored(
                _against(rows["fit"], fakes, SimpleNet(**net)), rows
            )
            if level == MIDDLE:
                tick("shapes of noise")
                arms |= {
                    name: _scored(_against(rows["fit"], shaped, SimpleNet(**net)), rows)
                    for name, shaped in _shaped(rows["fit"], fakes, seed).items()
                }
        arms["PatchCore"] = _scored(PatchCore(window=1).fit(rows["fit"]), rows)
        whole = {name: _areas(parts, d.mask) for name, parts in arms.items()}
        default = whole["sigma 0.3"]
        return {
            "feature over image noise": fmean(default)
            - max(fmean(whole[f"image noise {level:g}"]) for level in IMAGE_NOISE),
            "interior maximum": _interior(arms, d.mask),
            "adapter": fmean(default) - fmean(whole["no adapter"]),
            "null": image_area(arms["sigma 0.3"]["usual"], arms["sigma 0.3"]["clean"]),
            **{f"{name} | images": both[0] for name, both in whole.items()},
            **{f"{name} | pixels": both[1] for name, both in whole.items()},
        }


def _scored(scorer: "Scorer | _Net", rows: Parts) -> Parts:
    return {part: scorer.score(x).reshape(-1, PATCHES) for part, x in rows.items() if part != "fit"}


def _areas(parts: Parts, mask: Tensor) -> tuple[float, float]:
    usual, defective = parts["usual"], parts["defective"]
    return image_area(usual, defective), pixel_area(defective, mask)


def _interior(arms: dict[str, Parts], mask: Tensor) -> float:
    """Return best inner minus best outer sigma, chosen on one half and read from the other."""
    halves = [
        {
            sigma: fmean(
                _areas({k: v[i::2] for k, v in arms[f"sigma {sigma:g}"].items()}, mask[i::2])
            )
            for sigma in SWEEP
        }
        for i in (0, 1)
    ]
    found: list[float] = []
    for chosen_on, read_from in (halves, halves[::-1]):
        inner = max(SWEEP[1:-1], key=lambda s, on=chosen_on: on[s])
        outer = max((SWEEP[0], SWEEP[-1]), key=lambda s, on=chosen_on: on[s])
        found.append(read_from[inner] - read_from[outer])
    return fmean(found)


def _noisy(d: Objects, level: float, seed: int) -> list[Tensor]:
    """Return patches of copies of the fitted images with noise on their pixels."""
    source = torch.Generator().manual_seed(1000 + seed)
    noise = [torch.randn(d.fit.shape, generator=source) for _ in range(COPIES)]
    return [patches_of(d.model, d.fit + level * e, SITE)[0] for e in noise]


def _shaped(x: Tensor, noisy: Sequence[Tensor], seed: int) -> dict[str, list[Tensor]]:
    """Return copies with noise in feature space that is not equal in all directions.

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


def _against(x: Tensor, fakes: Sequence[Tensor], detector: SimpleNet) -> "_Net":
    """Train a net as ``SimpleNet`` does, against given rows in place of noisy ones."""
    source = torch.Generator().manual_seed(detector.seed)
    net = _Net(x, detector, source)
    true, *false = map(net.scaled, (x, *fakes))
    judge = [*net.first.parameters(), *net.norm.parameters(), *net.last.parameters()]
    adapter = torch.optim.AdamW(net.adapter.parameters(), detector.adapter_rate, weight_decay=1e-2)
    steps = adapter, torch.optim.Adam(judge, detector.rate)
    for walk in range(detector.passes):
        for rows in torch.randperm(len(x), generator=source).tensor_split(max(1, len(x) // ROWS)):
            for step in steps:
                step.zero_grad()
            net.loss(true[rows], false[walk % len(false)][rows], detector.margin).backward()
            for step in steps:
                step.step()
    return net.eval()


class _Net(nn.Module):
    """Adapter and judge of ``SimpleNet`` in plain torch: any rows can stand for the copies."""

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
        """Return rows with the mean 0 and the spread 1 of the usual ones in each unit."""
        return (x - self.mean) / torch.where(self.spread > 0, self.spread, self.spread.mean())

    @torch.enable_grad()
    def loss(self, true: Tensor, false: Tensor, margin: float) -> Tensor:
        """Return the hinge loss; centre and spread of the hidden units are those of usual rows."""
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
        """Return how surely each row is none of the usual ones."""
        return -self._said(self.norm(self.first(self.adapter(self.scaled(x)))))
