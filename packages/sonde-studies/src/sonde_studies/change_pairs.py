"""Real changes under nuisance: weighted unit differences against the plain difference.

Before and after are canvases of two digits; both are shifted and lit otherwise in every pair, and
in half of the pairs one digit is another one.
"""

from typing import Any, final

import torch
from torch import Tensor

from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.recipes.change_pairs import JOINED, PLAIN, SHUFFLED, WEIGHTED, change_pairs
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, PAIRS, TINY, STEPS = 700, 600, 80, 300
SHIFTS = (0, 1)


@final
class ChangePairsStudy(Study):
    """Six hundred pairs of two digits, with shifted canvas and changed brightness."""

    name = "change-pairs"
    title = "does weighting the difference of states find real changes under nuisance?"
    fidelity = (
        "weights on the states of a net that names the right digit; the paper trains exchanges"
    )
    data = "canvases of two digits of 8 x 8; light from 0.5 to 1.5, shifted by up to a pixel"
    claims = (
        Claim("weighted", "Weighted units beat the plain difference of the pixels under nuisance.",
              "AUROC of weighted states less that of plain pixels, shift of a pixel"),
        Claim("states", "Weights help on the states too.",
              "AUROC, weighted less plain, shift of a pixel"),
        Claim("head", "A head on both states beats weights of the difference.",
              "AUROC, head less weights, shift of a pixel"),
        Claim("nuisance", "The plain difference suffers from the shift.",
              "AUROC of plain pixels, no shift less a pixel"),
    )  # fmt: skip
    null = Claim("shuffled", "Weights from shuffled labels tell nothing.",
                 "AUROC, mean over shifts", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an encoder of single canvases, and run the recipe for each size of shift."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        tick("encoder")
        seen = _canvas(x[:FIT], x[:FIT].roll(1, 0), 1, draw)
        net = learned(mlp(128), seen, label[:FIT].roll(1), seed, 20 if tiny else STEPS)
        pixels = learned(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(128, 10)),
                         seen, label[:FIT], seed, 1)  # fmt: skip
        found = dict[str, dict[str, float]]()
        for shift in SHIFTS:
            rows = _pairs(x[FIT:], label[FIT:], TINY if tiny else PAIRS, shift, draw)
            for name, model, site in (("states", net, "3"), ("pixels", pixels, "0")):
                tick(f"{name}, shift {shift}")
                answer = change_pairs(model, rows, site=site, seed=seed, progress=False)
                found[f"{name}, shift {shift}"] = {
                    str(row["arm"]): float(row["AUROC"]) for row in answer.rows
                }
        states, plain = found["states, shift 1"], found["pixels, shift 1"]
        return {
            "weighted": states[WEIGHTED] - plain[PLAIN],
            "states": states[WEIGHTED] - states[PLAIN],
            "head": states[JOINED] - states[WEIGHTED],
            "nuisance": found["pixels, shift 0"][PLAIN] - plain[PLAIN],
            "shuffled": sum(row[SHUFFLED] for row in found.values()) / len(found),
            **{f"{name} | {arm}": v for name, row in found.items() for arm, v in row.items()},
        }


def _canvas(a: Tensor, b: Tensor, shift: int, draw: torch.Generator) -> Tensor:
    """Return two digits side by side, randomly shifted and brightened, as rows of 128 pixels."""
    made = torch.cat([a.reshape(-1, 8, 8), b.reshape(-1, 8, 8)], 2)
    by = torch.randint(-shift, shift + 1, (len(made), 2), generator=draw).tolist()
    moved = torch.stack([v.roll((h, w), (0, 1)) for v, (h, w) in zip(made, by, strict=True)])
    light = 0.5 + torch.rand(len(made), 1, generator=draw)
    return moved.flatten(1) * light


def _pairs(
    x: Tensor, label: Tensor, n: int, shift: int, draw: torch.Generator
) -> list[dict[str, Any]]:
    """Return pairs; in a random half of them the right digit is replaced."""
    left, right, other = torch.randint(len(x), (3, n), generator=draw)
    changed = (torch.rand(n, generator=draw) < 0.5) & (label[right] != label[other])
    after = torch.where(changed, other, right)
    sides = (_canvas(x[left], x[own], shift, draw) for own in (right, after))
    return [
        {"before": a, "after": b, "changed": int(c)}
        for a, b, c in zip(*sides, changed, strict=True)
    ]
