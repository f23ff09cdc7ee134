"""Readouts of all layers of a frozen net: mixtures, queries and recurrence.

A perceptron that was trained on one thing and is asked for another, of one digit and of a row of
digits in which a query has to find its own.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import Readout
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.arms import part
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, MORE, STEPS, TINY, DIM = 700, 500, 400, 15, 16
ARMS = ("last", "weights", "concat", "queries", "recurrent")
ROWS, LENGTH, QUERIES, LONGER = 4_000, 4, 3, 1_200
TIMED = ("concat", "queries", "recurrent", "first to last")


@final
class LayerReadoutStudy(Study):
    """A net trained to classify digits, probed for whether the digit is upside down."""

    name = "layer-readout"
    title = "is a frozen net read better from all layers than from its last?"
    paper = "liu2024r2tuning"
    fidelity = "two layers of a perceptron as sites; readouts of one width"
    data = "digits, half of them turned upside down: 700 to train on, 500 to read, 597 to judge"
    claims = (
        Claim("mixture", "A mixture of layers says the turn better than the last layer does.",
              "accuracy of weights over layers less that of the last",
              arms=("weights", "last")),
        Claim("queries", "Queries over all layers say the turn better than a mixture of layers "
              "does.",
              "accuracy of queries less that of weights over layers",
              arms=("queries", "weights")),
        Claim("recurrent", "A readout from the last layer to the first says it better than "
              "a mixture.",
              "accuracy of the recurrent readout less that of weights over layers",
              arms=("recurrent", "weights")),
        Claim("found", "Asked for one of four digits in time, queries say it better than means.",
              "accuracy of three queries with the asked digit less that of concatenated means",
              arms=("in time, queries", "in time, concat")),
        Claim("refined", "So does the recurrence from the last layer to the first.",
              "accuracy of the recurrent readout less that of concatenated means",
              arms=("in time, recurrent", "in time, concat")),
        Claim("in turn", "A recurrence from the last layer to the first tells an asked digit's "
              "turn better than as many queries to all layers at once.",
              "accuracy of the recurrent readout less that of three queries",
              arms=("in time, recurrent", "in time, queries")),
        Claim("backwards", "The order from the last layer to the first is worth two points.",
              "accuracy, last to first less first to last", above=0.02,
              arms=("in time, recurrent", "in time, first to last")),
    )  # fmt: skip
    null = Claim("shuffled", "Turns of other digits cannot be read, with the query and in time.",
                 "accuracy of the recurrent readout with the asked digit", above=0.5)  # fmt: skip

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
        tick("in time")
        timed = dict[str, float]()
        for arm in TIMED:
            with part(f"in time, {arm}"):
                timed[arm] = _in_time(arm, sites, label, turned, seed, tiny)
        other = turned[torch.randperm(len(turned), generator=draw)]
        return {
            "mixture": found["weights"] - found["last"],
            "queries": found["queries"] - found["weights"],
            "recurrent": found["recurrent"] - found["weights"],
            "found": timed["queries"] - timed["concat"],
            "refined": timed["recurrent"] - timed["concat"],
            "in turn": timed["recurrent"] - timed["queries"],
            "backwards": timed["recurrent"] - timed["first to last"],
            "shuffled": _in_time("recurrent", sites, label, other, seed, tiny),
            **{f"accuracy | {arm}": v for arm, v in found.items()},
            **{f"in time | {arm}": v for arm, v in timed.items()},
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


def _in_time(
    arm: str, sites: list[Tensor], label: Tensor, turned: Tensor, seed: int, tiny: bool
) -> float:
    """Return a readout's accuracy on whether the queried one of four digits is rotated."""
    draw = torch.Generator().manual_seed(seed + 1)
    first, last = FIT, FIT + MORE
    some = torch.randint(first, last, (ROWS, LENGTH), generator=draw)
    held = torch.randint(last, len(label), (ROWS // 2, LENGTH), generator=draw)
    row = torch.cat([some, held])
    at = torch.randint(LENGTH, (len(row), 1), generator=draw)
    asked, truth = label[row.gather(1, at)[:, 0]], turned[row.gather(1, at)[:, 0]].long()
    shown = [site[row][:, :, 0] for site in sites]  # (row, time, unit)
    how: Any = {"first to last": "recurrent"}.get(arm, arm)
    order: Any = "first_to_last" if arm == "first to last" else "last_to_first"
    n = 1 if arm == "concat" else QUERIES
    readout = drawn(lambda: Readout([s.shape[2] for s in shown], DIM, how, n, order), seed)
    words = drawn(lambda: nn.Embedding(10, DIM), seed)
    head = drawn(lambda: nn.Sequential(nn.Linear(2 * DIM, 32), nn.ReLU(), nn.Linear(32, 2)), seed)

    def said(rows: Tensor) -> Tensor:
        word = words(asked[rows])
        condition = word.unsqueeze(1).expand(-1, n, -1)
        found = readout(*(s[rows] for s in shown), condition=condition).mean(1)
        return head(torch.cat([found, word], 1))

    weights = [*readout.parameters(), *words.parameters(), *head.parameters()]
    steps = TINY if tiny else LONGER
    minimise(
        lambda rows: cross_entropy(said(rows), truth[rows]), weights, ROWS, steps=steps, seed=seed
    )
    with torch.no_grad():
        told = said(torch.arange(ROWS, len(row))).argmax(1)
    return float((told == truth[ROWS:]).double().mean())
