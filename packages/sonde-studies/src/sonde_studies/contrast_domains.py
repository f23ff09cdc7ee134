"""Contrast of units against contrast of concepts, on digits at a held-out rotation.

A concept is a cluster of units that move together, and its largest unit stands for it. The states
of one digit at two angles are pulled together, either in all units or in those of the concepts.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import final

import torch
from torch import Tensor

from sonde.measure import effective_rank
from sonde.train import Contrast
from sonde_studies._concept_arms import (
    DIM,
    HEAT,
    Contrasts,
    Net,
    concepts_of,
    constant,
    found_anew,
    learn,
    of_concepts,
    turned_by,
)
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import part
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn

ANGLES, FIT, STEPS, TINY = (0, 30, 60, 90), 1_000, 300, 10
Found = dict[str, float]


@final
class ContrastDomainsStudy(Study):
    """Cross-entropy alone, and with a contrast of units, of concepts or of random groups."""

    name = "contrast-domains"
    title = "does contrast of concepts keep more diverse units than contrast of units?"
    paper = "cococoncepts"
    fidelity = (
        "five clusters of at most 20 units, as in the code; a perceptron in place of a large net"
    )
    data = (
        "digits at 0, 30, 60 and 90 degrees: 1,000 at three angles to train on, 797 at the fourth"
    )
    claims = (
        Claim("rank", "With concepts the states keep more directions than with units.",
              "effective rank on the held-out angle, concepts less units",
              arms=("concepts", "units")),
        Claim("held out", "The held-out angle is named no worse than with units, to a point.",
              "accuracy, concepts less units, and 0.01",
              arms=("concepts", "units")),
        Claim("contrast", "Contrast over angles helps there beyond the cross entropy.",
              "accuracy, concepts less cross entropy alone",
              arms=("concepts", "alone")),
        Claim("clusters", "Clusters of units that move together do better than random ones.",
              "accuracy, concepts less random groups of the same sizes",
              arms=("concepts", "random groups")),
        Claim("anew", "Clusters that are found anew in training do better than fixed ones.",
              "accuracy, clusters anew every 30 steps less clusters of the start",
              arms=("found anew", "concepts")),
        Claim("anew, found", "They do better than random groups that are drawn anew as often.",
              "accuracy, clusters found anew less groups drawn anew",
              arms=("found anew", "drawn anew")),
    )  # fmt: skip
    null = Claim("by lot", "Labels by lot are not told of other digits at the held-out angle.",
                 "accuracy with a contrast of units, less 0.1")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Hold out each angle in turn; all arms start from one half-trained net."""
        x, label = shuffled_digits(seed)
        turned = torch.stack([turned_by(x, angle) for angle in ANGLES])
        found = dict[str, list[Found]]()
        for out in range(1 if tiny else len(ANGLES)):
            tick(f"without {ANGLES[out]} degrees")
            for arm, value in _arms(turned, label, out, seed, TINY if tiny else STEPS).items():
                found.setdefault(arm, []).append(value)
        tick("labels by lot")
        mean = {arm: {k: sum(f[k] for f in rows) / len(rows) for k in rows[0]}
                for arm, rows in found.items()}  # fmt: skip
        right, rank = ({arm: v[k] for arm, v in mean.items()} for k in ("accuracy", "rank"))
        return {
            "rank": rank["concepts"] - rank["units"],
            "held out": right["concepts"] - right["units"] + 0.01,
            "contrast": right["concepts"] - right["alone"],
            "clusters": right["concepts"] - right["random groups"],
            "anew": right["found anew"] - right["concepts"],
            "anew, found": right["found anew"] - right["drawn anew"],
            "by lot": by_lot(x, seed, TINY if tiny else STEPS),
            **{f"{arm} | {k}": v for arm, row in mean.items() for k, v in row.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the accuracy on labels by lot of other digits at another angle, less chance."""
    label, angle = labels_by_lot(x, 10, seed), torch.arange(FIT) % (len(ANGLES) - 1)
    turned = torch.stack([turned_by(x[:FIT], degrees) for degrees in ANGLES[1:]])
    net = drawn(Net, seed)
    rows = turned[angle, torch.arange(FIT)]
    learn(net, rows, label, angle, constant(Contrast(HEAT)), seed, 2 * steps)
    with torch.no_grad():
        said = net(turned_by(x[FIT:], ANGLES[0])).argmax(1)
    return float((said == label[FIT:]).double().mean()) - 0.1


def _arms(turned: Tensor, label: Tensor, out: int, seed: int, steps: int) -> dict[str, Found]:
    """Train every arm on all angles but one, with a random angle for each row."""
    kept = [i for i in range(len(ANGLES)) if i != out]
    angle = torch.tensor(kept)[torch.arange(FIT) % len(kept)]
    x, held = turned[angle, torch.arange(FIT)], turned[out, FIT:]
    start = drawn(Net, seed)
    learn(start, x, label, angle, constant(None), seed, steps)
    ids = concepts_of(start, x)
    lot = ids[torch.randperm(DIM, generator=torch.Generator().manual_seed(seed))]
    arms: dict[str, tuple[Callable[[Net], Contrasts], int]] = {
        "alone": (lambda _: constant(None), seed + 1),
        "units": (lambda _: constant(Contrast(HEAT)), seed + 1),
        "concepts": (lambda _: constant(of_concepts(ids)), seed + 1),
        "random groups": (lambda _: constant(of_concepts(lot)), seed + 1),
        "found anew": (lambda net: found_anew(net, x), seed + 1),
        "drawn anew": (lambda net: found_anew(net, x, shuffled_by=seed), seed + 1),
    }
    found = dict[str, Found]()
    for arm, (contrast, order) in arms.items():
        net = deepcopy(start)
        with part(arm):
            learn(net, x, label, angle, contrast(net), order, steps)
        with torch.no_grad():
            right = (net(held).argmax(1) == label[FIT:]).double().mean()
            states = net.states(held)
        found[arm] = {"accuracy": float(right), "rank": float(effective_rank(states).value)}
    return found
