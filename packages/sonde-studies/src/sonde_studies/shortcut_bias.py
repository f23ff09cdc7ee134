"""Test whether trained nets use an available shortcut more than a linear rule does.

Both features predict nearly alike (.97 and .95), so that a preference shows; the shortcut is eight
or 64 times as long. The best rule leans on each by what it is worth.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from sonde.measure import ShortcutRows, shortcut_bias
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

ROWS, WIDTH, STEPS, REPEATS = 6400, 64, 4000, 2
LONG, LONGER = 8.0, 64.0
DEPTHS = {"linear": 0, "relu": 1, "tanh": 1, "deep": 3}
RATE = {"linear": 0.01, "relu": 3e-3, "tanh": 3e-3, "deep": 3e-3}
"""Of .003 and .01, each net's with the least loss on fresh rows of seed 100 at both lengths. A bias
falls as the loss does: nets that are compared before they stand still differ by their speed."""


@final
class ShortcutBiasStudy(Study):
    """A linear rule, nets of one hidden layer and a net of three, trained until they stand still.

    The rate falls to zero over 4,000 steps on 6,400 rows; ``fresh loss`` shows how near each net is
    to the best rule, of .014.
    """

    name = "shortcut-bias"
    title = "do nets lean on an available shortcut more than it is worth?"
    paper = "hermann2024foundations"
    fidelity = (
        "constants of generator and grid are ours; Adam with a falling rate, two repetitions a "
        "seed; the original also nests features and lets predictivity vary"
    )
    data = (
        "synthetic: two features in 100 units, of predictivity .97 and .95, lengths 1 and 8 or 64"
    )
    seconds = 50.0
    claims = (
        Claim("relu", "A ReLU net leans on a shortcut of length 8 more than a linear rule.",
              "difference of biases; the net has 65 times the parameters",
              arms=("relu", "linear")),
        Claim("tanh", "A tanh net leans on a shortcut of length 8 more than a linear rule.",
              "difference of biases; the net has 65 times the parameters",
              arms=("tanh", "linear")),
        Claim("longer", "A ReLU net leans on a shortcut of length 64 more than a linear rule.",
              "difference of biases; the net has 65 times the parameters",
              arms=("relu, length 64", "linear, length 64")),
        Claim("deep", "Three hidden layers lean on a shortcut of length 8 more than one.",
              "difference of biases; the deep net has 2.3 times the parameters",
              arms=("deep", "relu")),
        Claim("availability", "A ReLU net's bias is larger at a length of 64 than of 8.",
              "difference of biases", arms=("relu, length 64", "relu")),
    )  # fmt: skip
    null = Claim(
        "alike",
        "Two features of equal worth and length: a ReLU net prefers neither.",
        "bias",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each net on each kind of rows."""
        alike = ShortcutRows(core=0.95, shortcut=0.95, availability=1.0)
        worlds = {kind: (kind, ShortcutRows(availability=LONG)) for kind in DEPTHS}
        worlds |= {f"{kind}, length 64": (kind, ShortcutRows(availability=LONGER))
                   for kind in ("linear", "relu")}  # fmt: skip
        found: dict[str, tuple[float, float]] = {}
        for name, (kind, rows) in (worlds | {"alike": ("relu", alike)}).items():
            tick(name)
            runs = [_trained(kind, rows, 100 * seed + i, tiny)
                    for i in range(1 if tiny else REPEATS)]  # fmt: skip
            found[name] = (sum(b for b, _ in runs) / len(runs), sum(x for _, x in runs) / len(runs))
        bias = {name: both[0] for name, both in found.items()}
        return {
            "relu": bias["relu"] - bias["linear"],
            "tanh": bias["tanh"] - bias["linear"],
            "longer": bias["relu, length 64"] - bias["linear, length 64"],
            "deep": bias["deep"] - bias["relu"],
            "availability": bias["relu, length 64"] - bias["relu"],
            "alike": bias["alike"],
            **{f"{name} | bias": b for name, (b, _) in found.items()},
            **{f"{name} | fresh loss": x for name, (_, x) in found.items()},
        }


def _trained(kind: str, rows: ShortcutRows, seed: int, tiny: bool) -> tuple[float, float]:
    """Return the bias of a net that was trained, and its loss on rows that it has not seen."""
    x, label, _ = rows.rows(ROWS // 8 if tiny else ROWS, seed)
    fresh, truth, _ = rows.rows(ROWS, seed + 50_000)
    net, goal = drawn(lambda: _net(kind, rows.dim), seed), label.float()

    def loss(which: Tensor) -> Tensor:
        return binary_cross_entropy_with_logits(net(x[which])[:, 0], goal[which])

    steps = 60 if tiny else STEPS
    minimise(loss, net.parameters(), len(x), steps=steps, seed=seed, rate=RATE[kind], falls=True)
    with torch.no_grad():
        answers: Tensor = net(rows.grid())[:, 0]
        left = binary_cross_entropy_with_logits(net(fresh)[:, 0], truth.float())
    return float(shortcut_bias(answers, rows)), float(left)


def _net(kind: str, dim: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(DEPTHS[kind]):
        layers += [nn.Linear(dim, WIDTH), nn.Tanh() if kind == "tanh" else nn.ReLU()]
        dim = WIDTH
    return nn.Sequential(*layers, nn.Linear(dim, 1))
