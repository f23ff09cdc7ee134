"""Pre-train on masked pixels, a contrast and several labels at once, and on each of them alone.

Digits under a mark and noise; a linear probe tells the ten digits, which no label names.
"""

from typing import final

import torch
from torch import Tensor

from sonde_studies._joint_arms import PARTS, PatchNet, learn
from sonde_studies._labelled_pictures import DIGITS, Pictures, labelled_pictures, patches
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.parts.heads import linear_head
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

FIT, PICTURES, PROBED, STEPS, NOISE = 1_200, 1_500, 200, 800, 0.3
TINY, FEW = 3, 300


@final
class JointObjectivesStudy(Study):
    """Three objectives in one list with weights, each of them alone, and no training."""

    name = "joint-objectives"
    title = "do masked pixels, contrast and labels together teach more than each alone?"
    paper = "qian2023heuristic"
    fidelity = (
        "a net of two residual layers and digits; the paper trains Swin-B on photographs that a "
        "machine labels, and fine-tunes it. Arms have equal steps: one of the three objectives "
        "together costs 1.2 to 1.8 times as much as one of a part"
    )
    data = (
        "1,500 digits under a mark and noise, with 11 labels: two halves of the digits, the mark "
        "and its quarter, bold, slanted; a probe learns to tell the ten digits from 200 of them"
    )
    claims = tuple(
        Claim(
            f"over {part}",
            f"States tell ten digits better after the three together than after {alone} alone.",
            f"accuracy of a linear probe, joint (the parameters of all heads) less {part} alone",
            arms=("joint", part),
        )
        for part, alone in zip(PARTS, ("masked pixels", "contrast", "labels"), strict=True)
    )
    null = Claim("lots", "Of digits that are renamed by lot, picture by picture, a probe tells the "
                 "names of no others.", "accuracy of a linear probe, joint, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each arm on the same pictures."""
        x, digit = shuffled_digits(seed)
        label = torch.randperm(DIGITS, generator=torch.Generator().manual_seed(seed))[digit]
        n = FEW if tiny else PICTURES
        fit, judge = _parts(x, label, seed, n)
        steps = TINY if tiny else STEPS
        found = {"untrained": _probed(drawn(PatchNet, seed).eval(), fit, judge)}
        for arm in (*PARTS, "joint"):
            tick(arm)
            net = drawn(PatchNet, seed)
            arms = [arm] if arm in PARTS else PARTS
            learn(net, arms, fit.picture, fit.facts, NOISE, seed, steps)
            found[arm] = _probed(net, fit, judge)
        tick("labels by lot")
        return {
            **{f"over {part}": found["joint"] - found[part] for part in PARTS},
            "lots": by_lot(x, seed, steps, n),
            **{f"accuracy | {arm}": value for arm, value in found.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int, n: int) -> float:
    """Return the accuracy of the joint arm on labels by lot, less that of chance."""
    fit, judge = _parts(x, labels_by_lot(x, DIGITS, seed), seed, n)
    net = drawn(PatchNet, seed)
    learn(net, PARTS, fit.picture, fit.facts, NOISE, seed, steps)
    return _probed(net, fit, judge) - 0.1


def _parts(x: Tensor, label: Tensor, seed: int, n: int) -> tuple[Pictures, Pictures]:
    """Return the pictures to learn from, and twice as many of other digits to judge."""
    fit = labelled_pictures(x[:FIT], label[:FIT], seed, n)
    return fit, labelled_pictures(x[FIT:], label[FIT:], seed + 1, 2 * n)


@torch.no_grad()
def _probed(net: PatchNet, fit: Pictures, judge: Pictures) -> float:
    """Return the accuracy of a linear probe of ten digits that learns from some noisy pictures."""
    draw = torch.Generator().manual_seed(PROBED)
    noisy = (p.picture + NOISE * torch.randn(p.picture.shape, generator=draw) for p in (fit, judge))
    x, new = (net(patches(picture)).numpy() for picture in noisy)
    head = linear_head().fit(x[:PROBED], fit.digit[:PROBED].numpy())
    return float(head.score(new, judge.digit.numpy()))
