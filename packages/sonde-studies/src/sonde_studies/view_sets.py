"""Sets of views of one image: attention over the set against a maximum, a mean and a vote.

Digits seen through random windows by one encoder; more views than in training are asked too.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model
from sonde.report import Answer
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.recipes.view_sets import view_sets
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DIM, VIEWS, FEW = 700, 400, 10, 32, 12, 120


@final
class ViewSetsStudy(Study):
    """A digit from twelve windows of it, with five ways to combine the windows' states."""

    name = "view-sets"
    title = "is attention over a set of views worth it, and does it bear other set sizes?"
    paper = "sun2024vsformer"
    fidelity = "views are windows with noise; one attention layer on an encoder that stays as it is"
    data = "digits through windows of 5 x 5 pixels: 700 for the encoder, 1,097 for the recipe"
    claims = (
        Claim("attention", "Attention over the set, which has more parameters, beats a linear "
              "head on the maximum.",
              "accuracy at four views less that of the maximum",
              arms=("attention, 4 views", "maximum, 4 views")),
        Claim("triples", "Attention of order three, with a fifth more parameters, beats that of "
              "order two.",
              "accuracy at four views, order three less two",
              arms=("attention, order 3, 4 views", "attention, 4 views")),
        Claim("vote", "Attention, which has more parameters, beats the vote of single views.",
              "accuracy at four views less that of the vote",
              arms=("attention, 4 views", "vote, 4 views")),
        Claim("more", "Twelve views, three times the passes, are named better than four, though "
              "training had four.",
              "accuracy of attention at twelve views less at four",
              arms=("attention, 12 views", "attention, 4 views")),
    )  # fmt: skip
    null = Claim("lots", "Labels by lot are not told of other digits.",
                 "accuracy of attention at four views, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train an encoder of single views, and run the recipe, also on labels by lot."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        net = drawn(_Encoder, seed)
        tick("encoder")

        def loss(rows: Tensor) -> Tensor:
            return cross_entropy(net(_views(x[rows], 1, None)[:, 0]), label[rows])

        minimise(loss, net.parameters(), FIT, steps=TINY if tiny else STEPS, seed=seed)
        rest = slice(FIT, FIT + FEW if tiny else None)
        tick("windows")
        views = _views(x[rest], VIEWS, draw)
        own = _asked(net.eval(), views, label[rest], seed)
        tick("labels by lot")
        lots = by_lot(net, x[rest], views, seed)
        four = {join: row["4 views"] for join, row in own.items()}
        return {
            "attention": four["attention"] - four["maximum"],
            "triples": four["attention, order 3"] - four["attention"],
            "vote": four["attention"] - four["vote"],
            "more": own["attention"]["12 views"] - four["attention"],
            "lots": lots,
            **{f"{join} | {k}": v for join, row in own.items() for k, v in row.items()},
        }


class _Encoder(nn.Module):
    """A perceptron that reads a window and its position."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(27, 64), nn.ReLU(), nn.Linear(64, DIM), nn.ReLU())
        self.head = nn.Linear(DIM, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def by_lot(net: nn.Module, x: Tensor, views: Tensor, seed: int) -> float:
    """Return the accuracy of attention on digits' labels by lot, less that of chance."""
    return _asked(net, views, labels_by_lot(x, 10, seed), seed)["attention"]["4 views"] - 0.1


def _asked(net: nn.Module, views: Tensor, label: Tensor, seed: int) -> dict[str, Any]:
    rows = [
        {"view": view, "set": i, "label": int(label[i])}
        for i, own in enumerate(views)
        for view in own
    ]
    found: Answer = view_sets(Model(net), rows, site="body", seed=seed, progress=False)
    return {str(row["join"]): {k: v for k, v in row.items() if k != "join"} for row in found.rows}


def _views(x: Tensor, n: int, draw: torch.Generator | None) -> Tensor:
    """Return windows of each digit with their positions: (row, view, 27)."""
    pictures = x.reshape(-1, 8, 8).unfold(1, 5, 1).unfold(2, 5, 1)  # (row, 4, 4, 5, 5)
    high, wide = (torch.randint(4, (len(x), n), generator=draw) for _ in range(2))
    rows = torch.arange(len(x))[:, None]
    seen = pictures[rows, high, wide].flatten(2)
    noise = 0.2 * torch.randn(seen.shape, generator=draw)
    place = torch.stack([high, wide], 2).float() / 3
    return torch.cat([seen + noise, place], 2)
