"""Random halves of the keys as sub-models: what training with them and asking several is worth.

The net of ``attention-patterns``: two blocks over digits in sixteen patches.
"""

from typing import final

import torch
from torch import Tensor, nn

from sonde_studies.arms import note, part
from sonde_studies.attention_patterns import PatchNet
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import digit_images, drawn, learn_labels

FIT, FEW, STEPS, TINY, DRAWS = 1_000, 100, 300, 6, 8
HALVES = f"random:0.5:{DRAWS}"


@final
class RandomPathwaysStudy(Study):
    """Nets that attend to a random half of the keys, anew for each batch, and to all keys.

    A net of halves is asked in four ways: with one half, with all keys, with the mean of each
    layer's output over eight halves, and with the mean of eight answers, a half each.
    """

    name = "random-pathways"
    title = "are random halves of the keys sub-models whose mean answer is better?"
    paper = "informationpathways"
    fidelity = "halves of the keys in two blocks of sixteen tokens; no training on all keys at the "
    fidelity += "end, which the paper adds"
    data = "digits: 1,000 or 100 to train on, 797 to judge; patches of 2 x 2 pixels"
    claims = (
        Claim("ensemble", "The mean answer of eight random halves beats the answer with all keys "
              "of the same net, at eight passes for one.",
              "accuracy, eight halves less all keys", arms=("eight halves", "all keys")),
        Claim("one", "It beats the answer of one half, at eight passes for one.",
              "accuracy, eight halves less one half", arms=("eight halves", "one half")),
        Claim("layers", "The mean of each layer's output over eight halves does as well, to a "
              "point.", "accuracy, mean of layers less mean of answers, and 0.01",
              arms=("mean of layers", "eight halves")),
        Claim("dense", "The mean answer of eight random halves beats a net that learned with all "
              "keys, at eight passes for one.",
              "accuracy, eight halves less learned densely", arms=("eight halves", "dense")),
        Claim("few", "So it does from 100 rows, at eight passes for one.",
              "accuracy, eight halves less learned densely, both from 100 rows",
              arms=("eight halves, few", "dense, few")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other rows.",
                 "accuracy of eight halves, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with halves and with all keys, and ask each net."""
        x, label = digit_images(seed)
        steps, found = TINY if tiny else STEPS, dict[str, float]()
        for n, rest in ((FIT, ""), (FEW, ", few")):
            for pattern in ("all", HALVES):
                tick(f"{pattern}{rest}")
                net = _learned(pattern, x, label, n, seed, steps)
                for way in ("dense",) if pattern == "all" else WAYS:
                    with part(way + rest):
                        note(rows=n, updates=steps, parameters=_size(net), passes=_passes(way))
                        found[way + rest] = _accuracy(net, way, x[FIT:], label[FIT:])
        tick("labels by lot")
        return {
            "ensemble": found["eight halves"] - found["all keys"],
            "one": found["eight halves"] - found["one half"],
            "layers": found["mean of layers"] - found["eight halves"] + 0.01,
            "dense": found["eight halves"] - found["dense"],
            "few": found["eight halves, few"] - found["dense, few"],
            "lots": by_lot(x, seed, steps),
            **{f"accuracy | {arm}": value for arm, value in found.items()},
        }


WAYS = ("one half", "all keys", "mean of layers", "eight halves")


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy of eight halves on labels by lot, less that of chance."""
    lots = labels_by_lot(x, 10, seed)
    net = _learned(HALVES, x, lots, FIT, seed, steps)
    return _accuracy(net, "eight halves", x[FIT:], lots[FIT:]) - 0.1


def _learned(pattern: str, x: Tensor, label: Tensor, n: int, seed: int, steps: int) -> PatchNet:
    net = drawn(lambda: PatchNet(pattern, ""), seed)
    learn_labels(net, x[:n], label[:n], steps=steps, seed=seed)
    return net


def _size(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _passes(way: str) -> int:
    return DRAWS if way in ("mean of layers", "eight halves") else 1


@torch.no_grad()
def _accuracy(net: PatchNet, way: str, x: Tensor, label: Tensor) -> float:
    """Return the accuracy of a net that is asked in one of the ways.

    In training mode each pass attends to halves of its own; the net has no other noise.
    """
    if way == "all keys":
        asked = PatchNet("all", "")
        asked.load_state_dict(net.state_dict())
    else:
        asked = net
    passes = {"one half": 1, "eight halves": DRAWS}.get(way, 0)
    asked.train(passes > 0)
    answers = [asked(x).softmax(1) for _ in range(max(passes, 1))]
    net.eval()
    return float((torch.stack(answers).mean(0).argmax(1) == label).double().mean())
