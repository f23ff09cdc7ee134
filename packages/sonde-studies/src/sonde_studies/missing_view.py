"""Test whether fusion of two halves of a digit works without one of them.

The encoders are small nets that learned to name a digit from its upper and from its lower half. The
map from two halves to a face seen by two sensors is long; what carries over is the comparison of
ways to fuse, not the figures.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde_studies._joined_streams import FIT, JUDGE, joined_at
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.arms import note_for, part
from sonde_studies.recipes.missing_view import missing_view
from sonde_studies.study import Claim, Figures, Study, Tick

TINY, STEPS = 200, 400
DEPTHS = {"early": (0,), "middle": (1,), "late": (2,), "everywhere": (0, 1, 2)}


@final
class MissingViewStudy(Study):
    """The upper and the lower half of a digit, fused in four ways and at three depths."""

    name = "missing-view"
    title = "which fusion of two views survives without one of them?"
    fidelity = "linear heads on frozen encoders; the nets that are joined at a depth train whole"
    data = (
        "digits in halves: 700 to train encoders and joined nets, 300 to choose the worse view and "
    )
    data += "the better end, 797 for heads and figures"
    claims = (
        Claim("three heads", "Without one view three heads lose less than one head on both.",
              "accuracy with the worse view alone, three heads (twice the weights) less one head",
              arms=("three heads", "one head")),
        Claim("left out", "So does one head that is trained with views left out at random.",
              "accuracy with the worse view alone, views left out less one head",
              arms=("views left out", "one head")),
        Claim("both", "Fusion beats the better view alone, with both present.",
              "accuracy of one head with both views less that of the better view's own head, of "
              "half the weights",
              arms=("one head", "own head")),
        Claim("depth", "Streams that are joined late lose less without a view than early ones.",
              "accuracy with the worse view alone, late less early",
              arms=("late", "early")),
        Claim("middle", "Joined in the middle they are better with both than early or late.",
              "accuracy with both views, middle less the better of early and late",
              arms=("middle", "late")),
        Claim("everywhere", "Joined at three depths they are better with both than late alone.",
              "accuracy with both views, three depths (1.9 times the parameters) less late",
              arms=("everywhere", "late")),
        Claim("joined heads", "Three heads on streams that are joined at three depths lose no more "
              "without a view than the mean of both streams' answers, to a point.",
              "accuracy with the worse view alone, three heads (a tenth more parameters) less the "
              "mean, and 0.01",
              arms=("everywhere, three heads", "everywhere, mean")),
        Claim("joined both", "With both views they are better.",
              "accuracy with both views, three heads (a tenth more parameters) less the mean",
              arms=("everywhere, three heads", "everywhere, mean")),
        Claim("noise", "A second view of noise costs one head on both.",
              "accuracy of the first view's own head less that of one head with both, of twice "
              "the weights",
              arms=("one head", "own head")),
    )  # fmt: skip
    null = Claim(
        "lot",
        "Where labels are by lot, neither three heads nor joining late gains.",
        "accuracy, worse view alone: three heads less one, and late less early",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an encoder for each half, run the recipe, with noise as one half, and by lot."""
        tick("train")
        x, label = shuffled_digits(seed)
        n = TINY if tiny else FIT
        halves = x[:, :32], x[:, 32:]
        heads = [learned(mlp(32), half[:n], label[:n], seed) for half in halves]
        encoders = [Model(nn.Sequential(*list(net.module.children())[:-1]).eval()) for net in heads]  # pyright: ignore
        tick("fuse")
        draw = torch.Generator().manual_seed(seed)
        noise, lot = torch.rand(len(x), 32, generator=draw), torch.randperm(len(x), generator=draw)
        width = [*encoders[0].module.parameters()][-1].shape[0]
        n_heads = {"one head": 2, "views left out": 2, "three heads": 4, "own head": 1}
        for name, widths in n_heads.items():
            note_for(name, rows=len(x) - JUDGE, parameters=10 * width * widths)
        worse, better = worse_and_better(heads, halves, label)
        found, noisy, told = (
            _scores(encoders, views, names, seed)
            for views, names in (
                (halves, label),
                ((halves[0], noise), label),
                (halves, label[lot]),
            )
        )
        tick("depths")
        steps = TINY // 20 if tiny else STEPS
        tried = dict[str, list[dict[str, float]]]()
        for arm, at in DEPTHS.items():
            with part(arm):
                tried[arm] = joined_at(at, halves, label, seed, steps)
        tick("heads")
        heads_at = joined_heads(seed, tiny)
        joined = {arm: judged for arm, (_, judged) in tried.items()}
        end = max(("early", "late"), key=lambda arm: tried[arm][0]["both"])
        by_lot = {
            a: joined_at(DEPTHS[a], halves, label[lot], seed, steps)[1] for a in ("early", "late")
        }
        return {
            "three heads": found["three heads"][worse] - found["one head"][worse],
            "left out": found["one head, views left out"][worse] - found["one head"][worse],
            "both": found["one head"]["both"] - found["three heads"][better],
            "depth": joined["late"][worse] - joined["early"][worse],
            "middle": joined["middle"]["both"] - joined[end]["both"],
            "everywhere": joined["everywhere"]["both"] - joined["late"]["both"],
            **heads_at,
            "noise": noisy["three heads"]["up alone"] - noisy["one head"]["both"],
            "lot": told["three heads"][worse]
            - told["one head"][worse]
            + by_lot["late"][worse]
            - by_lot["early"][worse],
            **{f"{arm} | {c}": v for arm, s in (found | joined).items() for c, v in s.items()},
        }


def joined_heads(seed: int, tiny: bool) -> dict[str, float]:
    """Return what three heads on streams that are joined at three depths gain over their mean.

    The worse view is the one with which the mean of both streams names fewer of the choosing rows.
    """
    x, label = shuffled_digits(seed)
    halves, at = (x[:, :32], x[:, 32:]), DEPTHS["everywhere"]
    steps = TINY // 20 if tiny else STEPS
    with part("everywhere, mean"):
        chosen, mean = joined_at(at, halves, label, seed, steps)
    with part("everywhere, three heads"):
        _, heads = joined_at(at, halves, label, seed, steps, three_heads=True)
    worse = min(("up alone", "down alone"), key=lambda case: chosen[case])
    return {
        "joined heads": heads[worse] - mean[worse] + 0.01,
        "joined both": heads["both"] - mean["both"],
        **{f"everywhere, three heads | {case}": v for case, v in heads.items()},
    }


def worse_and_better(
    heads: list[Model], views: tuple[Tensor, ...], label: Tensor
) -> tuple[str, str]:
    """Return the cases of one view in the order of what its own net names of the choosing rows."""
    rows = slice(FIT, JUDGE)
    with torch.no_grad():
        up, down = (
            float((net.module(view[rows]).argmax(1) == label[rows]).double().mean())  # pyright: ignore
            for net, view in zip(heads, views, strict=True)
        )
    return ("down alone", "up alone") if down < up else ("up alone", "down alone")


def _scores(
    encoders: list[Model], views: tuple[Tensor, ...], label: Any, seed: int
) -> dict[str, Any]:
    rows = [
        {"up": a, "down": b, "label": int(c)}
        for a, b, c in zip(views[0][JUDGE:], views[1][JUDGE:], label[JUDGE:], strict=True)
    ]
    found = missing_view(
        encoders[0], encoders[1], rows, views=("up", "down"), seed=seed, progress=False
    )
    return {row["fusion"]: {k: v for k, v in row.items() if k != "fusion"} for row in found.rows}
