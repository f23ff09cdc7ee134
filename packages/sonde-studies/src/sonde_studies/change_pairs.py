"""Real changes under nuisance: weighted unit differences against the plain difference.

Before and after are canvases of two digits; both are shifted and lit otherwise in every pair, and
in half of the pairs one digit is another one. First the recipe weighs the states of a net that
never saw a pair; then nets of equal size learn from pairs, with and without an exchange between
both sides.
"""

from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.metrics import auroc
from sonde_studies._canvas_pairs import Siamese, canvas, pairs_of
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.arms import note, note_for
from sonde_studies.recipes.change_pairs import JOINED, PLAIN, SHUFFLED, WEIGHTED, change_pairs
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, PAIRS, TINY, STEPS = 700, 600, 80, 300
SHIFTS = (0, 1)
LEARN, TEACH = 900, 4000
"""Steps and pairs of the nets that learn from pairs."""


ARMS = {"none": (False, False), "difference": (True, False), "swap": (False, True),
        "swap and difference": (True, True)}  # fmt: skip
"""Whether the sides exchange a weighted difference, and whether they swap channels."""


@final
class ChangePairsStudy(Study):
    """Six hundred pairs of two digits, with shifted canvas and changed brightness."""

    name = "change-pairs"
    title = "does weighting the difference of states find real changes under nuisance?"
    fidelity = "two convolutions a side; the paper has a large backbone, and segments"
    data = "canvases of two digits of 8 x 8; light from 0.5 to 1.5, shifted by up to a pixel"
    claims = (
        Claim("weighted",
              "Units with weights, which labels of pairs teach, beat the plain difference of the "
              "pixels under nuisance.",
              "AUROC of weighted states less that of plain pixels, shift of a pixel",
              arms=(WEIGHTED, PLAIN)),
        Claim("states",
              "Weights, which take labels of pairs, help on the states too.",
              "AUROC, weighted less plain, shift of a pixel",
              arms=(WEIGHTED, PLAIN)),
        Claim("head",
              "A head on both states, with twice the parameters, beats weights of the difference.",
              "AUROC, head less weights, shift of a pixel",
              arms=(JOINED, WEIGHTED)),
        Claim("nuisance", "The plain difference suffers from the shift.",
              "AUROC of plain pixels, no shift less a pixel",
              arms=("pixels, shift 0", "pixels, shift 1")),
        Claim("exchange", "A weighted difference between both sides helps a net that learns pairs.",
              "AUROC, weighted difference less a convolution of its own on each side",
              arms=("difference", "none")),
        Claim("swapped", "So does a swap of every second channel.",
              "AUROC, swap less none, both with a convolution of their own",
              arms=("swap", "none")),
        Claim("together", "A weighted difference and a swap of channels together find more "
              "changes than neither.",
              "AUROC, swap and weighted difference less none",
              arms=("swap and difference", "none")),
    )  # fmt: skip
    null = Claim("shuffled", "Weights from shuffled labels tell nothing.",
                 "AUROC, mean over shifts", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an encoder of single canvases, and run the recipe for each size of shift."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        tick("encoder")
        seen = canvas(x[:FIT], x[:FIT].roll(1, 0), 1, draw)
        net = learned(mlp(128), seen, label[:FIT].roll(1), seed, 20 if tiny else STEPS)
        pixels = learned(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(128, 10)),
                         seen, label[:FIT], seed, 1)  # fmt: skip
        found = dict[str, dict[str, float]]()
        for shift in SHIFTS:
            rows = pairs_of(x[FIT:], label[FIT:], TINY if tiny else PAIRS, shift, draw)
            for name, model, site in (("states", net, "3"), ("pixels", pixels, "0")):
                tick(f"{name}, shift {shift}")
                note(rows=len(rows))
                answer = change_pairs(model, rows, site=site, seed=seed, progress=False)
                head: Any = list(model.module.children())[-1]
                _note_arms(int(answer.facts["pairs that learn"]), head.in_features)
                found[f"{name}, shift {shift}"] = {
                    str(row["arm"]): float(row["AUROC"]) for row in answer.rows
                }
        teach = pairs_of(x[:FIT], label[:FIT], TINY if tiny else TEACH, 1, draw)
        held = pairs_of(x[FIT:], label[FIT:], TINY if tiny else PAIRS, 1, draw)
        arm = dict[str, float]()
        for name, how in ARMS.items():
            tick(name)
            arm[name] = _taught(*how, teach, held, seed, 20 if tiny else LEARN)
        states, plain = found["states, shift 1"], found["pixels, shift 1"]
        return {
            "weighted": states[WEIGHTED] - plain[PLAIN],
            "states": states[WEIGHTED] - states[PLAIN],
            "head": states[JOINED] - states[WEIGHTED],
            "nuisance": found["pixels, shift 0"][PLAIN] - plain[PLAIN],
            "exchange": arm["difference"] - arm["none"],
            "swapped": arm["swap"] - arm["none"],
            "together": arm["swap and difference"] - arm["none"],
            "shuffled": sum(row[SHUFFLED] for row in found.values()) / len(found),
            **{f"{name} | {key}": v for name, row in found.items() for key, v in row.items()},
            **{f"learns pairs, {name}": v for name, v in arm.items()},
        }


def _note_arms(n_pairs: int, width: int) -> None:
    """Note what the recipe's arms were given: a weight for each unit, or for each of two states."""
    note_for(PLAIN, rows=0, parameters=0)
    for arm, n in ((WEIGHTED, width), (JOINED, 2 * width)):
        note_for(arm, rows=n_pairs, parameters=n + 1)


def _taught(
    difference: bool, swap: bool, teach: list[Any], held: list[Any], seed: int, steps: int
) -> float:
    """Return the AUROC on held pairs of a net that learnt from pairs."""
    pairs = [[torch.stack((r["before"], r["after"])) for r in p] for p in (teach, held)]
    sides = [torch.stack(p) for p in pairs]
    truth = [torch.tensor([float(r["changed"]) for r in p]) for p in (teach, held)]
    net = drawn(lambda: Siamese(difference, swap), seed)

    def loss(rows: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(net(sides[0][rows]), truth[0][rows])

    minimise(loss, net.parameters(), len(sides[0]), steps=steps, seed=seed)
    with torch.no_grad():
        return float(auroc(net(sides[1]).numpy(), truth[1].numpy(), seed=seed).value)
