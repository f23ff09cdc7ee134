"""Test whether a net trained with a shortcut classifies without the object.

Shapley values and hidden states of the same pictures are asked beside the answers.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde.explain import Baseline, MaskSensitivity, Objective, Shapley
from sonde_studies._blocks import block_cnn, block_digits, trained
from sonde_studies.arms import note_again
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, NEW, EXPLAINED, STEPS = 1200, 400, 24, 60
RIGHT = {"with a shortcut": 1.0, "with a weak shortcut": 0.8, "without": 0.5}
"""How often the pixel agrees with the class, by net."""
EMBEDDING = "7"
"""The rectified units before the last map of ``block_cnn``."""
QUARTERS = torch.arange(8).reshape(4, 2).repeat_interleave(4, 0).repeat_interleave(4, 1)
"""Parts of a picture that Shapley values are given to: squares of 4 x 4 pixels."""


@final
class MaskSensitivityStudy(Study):
    """Digits beside a constant pattern with an informative or an uninformative pixel.

    The region is the digit's block, so its box has no shape that could tell. Two baselines: what
    stands in place of the digit may itself say something. A weak shortcut is right in four
    pictures of five, among those that judge as well.
    """

    name = "mask-sensitivity"
    title = "is the answer still right without the object?"
    paper = "sourget2025maskoftruth"
    fidelity = "reconstructed from the idea; chest and eye pictures are digits with a planted pixel"
    data = "BlockDigits, classes below and above 5; one bright pixel beside the digit"
    claims = (
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
        Claim(
            "better without",
            "Beside a shortcut a net does better without the digit than on the digit alone.",
            "AUROC without the region less from the region alone",
            arms=("shortcut, region removed", "shortcut, region only"),
        ),
        Claim(
            "weak over none",
            "Without the box a net beside a weak shortcut does better than one without.",
            "difference of AUROC",
            arms=("training with a weak shortcut", "training without"),
        ),
        Claim(
            "weak better without",
            "Beside a weak shortcut too a net does better without the digit than on it alone.",
            "AUROC without the region less from the region alone",
            arms=("weak shortcut, region removed", "weak shortcut, region only"),
        ),
        Claim(
            "shapley",
            "Shapley values lie outside of the digit more in a net beside a weak shortcut than in "
            "one without.",
            "difference of the share of absolute Shapley values outside of the region",
            arms=("training with a weak shortcut", "training without"),
        ),
        Claim(
            "states",
            "Without the box, states of a net beside a weak shortcut lie nearer to those of the "
            "whole pictures.",
            "cosine with the states of whole pictures, about their mean, less that of the net "
            "without",
            arms=("training with a weak shortcut", "training without"),
        ),
    )
    null = Claim("null", "Without the box, a net without a shortcut.", "AUROC", above=0.5)

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both nets and mask the digit."""
        every = block_digits(seed)
        label = (every.label >= 5).long()
        new = slice(FIT, FIT + (60 if tiny else NEW))
        figures: dict[str, float] = {}
        for kind, right in RIGHT.items():
            tick(f"training {kind}")
            x = _marked(every.x, every.signal, label, seed, right)
            net = trained(block_cnn(), x[:FIT], label[:FIT], seed, 6 if tiny else STEPS)
            region = every.signal[new]
            for baseline in (Baseline("mean"), Baseline("zero")):
                test = MaskSensitivity(baseline, seed)
                found = test.judge(net, x[new], region, labels=label[new], site=EMBEDDING)
                for condition, value in zip(found.conditions, found.auroc.tolist(), strict=True):
                    figures[f"{condition} | {kind}, {baseline}"] = value
            gone = found.conditions.index("box removed")
            figures[f"cosine of states, box removed | {kind}"] = float(found.cosine[gone])
            figures[f"Shapley values outside | {kind}"] = outside_share(
                net, x[new][:EXPLAINED], region[:EXPLAINED]
            )
        strong, weak, none = RIGHT
        for kind, arm in ((strong, "shortcut"), (weak, "weak shortcut")):
            for condition in ("region removed", "region only"):
                note_again(f"{arm}, {condition}", f"training {kind}")
        area = {k: figures[f"box removed | {k}, mean"] for k in RIGHT}
        whole = {k: figures[f"full | {k}, mean"] for k in RIGHT}
        gain = {
            k: figures[f"region removed | {k}, mean"] - figures[f"region only | {k}, mean"]
            for k in RIGHT
        }
        shares, cosines = (
            figures[f"{name} | {weak}"] - figures[f"{name} | {none}"]
            for name in ("Shapley values outside", "cosine of states, box removed")
        )
        return {
            "shortcut over none": area[strong] - area[none],
            "seen by the full picture too": -abs(whole[strong] - whole[none]),
            "better without": gain[strong],
            "weak over none": area[weak] - area[none],
            "weak better without": gain[weak],
            "shapley": shares,
            "states": cosines,
            "null": area[none],
            **figures,
        }


def outside_share(net: nn.Module, x: Tensor, region: Tensor) -> float:
    """Return the share of the absolute Shapley values of squares that lie outside of a region.

    The values add up to the rise of the margin between the two classes.

    Parameters
    ----------
    net : nn.Module
    x : Tensor (row, 1, 16, 8)
    region : bool Tensor (row, 16, 8)
        A union of squares of ``QUARTERS``.
    """
    test = Shapley(Baseline("mean"), QUARTERS.flatten())
    found = test.explain(net, x, objective=Objective("margin"))
    size = torch.as_tensor(found.value).abs().reshape(region.shape)
    return float((size * ~region).sum() / size.sum())


def _marked(x: Tensor, signal: Tensor, label: Tensor, seed: int, right: float) -> Tensor:
    """Return images with a dark or bright pixel in the other block that often tells the class.

    Parameters
    ----------
    x, signal, label : Tensor
        Pictures, the digit's block, and classes 0 and 1.
    seed : int
    right : float
        How often the pixel is bright for class 1 and dark for class 0; a half tells nothing.
    """
    draw = torch.Generator().manual_seed(seed)
    agrees = torch.rand(label.shape, generator=draw) < right
    level = torch.where(agrees, label, 1 - label)
    corner = torch.where(signal[:, 0, 0], 8, 0) + 2  # the third line of the other block
    marked = x.clone()
    marked[torch.arange(len(x)), 0, corner, 5] = level.float()
    return marked
