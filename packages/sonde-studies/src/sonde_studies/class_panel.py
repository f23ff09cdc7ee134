"""Test whether the class panel explains why a class is weak, with planted reasons."""

from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from sonde import Model
from sonde_studies._blocks import SIDE, BlockDigits, block_digits
from sonde_studies._planted import PatchAttention, trained_by_batches
from sonde_studies.arms import note_for
from sonde_studies.recipes.class_panel import class_panel
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, STEPS, RATE = 1200, 400, 3e-3
RARE, MARKED, KEPT = 2, 1, 0.08


@final
class ClassPanelStudy(Study):
    """Digits beside a pattern; two classes are rare, and a mark gives another class away."""

    name = "class-panel"
    title = "do rows, scores and attention side by side say why a class is weak?"
    paper = "saha2023seebel"
    fidelity = "ours: the paper shows such a panel to people; here its figures meet planted reasons"
    data = "BlockDigits; a net of attention over patches, two classes at 8 % of their rows"
    claims = (
        Claim("rare",
              "Classes with a twelfth of the rows are recognised less often than the others.",
              "recall, other classes less rare ones",
              arms=("rare classes", "other classes")),
        Claim("ranked", "Over the ten classes recall goes with the rows of training.",
              "Spearman's correlation"),
        Claim("look", "In the class that a mark tells the model looks less at the digit than in "
              "classes of about as many rows.",
              "attention on the digit over its area, other classes less that one",
              arms=("other classes", "marked class")),
        Claim("shortcut", "Without the mark that class is recognised less often.",
              "recall of that class with the mark less without",
              arms=("with the mark", "without the mark")),
    )  # fmt: skip
    null = Claim("by lot", "Halves of the picture by lot are looked at as their area is.",
                 "attention on the half over its area, usual classes, less 1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net with planted classes, and run the panel with and without the mark."""
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(10, generator=draw).tolist()
        rare, marked, usual = order[:RARE], order[RARE], order[RARE + MARKED :]
        every = block_digits(seed)
        first = every.part(0, FIT)
        kept = torch.rand(FIT, generator=draw) < KEPT
        kept |= ~torch.isin(first.label, torch.tensor(rare))
        tick("train")
        x = _with_mark(first, marked)[kept]
        net = trained_by_batches(
            PatchAttention(), x, first.label[kept], seed, 20 if tiny else STEPS, RATE
        )
        train = [{"label": int(c)} for c in first.label[kept]]
        fresh = every.part(FIT, FIT + (80 if tiny else len(every) - FIT))
        tick("panel")
        panels = [
            _panel(net, fresh, pictures, train) for pictures in (_with_mark(fresh, marked), fresh.x)
        ]
        recall, look = ({c: row[key] for c, row in panels[0].items()}
                        for key in ("recall", "attention"))  # fmt: skip
        rows = {c: float(row["rows"]) for c, row in panels[0].items()}
        above = torch.rand(len(fresh), generator=draw) < 0.5
        for name, classes in (("rare classes", rare), ("other classes", usual)):
            note_for(name, rows=sum(rows[c] for c in classes) / len(classes))
        note_for("marked class", rows=rows[marked])
        for name in ("with the mark", "without the mark"):
            note_for(name, rows=len(fresh))
        return {
            "rare": _mean(recall, usual) - _mean(recall, rare),
            "ranked": _rank(rows, recall),
            "look": _mean(look, usual) - look[marked],
            "shortcut": recall[marked] - panels[1][marked]["recall"],
            "by lot": looked_at(net, fresh, _with_mark(fresh, marked), usual, above),
            "recall | rare": _mean(recall, rare),
            "recall | marked": recall[marked],
            "recall | usual": _mean(recall, usual),
            "attention | rare": _mean(look, rare),
            "attention | marked": look[marked],
            "attention | usual": _mean(look, usual),
        }


def _with_mark(digits: BlockDigits, marked: int) -> Tensor:
    """Return the images, with four bright pixels in the pattern of one class."""
    x = digits.x.clone()
    start = torch.where(digits.signal[:, 0, 0], SIDE, 0)  # the first line of the other block
    for i in torch.nonzero(digits.label == marked).flatten().tolist():
        x[i, 0, int(start[i]) + 2 : int(start[i]) + 4, 4:6] = 1.0
    return x


def looked_at(
    net: torch.nn.Module, digits: BlockDigits, pictures: Tensor, classes: list[int], above: Tensor
) -> float:
    """Return the attention on one half of each picture over its area, less 1.

    ``above`` says whether it is the upper half.
    """
    halves = replace(digits, signal=above[:, None, None].expand_as(digits.signal))
    panel = _panel(net, halves, pictures, [])
    return _mean({c: float(row["attention"]) for c, row in panel.items()}, classes) - 1


def _panel(
    net: torch.nn.Module, digits: BlockDigits, pictures: Tensor, train: list[dict[str, int]]
) -> dict[int, dict[str, Any]]:
    """Return the row of each class."""
    items = [
        {"x": x, "label": int(c), "box": (0.0, 0.0, 0.5, 1.0) if above else (0.5, 0.0, 1.0, 1.0)}
        for x, c, above in zip(pictures, digits.label, digits.signal[:, 0, 0].tolist(), strict=True)
    ]
    found = class_panel(Model(net), items, train=train, progress=False)
    return {int(row["class"]): dict(row) for row in found.rows}


def _mean(values: dict[int, float], classes: list[int]) -> float:
    return sum(values[c] for c in classes) / len(classes)


def _rank(x: dict[int, float], y: dict[int, float]) -> float:
    from scipy.stats import spearmanr  # pyright: ignore[reportMissingTypeStubs]

    classes = sorted(x)
    found: Any = spearmanr([x[c] for c in classes], [y[c] for c in classes])
    return float(found.statistic)
