"""Test whether a net trained with a shortcut classifies without the object."""

from typing import final

import torch
from torch import Tensor

from sonde.explain import Baseline, MaskSensitivity
from sonde_studies._blocks import block_cnn, block_digits, trained
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, NEW, STEPS = 1200, 400, 60
KINDS = ("with a shortcut", "without")


@final
class MaskSensitivityStudy(Study):
    """Digits beside a constant pattern with an informative or an uninformative pixel.

    The region is the digit's block, so its box has no shape that could tell. Two baselines: what
    stands in place of the digit may itself say something.
    """

    name = "mask-sensitivity"
    title = "is the answer still right without the object?"
    paper = "sourget2025maskoftruth"
    fidelity = "reconstructed from the idea; chest and eye pictures are digits with a planted pixel"
    data = "BlockDigits, classes below and above 5; one bright pixel beside the digit"
    claims = (
        Claim(
            "told without the object",
            "As planted, classes are told without the digit's box with an AUROC above .95.",
            "AUROC",
            above=0.95,
        ),
        Claim(
            "shortcut over none",
            "Without the box a net beside a shortcut does better than one without.",
            "difference of AUROC",
            arms=("training with a shortcut", "training without"),
        ),
        Claim(
            "seen by the full picture too",
            "On whole pictures both nets do alike: accuracy shows no difference above .05.",
            "less the difference of AUROC",
            above=-0.05,
            arms=("training with a shortcut", "training without"),
        ),
    )
    null = Claim("null", "Without the box, a net without a shortcut.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both nets and mask the digit."""
        every = block_digits(seed)
        label = (every.label >= 5).long()
        new = slice(FIT, FIT + (60 if tiny else NEW))
        figures: dict[str, float] = {}
        for kind in KINDS:
            tick(f"training {kind}")
            x = _marked(every.x, every.signal, label, seed, says=kind == KINDS[0])
            net = trained(block_cnn(), x[:FIT], label[:FIT], seed, 6 if tiny else STEPS)
            for baseline in (Baseline("mean"), Baseline("zero")):
                test = MaskSensitivity(baseline, seed)
                found = test.judge(net, x[new], every.signal[new], labels=label[new])
                for condition, value in zip(found.conditions, found.auroc.tolist(), strict=True):
                    figures[f"{condition} | {kind}, {baseline}"] = value
        gone, whole = "box removed", "full"
        own, other = (f"{kind}, mean" for kind in KINDS)
        return {
            "told without the object": figures[f"{gone} | {own}"],
            "shortcut over none": figures[f"{gone} | {own}"] - figures[f"{gone} | {other}"],
            "seen by the full picture too": -abs(
                figures[f"{whole} | {own}"] - figures[f"{whole} | {other}"]
            ),
            "null": figures[f"{gone} | {other}"],
            **figures,
        }


def _marked(x: Tensor, signal: Tensor, label: Tensor, seed: int, *, says: bool) -> Tensor:
    """Return images with a dark or bright pixel in the other block, by class or at random."""
    draw = torch.Generator().manual_seed(seed)
    level = label if says else torch.randint(0, 2, label.shape, generator=draw)
    corner = torch.where(signal[:, 0, 0], 8, 0) + 2  # the third line of the other block
    marked = x.clone()
    marked[torch.arange(len(x)), 0, corner, 5] = level.float()
    return marked
