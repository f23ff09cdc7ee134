"""Reading a frozen net from all its layers: mixtures, queries and recurrence over the last layer.

A perceptron that was trained on one thing and is asked for another.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import Readout
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, MORE, STEPS, TINY, DIM = 700, 500, 400, 15, 16
ARMS = ("last", "weights", "concat", "queries", "recurrent")


@final
class LayerReadoutStudy(Study):
    """A net trained to name digits, asked whether the digit stands upside down."""

    name = "layer-readout"
    title = "is a frozen net read better from all layers than from its last?"
    paper = "liu2024r2tuning"
    fidelity = "two layers of a perceptron as sites; readouts of one width"
    data = "digits, half of them turned upside down: 700 to train on, 500 to read, 597 to judge"
    claims = (
        Claim("mixture", "A mixture of layers says the turn better than the last layer does.",
              "accuracy of weights over layers less that of the last"),
        Claim("queries", "So do queries over all layers.",
              "accuracy of queries less that of the last"),
        Claim("recurrent", "So does a readout from the last layer to the first.",
              "accuracy of the recurrent readout less that of the last"),
    )  # fmt: skip
    null = Claim("shuffled", "Turns of other digits cannot be read.",
                 "accuracy of concatenated layers", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the net, and each readout on its frozen states."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        turned = torch.rand(len(x), generator=draw) < 0.5
        x = torch.where(turned[:, None], x.reshape(-1, 8, 8).flip(1).flatten(1), x)
        tick("train")
        net: Any = learned(mlp(64), x[:FIT], label[:FIT], seed).module
        with torch.no_grad():
            first = net[1](net[0](x))
            sites = [first.unsqueeze(1), net[3](net[2](first)).unsqueeze(1)]
        found, steps = dict[str, float](), TINY if tiny else STEPS
        for arm in ARMS:
            tick(arm)
            found[arm] = _accuracy(arm, sites, turned.long(), seed, steps)
        other = turned[torch.randperm(len(turned), generator=draw)].long()
        return {
            "mixture": found["weights"] - found["last"],
            "queries": found["queries"] - found["last"],
            "recurrent": found["recurrent"] - found["last"],
            "shuffled": _accuracy("concat", sites, other, seed, steps),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
        }


def _accuracy(arm: str, sites: list[Tensor], truth: Tensor, seed: int, steps: int) -> float:
    shown = sites[-1:] if arm == "last" else sites
    how: Any = "concat" if arm == "last" else arm
    readout = drawn(lambda: Readout([s.shape[2] for s in shown], DIM, how), seed)
    head = drawn(lambda: nn.Linear(DIM, 2), seed)

    def said(rows: Tensor) -> Tensor:
        return head(readout(*(s[rows] for s in shown)).mean(1).relu())

    weights = [*readout.parameters(), *head.parameters()]
    minimise(
        lambda rows: cross_entropy(said(FIT + rows), truth[FIT + rows]),
        weights, MORE, steps=steps, seed=seed,
    )  # fmt: skip
    held = torch.arange(FIT + MORE, len(truth))
    with torch.no_grad():
        return float((said(held).argmax(1) == truth[held]).double().mean())
