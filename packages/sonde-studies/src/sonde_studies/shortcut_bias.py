"""Test whether nets use an available shortcut more than a linear rule, over training.

Both features predict nearly alike (.97 and .95), so that a preference shows; the shortcut is eight
times as long. The best rule leans on each by what it is worth.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional

from sonde.measure import ShortcutRows, shortcut_bias
from sonde_studies.arms import note, note_for
from sonde_studies.study import Claim, Figures, Study, Tick

ROWS, WIDTH, AT = 600, 64, (60, 120, 480, 2000)
REPEATS = 4
RATE = {"linear": 0.03, "relu": 0.01, "tanh": 3e-3}
"""Of five (.001 to .1), each rule's with the least loss on fresh rows after 120 steps, as seeds 100
to 104 have it: at a lower rate a net is behind, and biases fall as the loss does."""


@final
class ShortcutBiasStudy(Study):
    """A linear rule, a ReLU net and a tanh net, over training steps."""

    name = "shortcut-bias"
    title = "do nets lean on an available shortcut more than it is worth?"
    paper = "hermann2024foundations"
    fidelity = (
        "constants of generator and grid are ours; full-batch Adam, four repetitions a seed; the "
        "original trains deeper nets and nests features"
    )
    data = "synthetic: two features in 100 units, of predictivity .97 and .95, lengths 1 and 8"
    claims = (
        Claim(
            "relu, 120",
            "After 120 steps a ReLU net leans on it more than a linear rule.",
            "difference of biases; the net has 65 times the parameters",
            arms=("relu", "linear"),
        ),
        Claim(
            "tanh, 120",
            "After 120 steps a tanh net leans on it more than a linear rule.",
            "difference of biases; the net has 65 times the parameters",
            arms=("tanh", "linear"),
        ),
        Claim(
            "relu, 2000",
            "After 2,000 steps a ReLU net does.",
            "difference of biases; the net has 65 times the parameters",
            arms=("relu", "linear"),
        ),
        Claim(
            "equal loss",
            "It does at a training loss of .0155.",
            "difference of biases; the net has 65 times the parameters",
            arms=("relu", "linear"),
        ),
        Claim(
            "availability",
            "A ReLU net's bias after 120 steps is larger at a length of 8 than of 2.",
            "difference of biases",
            arms=("relu, length 8", "relu, length 2"),
        ),
    )
    null = Claim(
        "alike",
        "Two features of equal worth and length: after 120 steps a ReLU net prefers neither.",
        "bias",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each net on each kind of rows."""
        world = {a: ShortcutRows(availability=a) for a in (2.0, 8.0)}
        alike = ShortcutRows(core=0.95, shortcut=0.95, availability=1.0)
        found: dict[str, float] = {}
        for kind in RATE:
            tick(kind)
            for step, bias in _mean_biases(kind, world[8.0], seed, tiny).items():
                found[f"{kind} | {step}"] = bias
        n, net = 1 if tiny else REPEATS, _net("relu", world[8.0].dim, 0)
        size = sum(p.numel() for p in net.parameters())
        note_for("relu, length 8", updates=120 * n, rows=ROWS, parameters=size)
        tick("relu, length 2")
        found["relu, length 2 | 120"] = _mean_biases("relu", world[2.0], seed, tiny, 120)["120"]
        tick("features of equal worth")
        return {
            "relu, 120": found["relu | 120"] - found["linear | 120"],
            "tanh, 120": found["tanh | 120"] - found["linear | 120"],
            "relu, 2000": found["relu | 2000"] - found["linear | 2000"],
            "equal loss": found["relu | equal loss"] - found["linear | equal loss"],
            "availability": found["relu | 120"] - found["relu, length 2 | 120"],
            "alike": _mean_biases("relu", alike, seed, tiny, 120)["120"],
            **found,
        }


EQUAL_LOSS = 0.0155


def _mean_biases(
    kind: str, rows: ShortcutRows, seed: int, tiny: bool, last: int = AT[-1]
) -> dict[str, float]:
    runs = [_biases(kind, rows, 100 * seed + i, last) for i in range(1 if tiny else REPEATS)]
    return {step: sum(r[step] for r in runs) / len(runs) for step in runs[0]}


@torch.enable_grad()
def _biases(kind: str, rows: ShortcutRows, seed: int, last: int) -> dict[str, float]:
    """Return the bias after each step, and where all nets have the same training loss."""
    x, label, _ = rows.rows(ROWS, seed)
    net, goal = _net(kind, rows.dim, seed), label.float()
    note(rows=ROWS)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE[kind])
    found: dict[str, float] = {}
    for step in range(1, last + 1):
        optimiser.zero_grad()
        loss = functional.binary_cross_entropy_with_logits(net(x)[:, 0], goal)
        loss.backward()
        optimiser.step()
        if step in AT:
            found[str(step)] = _asked(net, rows)
        if "equal loss" not in found and float(loss.detach()) <= EQUAL_LOSS:
            found["equal loss"] = _asked(net, rows)
    found.setdefault("equal loss", _asked(net, rows))
    return found


@torch.no_grad()
def _asked(net: nn.Module, rows: ShortcutRows) -> float:
    answers: Tensor = net(rows.grid())[:, 0]
    return float(shortcut_bias(answers, rows))


def _net(kind: str, dim: int, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "linear":
            return nn.Sequential(nn.Linear(dim, 1))
        act = nn.ReLU() if kind == "relu" else nn.Tanh()
        return nn.Sequential(nn.Linear(dim, WIDTH), act, nn.Linear(WIDTH, 1))
