"""Column rankings: agreement of methods, deletion tests, and planted columns.

Regressions on the diabetes table of scikit-learn, and on a target that is a known sum.
"""

from itertools import combinations
from statistics import fmean
from typing import Any, final

import torch
from scipy.stats import spearmanr  # pyright: ignore[reportMissingTypeStubs]
from sklearn.datasets import load_diabetes  # pyright: ignore[reportUnknownVariableType]
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde import Model
from sonde.report import Answer
from sonde_studies.recipes.tabular_attribution import tabular_attribution
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, LOTS = 300, 400, 15, 4
METHODS = ("permutation", "integrated gradients", "Shapley", "column at its mean")


@final
class TabularAttributionStudy(Study):
    """Nets on the real target, on a planted sum, and on shuffled targets."""

    name = "tabular-attribution"
    title = "do rankings of columns agree, and do they find what is planted?"
    fidelity = "the paper explains one model of one process; here four methods are tested"
    data = "442 patients of scikit-learn's diabetes table: 300 to train on, 142 to explain"
    place = "tables"
    claims = (
        Claim("planted", "On a planted sum the ranking is that of its weights.",
              "rank correlation of Shapley values with the sizes of the weights, less 0.9"),
        Claim("seeds", "Two nets of other seeds rank the real columns alike.",
              "rank correlation of Shapley values of two nets, less 0.7"),
        Claim("deletion", "Shapley values find sooner than permutation what moves the answers.",
              "area under what answers move, Shapley values less permutation, which takes fewer "
              "passes",
              arms=("Shapley", "permutation")),
    )  # fmt: skip
    null = Claim("chance", "Nets that learned from shuffled targets rank columns by chance.",
                 "rank correlation of Shapley values, mean over pairs of four nets")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, and run the recipe on each net."""
        found: Any = load_diabetes(scaled=False)
        x = torch.from_numpy(found.data).float()
        x, y = (x - x.mean(0)) / x.std(0), torch.from_numpy(found.target).float()
        draw = torch.Generator().manual_seed(seed)
        rows = torch.randperm(len(x), generator=draw)
        x, y = x[rows], ((y - y.mean()) / y.std())[rows]
        weight = torch.randperm(10, generator=draw).float() - 4.5
        # columns of one's own: of real columns that repeat one another no ranking is true
        own = torch.randn(x.shape, generator=draw)
        steps = TINY if tiny else STEPS
        lots = [torch.randperm(len(x), generator=draw) for _ in range(LOTS)]
        asked: dict[str, Answer] = {}
        for name, (inputs, target, first) in {
            "real": (x, y, seed), "real, other seed": (x, y, seed + 100),
            "planted": (own, own @ weight / 9, seed),
            **{f"lot {i}": (own, y[lot], seed + 100 * i) for i, lot in enumerate(lots)},
        }.items():  # fmt: skip
            tick(name)
            net = _trained(inputs[:FIT], target[:FIT], first, steps)
            asked[name] = _asked(net, inputs[FIT:], seed)
        size = {name: _sizes(answer) for name, answer in asked.items()}
        area = {m: float(asked["real"].facts[f"deletion, {m}"]) for m in METHODS}
        return {
            "planted": _alike(size["planted"], weight.abs()) - 0.9,
            "seeds": _alike(size["real"], size["real, other seed"]) - 0.7,
            "deletion": area["Shapley"] - area["permutation"],
            "chance": fmean(
                _alike(size[f"lot {i}"], size[f"lot {j}"]) for i, j in combinations(range(LOTS), 2)
            ),
            **{f"deletion | {m}": v for m, v in area.items()},
            "deletion | random orders": float(torch.as_tensor(asked["real"].null)),
        }


def _trained(x: Tensor, y: Tensor, seed: int, steps: int) -> nn.Sequential:
    net = drawn(lambda: nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1)), seed)
    minimise(
        lambda rows: mse_loss(net(x[rows])[:, 0], y[rows]), net.parameters(), len(x),
        steps=steps, seed=seed,
    )  # fmt: skip
    return net.eval()


def _asked(net: nn.Module, x: Tensor, seed: int) -> Answer:
    return tabular_attribution(Model(net), [{"x": row} for row in x], seed=seed, progress=False)


def _sizes(answer: Answer) -> Tensor:
    """Return each column's fraction of the Shapley values, in column order."""
    found = {str(row["column"]): float(row["Shapley"]) for row in answer.rows}
    return torch.tensor([found[f"column {i}"] for i in range(len(found))])


def _alike(a: Tensor, b: Tensor) -> float:
    return float(spearmanr(a.numpy(), b.numpy()).statistic)  # pyright: ignore
