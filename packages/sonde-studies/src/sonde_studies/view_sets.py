"""Sets of views of one picture: attention over the set against a maximum and a mean.

Digits seen through random windows; sets of more views than in training are asked too.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import Attention, Readout
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DIM, TRAINED = 1_000, 500, 10, 24, 4
SIZES = (1, 2, 4, 8, 12)
ARMS = ("max", "mean", "attention", "pairs")


@final
class ViewSetsStudy(Study):
    """A digit from four windows of it, by four ways to join them."""

    name = "view-sets"
    title = "is attention over a set of views worth it, and does it bear other set sizes?"
    paper = "sun2024vsformer"
    fidelity = "views are windows with noise; one attention layer, of order two or three"
    data = "digits through windows of 5 x 5 pixels; sets of four in training"
    claims = (
        Claim("attention", "Attention over the set beats the maximum.",
              "accuracy at four views less that of the maximum"),
        Claim("pairs", "Attention of order three beats that of order two.",
              "accuracy at four views, order three less two"),
        Claim("more", "Twelve views are named better than four, though training had four.",
              "accuracy of attention at twelve views less at four"),
        Claim("order", "The order of the views changes nothing.",
              "1e-4 less the largest change of a logit"),
    )  # fmt: skip
    null = Claim("one view", "Twelve copies of one view say no more than it.",
                 "accuracy of attention at twelve copies less at one view")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each way on sets of four, judge at all sizes."""
        x, label = shuffled_digits(seed)
        found, moved, copies = dict[str, dict[int, float]](), 0.0, 0.0
        for arm in ARMS:
            tick(arm)
            net = drawn(lambda arm=arm: _Net(arm), seed)

            def loss(rows: Tensor, net: nn.Module = net) -> Tensor:
                return cross_entropy(net(_views(x[rows], TRAINED, None)), label[rows])

            steps = TINY if tiny else STEPS
            minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
            net.eval()
            draw = torch.Generator().manual_seed(seed)
            views = _views(x[FIT:], max(SIZES), draw)
            with torch.no_grad():
                found[arm] = {n: _right(net(views[:, :n]), label[FIT:]) for n in SIZES}
                if arm == "attention":
                    moved = float((net(views) - net(views.flip(1))).abs().max())
                    same = _right(net(views[:, :1].expand_as(views)), label[FIT:])
                    copies = same - found[arm][1]
        own = found["attention"]
        return {
            "attention": own[TRAINED] - found["max"][TRAINED],
            "pairs": found["pairs"][TRAINED] - own[TRAINED],
            "more": own[max(SIZES)] - own[TRAINED],
            "order": 1e-4 - moved,
            "one view": copies,
            **{f"{arm} | {n} views": v for arm, row in found.items() for n, v in row.items()},
        }


class _Net(nn.Module):
    def __init__(self, arm: str) -> None:
        super().__init__()
        self.arm = arm
        self.first = nn.Sequential(nn.Linear(27, 64), nn.ReLU(), nn.Linear(64, DIM))
        order = 3 if arm == "pairs" else 2
        self.mix = Attention(DIM, 4, order=order) if arm in ("attention", "pairs") else None
        self.join = Readout([DIM], DIM, "queries") if self.mix is not None else None
        self.last = nn.Sequential(nn.ReLU(), nn.Linear(DIM, 10))

    def forward(self, views: Tensor) -> Tensor:
        h = self.first(views)
        if self.mix is None or self.join is None:
            return self.last(h.amax(1) if self.arm == "max" else h.mean(1))
        return self.last(self.join(self.mix(h))[:, 0])


def _views(x: Tensor, n: int, draw: torch.Generator | None) -> Tensor:
    """Return windows of each digit with where they lie: (row, view, 27)."""
    pictures = x.reshape(-1, 8, 8).unfold(1, 5, 1).unfold(2, 5, 1)  # (row, 4, 4, 5, 5)
    high, wide = (torch.randint(4, (len(x), n), generator=draw) for _ in range(2))
    rows = torch.arange(len(x))[:, None]
    seen = pictures[rows, high, wide].flatten(2)
    noise = 0.2 * torch.randn(seen.shape, generator=draw)
    place = torch.stack([high, wide], 2).float() / 3
    return torch.cat([seen + noise, place], 2)


def _right(logits: Tensor, label: Tensor) -> float:
    return float((logits.argmax(1) == label).double().mean())
