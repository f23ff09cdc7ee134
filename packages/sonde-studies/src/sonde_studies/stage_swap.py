"""Fronts of some nets on backs of others: which part makes the difference.

Perceptrons on digits. In two arms the difference is planted: one net's front sees a quarter of the
pixels, or one net's back learned wrong names for some digits.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model
from sonde.report import Answer
from sonde_studies._recipe_data import Part, items_of, shuffled_digits
from sonde_studies.recipes.stage_swap import stage_swap
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, WIDTH = 700, 400, 20, 64
NETS = 3


@final
class StageSwapStudy(Study):
    """Three nets of other seeds, three with a poor front among them, three with a poor back."""

    name = "stage-swap"
    title = "which part makes nets differ, the front or the back?"
    paper = "bansal2021stitching"
    fidelity = "nets of one width and two stages; the map is a ridge solution"
    data = "digits: 700 to train on; 1,097 for the recipe, half of which fit maps"
    claims = (
        Claim("map", "With a linear map nets of other seeds hand over, to five points.",
              "accuracy of swapped nets less that of the nets as they are, and 0.05"),
        Claim("front", "Where one front sees a quarter of the pixels, fronts make the difference.",
              "share of the table's variance, fronts less backs"),
        Claim("back", "Where one back learned wrong names, backs make it.",
              "share of the table's variance, backs less fronts"),
    )  # fmt: skip
    null = Claim("seeds", "Where nets differ by their seed alone, fronts make no more than backs.",
                 "share of the table's variance, fronts less backs")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train nets, and ask the recipe of three at a time."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        tick("train")
        nets = [_trained(x, label, 10 * seed + i, steps) for i in range(NETS)]
        quarter = torch.arange(64).reshape(8, 8)[:4, 2:6].flatten()
        blind = _trained(x, label, 10 * seed + 3, steps, columns=quarter)
        back = drawn(lambda: nn.Sequential(nn.Linear(WIDTH, 10)), 10 * seed + 4)
        wrong = nn.Sequential(nets[2][0], back)
        others = torch.where(label < 4, (label + 1) % 4, label)
        _learn(wrong, x, others, 10 * seed + 4, steps, wrong[1])
        arms = {"seeds": nets, "front": [*nets[:2], blind], "back": [*nets[:2], wrong]}
        found: dict[str, Answer] = {}
        for arm, three in arms.items():
            tick(arm)
            models = [Model(net.eval()) for net in three]
            items = items_of(x[FIT:], label[FIT:])
            found[arm] = stage_swap(
                models[0], models[1], items, third=models[2], sites="0", seed=seed, progress=False
            )
        tables = {arm: _table(answer) for arm, answer in found.items()}
        shares = {arm: _shares(table) for arm, table in tables.items()}
        other = ~torch.eye(NETS, dtype=torch.bool)
        own = tables["seeds"]
        return {
            "map": float(own[other].mean() - own.diagonal().mean()) + 0.05,
            "front": shares["front"][0] - shares["front"][1],
            "back": shares["back"][1] - shares["back"][0],
            "seeds": shares["seeds"][0] - shares["seeds"][1],
            **{f"{arm} | accuracy as they are": float(t.diagonal().mean())
               for arm, t in tables.items()},
            **{f"{arm} | accuracy swapped": float(t[other].mean()) for arm, t in tables.items()},
        }  # fmt: skip


def _table(answer: Answer) -> Tensor:
    return torch.tensor(
        [[v for k, v in row.items() if k.startswith("back")] for row in answer.rows],
        dtype=torch.float64,
    )


def _shares(table: Tensor) -> tuple[float, float]:
    """Return what fronts and backs make of the variance of a table."""
    rest = table - table.mean()
    total = float(rest.square().sum().clamp(min=1e-12))
    sides = (float(len(table) * rest.mean(i).square().sum()) / total for i in (1, 0))
    front, back = sides
    return front, back


def _trained(
    x: Tensor, label: Tensor, seed: int, steps: int, columns: Tensor | None = None
) -> nn.Sequential:
    def made() -> nn.Sequential:
        dim = 64 if columns is None else len(columns)
        inner = nn.Sequential(nn.Linear(dim, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
        front = inner if columns is None else Part(columns, inner)
        return nn.Sequential(front, nn.Sequential(nn.Linear(WIDTH, 10)))

    net = drawn(made, seed)
    _learn(net, x, label, seed, steps, net)
    return net.eval()


def _learn(
    net: nn.Module, x: Tensor, label: Tensor, seed: int, steps: int, moving: nn.Module
) -> None:
    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(net(x[rows]), label[rows])

    minimise(loss, moving.parameters(), FIT, steps=steps, seed=seed)
