"""A kernel bottleneck for regression: error, error under noise, and information kept.

The bundled diabetes table, with two layers below the site. The widths of the kernels are medians,
or ten times as large: the authors' code has far wider kernels than medians give.
"""

from typing import final

import torch
from sklearn.datasets import load_diabetes  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.measure import cauchy_schwarz_information
from sonde.train import CauchySchwarzBottleneck
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, NOISE, WIDE = 260, 300, 10, 0.5, 10.0
ARMS = {"squares": 0.0, "divergence": 0.0, "bottleneck": 0.05, "wide": 0.05}
"""Weights of the information."""


@final
class BottleneckRegressionStudy(Study):
    """Diabetes regression by squared error, by divergence given the input, with the bottleneck."""

    name = "bottleneck-regression"
    title = "does a kernel bottleneck make a regression bear more noise?"
    paper = "yu2024csib"
    fidelity = "one strength; widths frozen at the first batch"
    data = "diabetes: 260 rows to train on, 182 to judge, normal noise added in the test"
    place = "tables"
    claims = (
        Claim("keeps", "The bottleneck keeps less of the input at its site.",
              "information in nats, without the bottleneck less with it",
              arms=("bottleneck", "divergence")),
        Claim("error", "The bottleneck errs no more than squared errors do, to 0.03.",
              "R^2 of the bottleneck less that of squares, and 0.03",
              arms=("bottleneck", "squares")),
        Claim("noise", "Under noise in the inputs it errs less.",
              "R^2 under noise, bottleneck less squares",
              arms=("bottleneck", "squares")),
        Claim("wide", "With kernels ten times as wide it errs less.",
              "R^2 of the bottleneck, wide kernels less medians",
              arms=("wide", "bottleneck")),
    )  # fmt: skip
    null = Claim("shuffled", "Targets of other rows are not learned.",
                 "correlation of prediction and target in new rows, bottleneck")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with each loss; and once on shuffled targets."""
        x, y = _table(seed)
        steps = TINY if tiny else STEPS
        found: dict[str, dict[str, float]] = {}
        for arm in ARMS:
            tick(arm)
            found[arm] = _judged(arm, x, y, seed, steps)
        other = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
        tick("shuffled")
        null = _judged("bottleneck", x, other, seed, steps)["correlation"]
        squares, least = found["squares"], found["bottleneck"]
        return {
            "keeps": found["divergence"]["kept"] - least["kept"],
            "error": least["R^2"] - squares["R^2"] + 0.03,
            "noise": least["R^2, noise"] - squares["R^2, noise"],
            "wide": found["wide"]["R^2"] - least["R^2"],
            "shuffled": null,
            **{f"{arm} | {k}": v for arm, row in found.items() for k, v in row.items()},
        }


def _table(seed: int) -> tuple[Tensor, Tensor]:
    found = load_diabetes()
    order = torch.randperm(442, generator=torch.Generator().manual_seed(seed))
    x = torch.from_numpy(found.data).float()[order]  # pyright: ignore
    y = torch.from_numpy(found.target).float()[order]  # pyright: ignore
    return x / x.std(0), ((y - y.mean()) / y.std()).unsqueeze(1)


def _judged(arm: str, x: Tensor, y: Tensor, seed: int, steps: int) -> dict[str, float]:
    def make() -> nn.Sequential:
        layers = [nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 8), nn.Tanh()]
        return nn.Sequential(*layers, nn.Linear(8, 1))

    net = drawn(make, seed)
    bottleneck = CauchySchwarzBottleneck(ARMS[arm])
    if arm == "wide":
        with torch.no_grad():
            states = net[:4](x[:FIT])
            bottleneck(states, x[:FIT], logits=net[4](states), label=y[:FIT])  # finds medians
        bottleneck.widths.mul_(WIDE)

    def loss(rows: Tensor) -> Tensor:
        states = net[:4](x[rows])
        said = net[4](states)
        if arm == "squares":
            return mse_loss(said, y[rows])
        return bottleneck(states, x[rows], logits=said, label=y[rows])

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
    draw, held = torch.Generator().manual_seed(seed), x[FIT:]
    noisy = held + NOISE * torch.randn(held.shape, generator=draw)
    with torch.no_grad():
        truth, said = y[FIT:], [net(held), net(noisy)]
        r2 = [1 - float(mse_loss(v, truth) / truth.var(correction=0)) for v in said]
        kept = cauchy_schwarz_information(held, net[:4](held))
        both = torch.corrcoef(torch.cat([said[0], truth], 1).T)
    r, score = float(both[0, 1]), {"R^2": r2[0], "R^2, noise": r2[1]}
    return {**score, "kept": float(kept.value), "correlation": r}
