"""Rounding behind an encoder whose states were tuned to a low entropy, on nets of digits.

Six layers of 64 units: the first three are the encoder, which is tuned to its own answers with a
price on the entropy of its states, or without.
"""

import copy
from collections.abc import Mapping
from itertools import pairwise
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from sonde import Model
from sonde.compress import BlockRounding
from sonde.data import open_inputs
from sonde.train import StateEntropy
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies._shrunk import Shrunk, log_ratio
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, learn_labels, minimise

FIT, LAYERS, ENCODER, WIDTH, STEPS, TUNED, TINY = 1_000, 6, 3, 64, 300, 200, 4
PRICE, MARGIN, ROWS = 0.1, 0.1, 64
ARMS = {"entropy": PRICE, "plain": 0.0}
RULE = BlockRounding(2, 16, price=1.0, rows=32)


@final
class DisentangledEncoderStudy(Study):
    """Runs of layers, and answers at two bits, with the encoder tuned by its entropy or without."""

    name = "disentangled-encoder"
    title = "does an encoder of low entropy make rounding cheaper to search?"
    paper = "wang2024qvlm"
    fidelity = "reconstructed: a histogram with a gradient; three layers in place of a vision tower"
    data = "digits: 1,000 to train, tune and calibrate on, 797 to judge"
    claims = (
        Claim("cheaper", "With the entropy of its states lowered, runs are shorter and cheaper to "
              "search, at equal updates.",
              "logarithm of the ratio of sums of 2^n over runs of n stages, plain over entropy",
              arms=("entropy", "plain")),
        Claim("as well", "At two bits the answers diverge no more, to a tenth.",
              "logarithm of the ratio of divergences, plain over entropy, and 0.1",
              arms=("entropy", "plain")),
        Claim("apart", "Neighbouring stages of the encoder gain less by being rounded together.",
              "sum of gains of pairs in the encoder, plain less entropy",
              arms=("entropy", "plain")),
    )  # fmt: skip
    null = Claim("no price", "Tuned without a price on entropy, the net is as right as before.",
                 "accuracy, plain less the net before it was tuned")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train a net, tune its encoder in both ways, and round both nets."""
        x, label = shuffled_digits(seed)
        tick("net")
        net = drawn(_net, seed)
        learn_labels(net, x[:FIT], label[:FIT], steps=TINY if tiny else STEPS, seed=seed)
        with torch.no_grad():
            answers = net(x[:FIT]).log_softmax(1)
        found = dict[str, dict[str, float]]()
        for arm, price in ARMS.items():
            tick(arm)
            own = copy.deepcopy(net)
            _tune(own, x[:FIT], answers, price, seed, TINY if tiny else TUNED)
            found[arm] = _rounded(own, x, label)
        one, two = found["entropy"], found["plain"]
        return {
            "cheaper": log_ratio(two["cost"], one["cost"]),
            "as well": log_ratio(two["divergence"], one["divergence"]) + MARGIN,
            "apart": two["gain of pairs"] - one["gain of pairs"],
            "no price": two["accuracy"] - accuracy(net, x[FIT:], label[FIT:]),
            **{f"{key} | {arm}": value for arm, row in found.items() for key, value in row.items()},
        }


def _net() -> nn.Sequential:
    sizes = [64] + [WIDTH] * (LAYERS - 1)
    hidden = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(WIDTH, 10))


def _tune(
    net: nn.Sequential, x: Tensor, answers: Tensor, price: float, seed: int, steps: int
) -> None:
    """Tune the encoder to keep the net's answers, with a price on the entropy of its states."""
    entropy = StateEntropy()

    def loss(rows: Tensor) -> Tensor:
        states, total = x[rows], x.new_zeros(())
        for i, part in enumerate(net):
            states = part(states)
            if i % 2 and i < 2 * ENCODER:
                total = total + entropy(states)
        now = states.log_softmax(1)
        value = kl_div(now, answers[rows], reduction="batchmean", log_target=True)
        return value + price * total

    encoder = net[: 2 * ENCODER]
    minimise(loss, encoder.parameters(), len(x), steps=steps, seed=seed, rate=1e-3)


def _rounded(net: nn.Sequential, x: Tensor, label: Tensor) -> dict[str, float]:
    """Return the cost of the search, divergence, gains of pairs, and accuracies."""
    model = Model(net)
    shrunk = Shrunk(model, x[:FIT][: 4 * ROWS], open_inputs(model, x[FIT:]))
    plan = shrunk.planned(RULE)
    gains = 0.0
    for first in (0, 1):
        cuts = [i for i in range(1, LAYERS) if (i - first) % 2 == 0]
        told = shrunk.planned(BlockRounding(2, 16, rows=32, cuts=cuts)).figures
        gains += sum(told[f"gain.{i}"] for i in range(first, ENCODER, 2))
    entropies = [plan.figures[f"entropy.{i}"] for i in range(1, ENCODER + 1)]
    return {
        "cost": _cost(plan.figures),
        "divergence": shrunk.divergence(RULE),
        "gain of pairs": gains,
        "entropy of the encoder": sum(entropies) / len(entropies),
        "accuracy": accuracy(net, x[FIT:], label[FIT:]),
    }


def _cost(figures: Mapping[str, float]) -> float:
    """Return the sum of 2^n over the runs of n stages of a plan."""
    starts = sorted(int(name[5:]) for name in figures if name.startswith("gain."))
    return float(sum(2 ** (b - a) for a, b in pairwise([*starts, LAYERS])))
