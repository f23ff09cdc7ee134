"""Test whether fusion of two halves of a digit works without one of them.

The encoders are small nets that learned to name a digit from its upper and from its lower half. The
map from two halves to a face seen by two sensors is long; what carries over is the comparison of
ways to fuse, not the figures.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model
from sonde.layers import Exchange
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.recipes.missing_view import missing_view
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, TINY, STEPS, DROPPED = 700, 200, 400, 0.3
CASES = {"both": (True, True), "up alone": (True, False), "down alone": (False, True)}
DEPTHS = {"early": (0,), "middle": (1,), "late": (2,), "everywhere": (0, 1, 2)}


@final
class MissingViewStudy(Study):
    """The upper and the lower half of a digit, fused in four ways and at three depths."""

    name = "missing-view"
    title = "which fusion of two views survives without one of them?"
    fidelity = "linear heads on frozen encoders; the nets that are joined at a depth train whole"
    data = "digits in halves: 700 to train the encoders, 1,097 for heads and figures"
    claims = (
        Claim("three heads", "Without one view three heads lose less than one head on both.",
              "accuracy with the worse view alone, three heads less one head"),
        Claim("left out", "So does one head that is trained with views left out at random.",
              "accuracy with the worse view alone, views left out less one head"),
        Claim("both", "Fusion beats the better view alone, with both present.",
              "accuracy of one head with both views less that of the better view's own head"),
        Claim("depth", "Streams that are joined late lose less without a view than early ones.",
              "accuracy with the worse view alone, late less early"),
        Claim("middle", "Joined in the middle they are better with both than early or late.",
              "accuracy with both views, middle less the better of early and late"),
        Claim("everywhere", "Joined at three depths they are better with both than late alone.",
              "accuracy with both views, three depths less late"),
    )  # fmt: skip
    null = Claim("noise", "Of two second views of noise none is better.",
                 "accuracy of one head with both views, one noise less another")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an encoder for each half, run the recipe, and once with noise as one half."""
        tick("train")
        x, label = shuffled_digits(seed)
        n = TINY if tiny else FIT
        halves = x[:, :32], x[:, 32:]
        heads = [learned(mlp(32), half[:n], label[:n], seed) for half in halves]
        encoders = [Model(nn.Sequential(*list(net.module.children())[:-1]).eval()) for net in heads]  # pyright: ignore
        tick("fuse")
        draw = torch.Generator().manual_seed(seed)
        noise = torch.rand(2, len(x), 32, generator=draw)
        found, *null = (
            _scores(encoders, [halves[0], other], label, seed) for other in (halves[1], *noise)
        )
        tick("depths")
        steps = TINY // 20 if tiny else STEPS
        joined = {arm: _joined(at, halves, label, seed, steps) for arm, at in DEPTHS.items()}
        early, middle, late, whole = joined.values()
        gone = min(("up alone", "down alone"), key=lambda c: early[c])
        worse = min(("up alone", "down alone"), key=lambda c: found["one head"][c])
        ends = [found["three heads"][c] for c in ("up alone", "down alone")]
        return {
            "three heads": found["three heads"][worse] - found["one head"][worse],
            "left out": found["one head, views left out"][worse] - found["one head"][worse],
            "both": found["one head"]["both"] - max(ends),
            "depth": late[gone] - early[gone],
            "middle": middle["both"] - max(early["both"], late["both"]),
            "everywhere": whole["both"] - late["both"],
            "noise": null[0]["one head"]["both"] - null[1]["one head"]["both"],
            **{
                f"{arm} | {case}": v for arm, s in (found | joined).items() for case, v in s.items()
            },
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


class _Streams(nn.Module):
    """Two nets of two layers whose states are fused at some depths; answers are averaged."""

    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__()
        self.joins = nn.ModuleDict({str(i): Exchange("concat_gate", 32) for i in depths})
        self.layers = nn.ModuleList(
            nn.ModuleList(nn.Linear(32, 10 if i == 2 else 32) for i in range(3)) for _ in range(2)
        )

    def forward(self, views: tuple[Tensor, ...], present: Tensor) -> Tensor:
        h = [view[:, None] for view in views]
        for i in range(3):
            if str(i) in self.joins:
                h = self.joins[str(i)](*h, present=tuple(present.T))
            h = [stream[i](x) for stream, x in zip(self.layers, h, strict=True)]  # pyright: ignore
            h = [torch.relu(x) for x in h] if i < 2 else h
        weight = present.to(h[0]) / present.sum(1, keepdim=True)
        return sum(w[:, None] * x.squeeze(1) for w, x in zip(weight.T, h, strict=True))  # pyright: ignore


def _joined(
    depths: tuple[int, ...], views: tuple[Tensor, ...], label: Tensor, seed: int, steps: int
) -> dict[str, float]:
    """Train with views dropped at random, and return the accuracy of each case."""
    net = drawn(lambda: _Streams(depths), seed)

    def loss(rows: Tensor) -> Tensor:
        gone = torch.rand(len(rows))
        present = torch.stack([gone >= DROPPED, gone <= 1 - DROPPED], 1)
        return cross_entropy(net(tuple(v[rows] for v in views), present), label[rows])

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
    held = tuple(v[FIT:] for v in views)
    with torch.no_grad():
        said = {
            case: net(held, torch.tensor([seen] * len(held[0]))).argmax(1)
            for case, seen in CASES.items()
        }
    return {case: float((y == label[FIT:]).double().mean()) for case, y in said.items()}
