"""Fronts of some nets on backs of others: which stage makes the difference, and who fits whom.

Perceptrons on digits; one family was trained to share its states, the others were not.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.measure import stitch
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, WIDTH = 1_000, 400, 20, 64
NETS = 3


@final
class StageSwapStudy(Study):
    """Three nets of other seeds, three that were aligned in training, and a random front."""

    name = "stage-swap"
    title = "may a net go on from another one's states?"
    paper = "bansal2021stitching"
    fidelity = "nets of one width and two stages; the map is a ridge solution"
    data = "digits: 1,000 to train and to fit maps, 797 to judge"
    claims = (
        Claim("map", "With a linear map nets of other seeds hand over, to five points.",
              "accuracy with a map less that of the nets as they are, and 0.05"),
        Claim("family", "Nets that were aligned in training hand over without a map.",
              "accuracy without a map, aligned less not aligned"),
        Claim("additive", "What fronts and backs add is more than their interaction.",
              "share of the table's variance of fronts and backs less that of the interaction"),
    )  # fmt: skip
    null = Claim("random", "A front of random weights hands over nothing without a map.",
                 "accuracy", above=0.1)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both families and fill the tables."""
        x, label = shuffled_digits(seed)
        steps = TINY if tiny else STEPS
        tick("other seeds")
        alone = [_trained(x, label, 10 * seed + i, steps) for i in range(NETS)]
        tick("aligned")
        first = alone[0]
        family = [first] + [
            _trained(x, label, 10 * seed + i, steps, first[0]) for i in range(1, NETS)
        ]
        tables = {
            (name, how): stitch(
                [net[0] for net in nets],
                [net[1] for net in nets],
                x[:FIT],
                x[FIT:],
                label[FIT:],
                how,
            )
            for name, nets in (("other seeds", alone), ("aligned", family))
            for how in ("map", "none")
        }
        mapped = tables["other seeds", "map"]
        front = drawn(lambda: _stages()[0], 10 * seed + 9)
        with torch.no_grad():
            lost = (first[1](front(x[FIT:])).argmax(1) == label[FIT:]).double().mean()
        return {
            "map": float(mapped.value) - float(torch.as_tensor(mapped.null)) + 0.05,
            "family": float(tables["aligned", "none"].value)
            - float(tables["other seeds", "none"].value),
            "additive": mapped.share_front + mapped.share_back - mapped.share_interaction,
            "random": float(lost),
            **{f"{name} | {how}": float(t.value) for (name, how), t in tables.items()},
        }


def _stages() -> nn.ModuleList:
    front = nn.Sequential(nn.Linear(64, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU())
    return nn.ModuleList([front, nn.Sequential(nn.Linear(WIDTH, 10))])


def _trained(
    x: Tensor,
    label: Tensor,
    seed: int,
    steps: int,
    teacher: Callable[[Tensor], Tensor] | None = None,
) -> nn.ModuleList:
    net = drawn(_stages, seed)

    def loss(rows: Tensor) -> Tensor:
        states = net[0](x[rows])
        value = cross_entropy(net[1](states), label[rows])
        if teacher is None:
            return value
        with torch.no_grad():
            wanted = teacher(x[rows])
        return value + 10.0 * nn.functional.mse_loss(states, wanted)

    minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
    return net.eval()
