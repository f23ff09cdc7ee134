"""Reading inputs back from states: what is left of a digit after each layer.

A perceptron with narrowing layers. What another net sees in the decoded digits is asked too.
"""

from typing import final

import torch
from torch import nn

from sonde import Model
from sonde.train import InputDecoder
from sonde_studies._recipe_data import items_of, learned, mlp, shuffled_digits
from sonde_studies.recipes.decode_states import decode_states
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, TINY = 700, 150


@final
class DecodeStatesStudy(Study):
    """Linear decoders after three layers of 64, 32 and 16 units."""

    name = "decode-states"
    title = "what can be read back from the states of each layer?"
    paper = "semiotics"
    fidelity = "linear decoders in closed form; the loop of looking again is not here"
    data = "digits: 700 to train on, 1,097 to decode"
    claims = (
        Claim("early", "After the first layer nine tenths of the pixels' variance are left.",
              "share that the decoder reads at the first layer, less 0.9"),
        Claim("fades", "Deep states hold less of the pixels than early ones.",
              "share read, first layer less last"),
        Claim("class", "What is read from the last layer still shows its class to another net.",
              "accuracy of another net on decoded digits, less 0.9"),
    )  # fmt: skip
    null = Claim("shuffled", "From the states of other rows nothing is read.",
                 "share of the variance read, at least 0")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train, ask the recipe, and show decoded digits to another net."""
        tick("train")
        x, label = shuffled_digits(seed)
        n = TINY if tiny else FIT
        layers = [nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16)]
        net = learned(nn.Sequential(*layers, nn.ReLU(), nn.Linear(16, 10)), x[:n], label[:n], seed)
        judge = learned(mlp(64), x[:n], label[:n], seed + 77)
        tick("decode")
        items = items_of(x[FIT:], label[FIT:])
        found = decode_states(Model(net.module), items, sites="1,3,5", seed=seed, progress=False)
        share = [1 - float(row["missed"]) for row in found.rows]  # pyright: ignore
        deep, rows = net.module[:6], x[FIT:]  # pyright: ignore
        half = len(rows) // 2
        with torch.no_grad():
            states = deep(rows)  # pyright: ignore
            made = InputDecoder(64).solve(states[:half], rows[:half]).decode(states[half:])
            seen = (judge.module(made).argmax(1) == label[FIT + half :]).double().mean()
            turned = states.roll(1, 0)
            null = InputDecoder(64).solve(turned[:half], rows[:half]).decode(turned[half:])
        error = (null - rows[half:]).square().sum() / (rows[half:] - rows.mean(0)).square().sum()
        return {
            "early": share[0] - 0.9,
            "fades": share[0] - share[-1],
            "class": float(seen) - 0.9,
            "shuffled": max(0.0, round(1 - float(error), 2)),
            **{f"read | layer {i + 1}": v for i, v in enumerate(share)},
            **{f"same answer | layer {i + 1}": float(row["same"])  # pyright: ignore
               for i, row in enumerate(found.rows)},
        }  # fmt: skip
