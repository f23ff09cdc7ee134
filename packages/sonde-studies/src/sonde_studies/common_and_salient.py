"""Two codes of an image: a common code for all images, and a code of a mark that some have.

Every second digit carries a bar in a corner. The codes are small, and the best of a linear probe,
nearest neighbours and a radial kernel reads them: the salient code says by its length whether there
is a mark, which a linear probe alone misses.
"""

from typing import final

import torch
from sklearn.linear_model import LogisticRegression  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from sonde.train import Contrast, Separate
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note_again
from sonde_studies.parts.heads import head_accuracy, strongest_accuracy
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DIM = 1_000, 600, 20, 8
WEIGHTS, REBUILDING = (0.0, 1.0, 10.0), 10.0
OTHERS = {
    "uniform, 0": (0.0, "uniform"),
    "uniform, 10": (10.0, "uniform"),
    "cosine, 10": (10.0, "cosine"),
    "cosine, 10, rebuilt": (10.0, "rebuilt"),
}
"""Weight and kind of the arms beside those of ``WEIGHTS``."""


@final
class CommonAndSalientStudy(Study):
    """A common and a salient code, with several weights of the redundancy penalty."""

    name = "common-and-salient"
    title = "does a penalty on shared content leave the mark to the salient code alone?"
    paper = "louiset2024sepclr"
    fidelity = "two heads on one encoder; views by noise; joint entropy or cosine as penalty"
    data = "digits, half of them with a bar of random height in a corner"
    claims = (
        Claim("mark", "The salient code knows the mark better than the common code does.",
              "accuracy of the strongest probe of the mark, salient less common, weight 10",
              arms=("salient code", "common code")),
        Claim("class", "The common code knows the digit better than the salient code does.",
              "accuracy of the strongest probe of the digit, common less salient, weight 10",
              arms=("common code", "salient code")),
        Claim("penalty", "The penalty lowers what the common code says of the mark.",
              "accuracy of the strongest probe of the mark on the common code, weight 0 less 10",
              arms=("weight 10", "weight 0")),
        Claim("gone", "With the penalty the mark is gone from the common code, to five points.",
              "0.55 less the accuracy of the strongest probe of the mark, weight 10"),
        Claim("uniform", "So it does where alignment and uniformity take the contrast's place.",
              "accuracy of the strongest probe of the mark on the common code, weight 0 less 10",
              arms=("uniform, 10", "uniform, 0")),
        Claim("cosine", "So does the squared cosine of both codes.",
              "accuracy of the strongest probe of the mark, weight 0 less cosine",
              arms=("cosine, 10", "weight 0")),
        Claim("weak", "Pictures rebuilt of the common code leave more of the digit to it.",
              "accuracy of the strongest probe of the digit, common less salient, difference; "
              "rebuilding adds 7 % of the parameters",
              arms=("cosine, 10, rebuilt", "cosine, 10")),
    )  # fmt: skip
    null = Claim(
        "no mark", "Where no picture carries a mark, its column cannot be told.",
        "accuracy of the strongest probe on the salient code, weight 10", above=0.5,
    )  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with each weight, and once without marks."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        mark = torch.rand(len(x), generator=draw) < 0.5
        drawn_on = x.clone().reshape(-1, 8, 8)
        height = torch.randint(0, 6, (len(x),), generator=draw)
        for row in range(3):
            drawn_on[mark, (height + row)[mark], 0] = 1.0
        steps = TINY if tiny else STEPS
        marked, found = drawn_on.flatten(1), dict[str, dict[str, float]]()
        for weight in WEIGHTS:
            tick(f"weight {weight:g}")
            found[f"{weight:g}"] = _probed(marked, label, mark, weight, seed, steps)
        others = dict[str, dict[str, float]]()
        for arm, (weight, kind) in OTHERS.items():
            tick(arm)
            others[arm] = _probed(marked, label, mark, weight, seed, steps, kind)
        for name in ("salient code", "common code"):
            note_again(name, "weight 10")
        gap = {arm: row["class, common"] - row["class, salient"] for arm, row in others.items()}
        tick("without marks")
        empty = _probed(x, label, mark, WEIGHTS[-1], seed, steps)
        most, none = found[f"{WEIGHTS[-1]:g}"], found["0"]
        return {
            "mark": most["mark, salient"] - most["mark, common"],
            "class": most["class, common"] - most["class, salient"],
            "penalty": none["mark, common"] - most["mark, common"],
            "gone": 0.55 - most["mark, common"],
            "uniform": others["uniform, 0"]["mark, common"] - others["uniform, 10"]["mark, common"],
            "cosine": none["mark, common"] - others["cosine, 10"]["mark, common"],
            "weak": gap["cosine, 10, rebuilt"] - gap["cosine, 10"],
            "no mark": empty["mark, salient"],
            **{
                f"{name} | {k}": v for name, row in (found | others).items() for k, v in row.items()
            },
        }


def _probed(
    x: Tensor, label: Tensor, mark: Tensor, weight: float, seed: int, steps: int, arm: str = ""
) -> dict[str, float]:
    def make() -> nn.ModuleDict:
        parts: dict[str, nn.Module] = {"body": nn.Sequential(nn.Linear(64, 96), nn.ReLU())}
        parts |= {"common": nn.Linear(96, DIM), "own": nn.Linear(96, DIM)}
        return nn.ModuleDict(parts | {"rebuild": nn.Linear(DIM, 64)} if arm == "rebuilt" else parts)

    net = drawn(make, seed)
    contrast = Contrast(0.25, "uniform") if arm == "uniform" else Contrast(0.2)
    separate = Separate("cosine" if arm in ("cosine", "rebuilt") else "joint_entropy")

    def loss(rows: Tensor) -> Tensor:
        views = [net["body"](x[rows] + 0.15 * torch.randn(len(rows), 64)) for _ in range(2)]
        common, own = (torch.cat([net[name](v) for v in views]) for name in ("common", "own"))
        view, kind = torch.arange(2).repeat_interleave(len(rows)), mark[rows].repeat(2)
        told = contrast(own[kind], view=view[kind])
        empty = own[~kind].square().sum(1).mean()  # pictures without a mark have nothing salient
        shared = separate(nn.functional.normalize(common, dim=1), own) if weight else 0.0
        drawn_weakly = 0.0
        if arm == "rebuilt":  # the common code alone draws the picture, its mark included
            drawn_weakly = (net["rebuild"](common) - x[rows].repeat(2, 1)).square().mean()
        return (
            contrast(common, view=view) + told + empty + weight * shared + REBUILDING * drawn_weakly
        )

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
    with torch.no_grad():
        codes = {name: net[name](net["body"](x)) for name in ("common", "own")}
    asked = [(what, truth, codes[code], word) for what, truth in (("mark", mark), ("class", label))
             for code, word in (("common", "common"), ("own", "salient"))]  # fmt: skip
    linear = LogisticRegression(max_iter=500)
    return {
        f"{what}, {word}": strongest_accuracy(x, truth.long(), FIT)
        for what, truth, x, word in asked
    } | {
        f"{what}, {word}, linear": head_accuracy(linear, x, truth, FIT)
        for what, truth, x, word in asked
        if what == "mark"
    }
