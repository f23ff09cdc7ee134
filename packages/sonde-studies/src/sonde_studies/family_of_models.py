"""A small net begins and a large net continues: nets aligned for this, and ordinary nets.

Perceptrons on digits of three widths, all with 48 units where one may hand over to another; there
the large net may answer early too.
"""

from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde import Model, training
from sonde.compress import EarlyExit
from sonde.data import open_inputs
from sonde.train import Align
from sonde_studies._recipe_data import items_of, shuffled_digits
from sonde_studies.arms import note_for, note_mean, note_sum, part
from sonde_studies.recipes.family_of_models import family_of_models
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, learn_labels, minimise

FIT, STEPS, TINY, DIM, PULL = 700, 400, 20, 48, 3.0
WIDTHS = (32, 64)
LARGE = 128


@final
class FamilyOfModelsStudy(Study):
    """Two small nets and a large net, compared by the small nets' training."""

    name = "family-of-models"
    title = "may a small net hand over to a large one, and was it trained for that?"
    paper = "bansal2021stitching"
    fidelity = "one place to hand over; the small nets are pulled to the states of the large one"
    data = "digits: 700 to train on; 1,097 for the recipe, half of which fit maps"
    claims = (
        Claim("aligned", "A small net that was aligned, in as many updates of parameters of its "
              "own, hands over without a map, to five points.",
              "accuracy without a map less that of the large net, and 0.05",
              arms=("aligned, then large", "large")),
        Claim("alone", "One that was not needs the map, which has parameters and learns from "
              "half of the rows.",
              "accuracy with a map less that without",
              arms=("alone, map", "alone, no map")),
        Claim("map", "With the map, and the small net's updates and parameters added, it keeps "
              "the large net's accuracy, to five points.",
              "accuracy with a map less that of the large net, and 0.05",
              arms=("alone, then large", "large")),
        Claim("early", "At least half of the rows may leave the large net where it takes over.",
              "share of rows that leave, less 0.5"),
        Claim("agrees", "Of those at most one in fifty gets another answer than from all of it.",
              "0.02 less the share of the leaving rows that disagree"),
    )  # fmt: skip
    null = Claim("random", "Aligned to a random net it hands over to the large one by chance.",
                 "accuracy without a map", above=0.1)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the nets and run the recipe on each pair."""
        x, label = shuffled_digits(seed)
        steps, items = TINY if tiny else STEPS, items_of(x[FIT:], label[FIT:])
        tick("large")
        large = _trained(x, label, LARGE, seed, steps)
        random = drawn(lambda: _net(LARGE), 10 * seed + 9).eval()
        found = dict[str, dict[str, float]]()
        for arm, teacher in (("alone", None), ("aligned", large), ("random", random)):
            tick(arm)
            pairs = []
            for width in WIDTHS:
                with part(f"{arm}, {width}"):
                    small = _trained(x, label, width, seed + width, steps, teacher)
                answer = family_of_models(
                    Model(small), Model(large), items, sites="0", seed=seed, progress=False
                )
                pairs.append({
                    "with a map": float(answer.rows[0]["with a map"]),
                    "as they are": float(answer.rows[0]["as they are"]),
                    "small": float(answer.facts["small model"]),
                    "large": float(answer.facts["large model"]),
                })  # fmt: skip
            note_mean(arm, [f"{arm}, {width}" for width in WIDTHS])
            note_sum(f"{arm}, then large", (arm, "large"))
            found[arm] = {k: sum(p[k] for p in pairs) / len(pairs) for k in pairs[0]}
        for name, numbers in (("map", DIM * (DIM + 1)), ("no map", 0)):
            note_for(f"alone, {name}", rows=len(items) // 2 if numbers else 0, parameters=numbers)
        tick("early exit")
        left, differ = _left_early(large, x[FIT:], label[FIT:])
        alone, aligned, best = found["alone"], found["aligned"], found["alone"]["large"]
        return {
            "aligned": aligned["as they are"] - best + 0.05,
            "alone": alone["with a map"] - alone["as they are"],
            "map": alone["with a map"] - best + 0.05,
            "early": left - 0.5,
            "agrees": 0.02 - differ,
            "random": found["random"]["as they are"],
            **{f"{arm} | {key}": v for arm, row in found.items() for key, v in row.items()},
        }


@torch.no_grad()
def _left_early(net: nn.Module, x: Tensor, label: Tensor) -> tuple[float, float]:
    """Return the share of test rows that leave behind the first half, and how many disagree."""
    model, sizes = Model(net), (len(x) // 4, len(x) // 4, len(x) - len(x) // 4 * 2)
    fit, calibrate, (held, _) = zip(x.split(sizes), label.split(sizes), strict=True)
    parts = (open_inputs(model, items_of(*part)) for part in (fit, calibrate))
    found = EarlyExit(0.02, sites=("0",)).fit(model, *parts).answer(net, held)
    leaves = found.depth == 0
    differ = found.logits.argmax(1) != net(held).argmax(1)
    wrong = differ[leaves].double().sum() / leaves.sum().clip(1)
    return float(leaves.double().mean()), float(wrong)


def _net(width: int) -> nn.Sequential:
    front = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, DIM), nn.ReLU())
    return nn.Sequential(
        front, nn.Sequential(nn.Linear(DIM, width), nn.ReLU(), nn.Linear(width, 10))
    )


def _trained(
    x: Tensor, label: Tensor, width: int, seed: int, steps: int, teacher: nn.Module | None = None
) -> nn.Sequential:
    net = drawn(lambda: _net(width), seed)
    if teacher is None:
        learn_labels(net, x[:FIT], label[:FIT], steps=steps, seed=seed)
        return net
    with training(net, {("0", "teacher:0"): Align("mse")}, weight=PULL, teacher=teacher) as terms:

        def loss(rows: Tensor) -> Tensor:
            return cross_entropy(net(x[rows]), label[rows]) + terms.loss()

        minimise(loss, net.parameters(), FIT, steps=steps, seed=seed)
    return net.eval()
