"""Whether heads with a prior for near patches leave locality while they are trained.

The nets of ``attention-patterns``: two blocks over the sixteen patches of a digit.
"""

from statistics import fmean
from typing import final

import torch
from torch import Tensor

from sonde.layers import Attention, non_locality
from sonde_studies.arms import note_for
from sonde_studies.attention_patterns import FIT, SIDE, PatchNet
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, digit_images, drawn, learn_labels

FEW, STEPS, TINY = 100, 600, 6


@final
class LeavingLocalityStudy(Study):
    """Gates and distances of heads with a prior, before and after training, and of plain heads."""

    name = "leaving-locality"
    title = "do heads that begin with near patches leave them in training?"
    paper = "dascoli2021convit"
    fidelity = "two blocks, whose four heads each begin with a gate of .73 for the prior"
    data = "digits: 1,000 to train on, 797 to judge; patches of 2 x 2 pixels"
    claims = (
        Claim("gates", "Training closes the gates of the prior.",
              "mean gate at the start less that after training", arms=("prior", "start")),
        Claim("farther", "Trained heads look farther than they did at the start.",
              "mean distance of attention in patches, after training less before",
              arms=("prior", "start")),
        Claim("few", "With a tenth of the rows the gates close less.",
              "mean gate after training, from 100 rows less from 1,000, at equal updates",
              arms=("prior, 100 rows", "prior")),
        Claim("near", "Heads with a prior still look at nearer patches than plain heads do.",
              "mean distance of attention in patches after training, plain heads less heads with "
              "a prior", arms=("plain", "prior")),
        Claim("right", "Nets with the prior are as often right, to a point.",
              "accuracy, heads with a prior less plain heads, and 0.01", arms=("prior", "plain")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy of heads with a prior, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train plain heads, and heads with a prior on all rows and on few."""
        x, label = digit_images(seed)
        steps = TINY if tiny else STEPS
        start = drawn(lambda: PatchNet("position", ""), seed)
        gates, far, right = {"start": gate_of(start)}, {"start": reach_of(start, x[FIT:])}, {}
        for arm, kind, n in (
            ("prior", "position", FIT), ("prior, 100 rows", "position", FEW), ("plain", "all", FIT)
        ):  # fmt: skip
            tick(arm)
            net = drawn(lambda kind=kind: PatchNet(kind, ""), seed)
            learn_labels(net, x[:n], label[:n], steps=steps, seed=seed)
            right[arm] = accuracy(net, x[FIT:], label[FIT:])
            far[arm] = reach_of(net, x[FIT:])
            if kind == "position":
                gates[arm] = gate_of(net)
        note_for("start", updates=0)
        tick("labels by lot")
        return {
            "gates": gates["start"] - gates["prior"],
            "farther": far["prior"] - far["start"],
            "few": gates["prior, 100 rows"] - gates["prior"],
            "near": far["plain"] - far["prior"],
            "right": right["prior"] - right["plain"] + 0.01,
            "lots": by_lot(x, seed, TINY if tiny else STEPS // 2),
            **{f"gate | {arm}": v for arm, v in gates.items()},
            **{f"distance | {arm}": v for arm, v in far.items()},
            **{f"accuracy | {arm}": v for arm, v in right.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of heads with a prior on labels by lot, less that of chance."""
    net, label = drawn(lambda: PatchNet("position", ""), seed), labels_by_lot(x, 10, seed)
    learn_labels(net, x[:FIT], label[:FIT], steps=steps, seed=seed)
    return accuracy(net, x[FIT:], label[FIT:]) - 0.1


def _attentions(net: PatchNet) -> list[Attention]:
    return [mix for mix in net.mixing if isinstance(mix, Attention)]


@torch.no_grad()
def gate_of(net: PatchNet) -> float:
    """Return the mean weight of the prior over all heads."""
    return fmean(float(mix.gate.sigmoid().mean()) for mix in _attentions(net))


@torch.no_grad()
def reach_of(net: PatchNet, x: Tensor) -> float:
    """Return the mean distance, in patches, between a patch and those that it attends to."""
    side = torch.arange(SIDE, dtype=torch.float32)
    place = torch.cartesian_prod(side, side)
    found = list[float]()
    inputs = list[Tensor]()
    hooks = [
        mix.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        for mix in _attentions(net)
    ]
    net(x)
    for hook in hooks:
        hook.remove()
    for mix, states in zip(_attentions(net), inputs, strict=True):
        found.append(float(non_locality(mix.probs(states), place).mean()))
    return fmean(found)
