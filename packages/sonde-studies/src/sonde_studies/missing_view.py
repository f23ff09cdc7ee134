"""Does fusion of two halves of a digit survive without one of them.

The encoders are small nets that learned to name a digit from its upper and from its lower half. The
map from two halves to a face seen by two sensors is long; what carries over is the comparison of
ways to fuse, not the figures.
"""

from typing import Any, final

import torch
from torch import nn

from sonde import Model
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.recipes.missing_view import missing_view
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, TINY = 700, 200


@final
class MissingViewStudy(Study):
    """The upper and the lower half of a digit, fused in four ways by the recipe."""

    name = "missing-view"
    title = "which fusion of two views survives without one of them?"
    fidelity = "linear heads on frozen encoders; the papers train encoders and heads together"
    data = "digits in halves: 700 to train the encoders, 1,097 for heads and figures"
    claims = (
        Claim(
            "three heads",
            "Without one view three heads lose less than one head on both.",
            "accuracy with the worse view alone, three heads less one head",
        ),
        Claim(
            "left out",
            "So does one head that is trained with views left out at random.",
            "accuracy with the worse view alone, views left out less one head",
        ),
        Claim(
            "both",
            "Fusion beats the better view alone, with both present.",
            "accuracy of one head with both views less that of the better view's own head",
        ),
    )
    null = Claim(
        "noise",
        "A second view of noise adds nothing to the first.",
        "accuracy with both views less that of the first view's own head",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an encoder for each half, ask the recipe, and once with noise for a half."""
        tick("train")
        x, label = shuffled_digits(seed)
        n = TINY if tiny else FIT
        halves = x[:, :32], x[:, 32:]
        heads = [learned(mlp(32), half[:n], label[:n], seed) for half in halves]
        encoders = [Model(nn.Sequential(*list(net.module.children())[:-1]).eval()) for net in heads]  # pyright: ignore
        tick("fuse")
        noise = torch.rand(x.shape[0], 32, generator=torch.Generator().manual_seed(seed))
        found, null = (
            _scores(encoders, [halves[0], other], label, seed) for other in (halves[1], noise)
        )
        worse = min(("up alone", "down alone"), key=lambda c: found["one head"][c])
        ends = [found["three heads"][c] for c in ("up alone", "down alone")]
        return {
            "three heads": found["three heads"][worse] - found["one head"][worse],
            "left out": found["one head, views left out"][worse] - found["one head"][worse],
            "both": found["one head"]["both"] - max(ends),
            "noise": null["one head"]["both"] - null["three heads"]["up alone"],
            **{f"{arm} | {case}": v for arm, s in found.items() for case, v in s.items()},
        }


def _scores(encoders: list[Model], views: list[Any], label: Any, seed: int) -> dict[str, Any]:
    rows = [
        {"up": a, "down": b, "label": int(c)}
        for a, b, c in zip(views[0][FIT:], views[1][FIT:], label[FIT:], strict=True)
    ]
    found = missing_view(
        encoders[0], encoders[1], rows, views=("up", "down"), seed=seed, progress=False
    )
    return {row["fusion"]: {k: v for k, v in row.items() if k != "fusion"} for row in found.rows}
