"""Fronts of some nets on backs of others: the part that causes a difference.

Perceptrons on digits. In three arms the difference is planted: one net's front sees a quarter of
the pixels, one net's back learned wrong names for some digits, or noise was added to the weights of
one net's first layer. The noise is planted in a copy of a net, which needs no map, and in one of
three nets of other seeds, where a map to the damaged states makes the back look bad.
"""

import copy
from typing import final

import torch
from torch import Tensor, nn

from sonde import Model
from sonde.report import Answer
from sonde_studies._recipe_data import Part, items_of, shuffled_digits
from sonde_studies.arms import note_for
from sonde_studies.recipes.stage_swap import stage_swap
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels

FIT, STEPS, TINY, WIDTH = 700, 400, 20, 64
NETS, NOISE, FRONT = 3, 3.0, "the front differs"


@final
class StageSwapStudy(Study):
    """Three nets of other seeds, and three among which one has a poor front or a poor back."""

    name = "stage-swap"
    title = "which part makes nets differ, the front or the back?"
    paper = "bansal2021stitching"
    fidelity = "nets of one width and two stages; the map is a ridge solution"
    data = "digits: 700 to train on; 1,097 for the recipe, half of which fit maps"
    claims = (
        Claim("map",
              "With a linear map, fitted on half of the rows, nets of other seeds hand over, to "
              "five points.",
              "accuracy of swapped nets less that of the nets as they are, and 0.05",
              arms=("swapped", "as they are")),
        Claim("front", "Where one front sees a quarter of the pixels, fronts make the difference.",
              "share of the table's variance, fronts less backs",
              arms=("fronts", "backs")),
        Claim("back", "Where one back learned wrong names, backs make more of it than by seeds.",
              "share of the variance, backs less fronts, less that of nets of other seeds",
              arms=("backs", "fronts")),
        Claim("equal", "Of nets that differ by their seed alone fronts make no less than backs.",
              "share of the variance, fronts less backs, mean of two sets",
              arms=("fronts", "backs")),
        Claim("mapped", "Noise in one front of three seeds is blamed on the front through a map.",
              "share of the table's variance, fronts less backs",
              arms=("fronts", "backs")),
        Claim("verdict", "There the recipe's verdict names the front more often than without "
              "noise, by half.",
              "share of three noises for which it does, less that without noise, less 0.5",
              arms=("with noise", "no noise")),
    )  # fmt: skip
    null = Claim("reordered", "A net and a copy with its units in another order hand over freely.",
                 "accuracy of the net less that of the copy's front on its back")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train nets, and run the recipe on three at a time."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        tick("train")
        nets = [_trained(x, label, 10 * seed + i, steps) for i in range(NETS)]
        quarter = torch.arange(64).reshape(8, 8)[:4, 2:6].flatten()
        blind = _trained(x, label, 10 * seed + 3, steps, columns=quarter)
        back = drawn(lambda: nn.Sequential(nn.Linear(WIDTH, 10)), 10 * seed + 4)
        wrong = nn.Sequential(nets[2][0], back)
        renamed = torch.where(label < 4, (label + 1) % 4, label)
        learn_labels(wrong, x[:FIT], renamed[:FIT], steps=steps, seed=10 * seed + 4, part=back)
        others = [_trained(x, label, 10 * seed + i, steps) for i in range(5, 8)]
        noisy = [_with_noise(nets[0], 10 * seed + i) for i in range(3)]
        arms = {"seeds": nets, "other seeds": others, "front": [*nets[:2], blind],
                "back": [*nets[:2], wrong], "noise": [nets[0], noisy[0]],
                "reordered": [nets[0], reordered(nets[0], seed)]}  # fmt: skip
        arms |= {f"noise {i}": [*nets[1:], net] for i, net in enumerate(noisy)}
        found: dict[str, Answer] = {}
        for arm, some in arms.items():
            tick(arm)
            found[arm] = swapped(some, x[FIT:], label[FIT:], seed)
        sides = {"fronts": FIT, "backs": FIT, "as they are": 0, "swapped": (len(x) - FIT) // 2}
        for name, rows in (sides | {"with noise": len(x) - FIT, "no noise": len(x) - FIT}).items():
            note_for(name, rows=rows)
        tables = {arm: _table(answer) for arm, answer in found.items()}
        shares = {arm: _shares(table) for arm, table in tables.items()}
        gap = {arm: front - back for arm, (front, back) in shares.items()}
        mapped = [f"noise {i}" for i in range(len(noisy))]
        own, equal = tables["seeds"], (gap["seeds"] + gap["other seeds"]) / 2

        def named(some: list[str]) -> float:
            return sum(found[arm].verdict == FRONT for arm in some) / len(some)

        return {
            "map": _swapped(own) - float(own.diagonal().mean()) + 0.05,
            "front": gap["front"],
            "back": equal - gap["back"],
            "equal": equal,
            "mapped": sum(gap[arm] for arm in mapped) / len(mapped),
            "verdict": named(mapped) - named(["seeds", "other seeds"]) - 0.5,
            "reordered": lost_by_swap(found["reordered"]),
            **{f"{arm} | accuracy as they are": float(t.diagonal().mean())
               for arm, t in tables.items()},
            **{f"{arm} | accuracy swapped": _swapped(t) for arm, t in tables.items()},
            **{f"{arm} | fronts less backs": v for arm, v in gap.items()},
        }  # fmt: skip


def swapped(nets: list[nn.Sequential], x: Tensor, label: Tensor, seed: int) -> Answer:
    """Return the recipe's answer on two or three nets."""
    first, second, *rest = [Model(net.eval()) for net in nets]
    items, third = items_of(x, label), rest[0] if rest else None
    return stage_swap(first, second, items, third=third, sites="0", seed=seed, progress=False)


def lost_by_swap(answer: Answer) -> float:
    """Return the first net's accuracy, less that of the second's front on its back."""
    table = _table(answer)
    return float(table[0, 0] - table[1, 0])


def reordered(net: nn.Sequential, seed: int) -> nn.Sequential:
    """Return a copy that answers alike, whose units between front and back are in another order."""
    same = copy.deepcopy(net)
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(seed))
    front, back = same[0].get_submodule("2"), same[1].get_submodule("0")
    with torch.no_grad():
        for weight in front.parameters():
            weight.copy_(weight[order])
        weight = back.get_parameter("weight")
        weight.copy_(weight[:, order])
    return same


def _swapped(table: Tensor) -> float:
    return float(table[~torch.eye(len(table), dtype=torch.bool)].mean())


def _with_noise(net: nn.Sequential, seed: int) -> nn.Sequential:
    """Return a copy with noise in the weights of the first layer, in their standard deviations."""
    damaged = copy.deepcopy(net)
    (weight, *_) = damaged[0].parameters()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight += NOISE * weight.std() * torch.randn(weight.shape, generator=draw)
    return damaged


def _table(answer: Answer) -> Tensor:
    return torch.tensor(
        [[v for k, v in row.items() if k.startswith("back")] for row in answer.rows],
        dtype=torch.float64,
    )


def _shares(table: Tensor) -> tuple[float, float]:
    """Return the variance of a table that fronts and backs explain."""
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
    learn_labels(net, x[:FIT], label[:FIT], steps=steps, seed=seed)
    return net
