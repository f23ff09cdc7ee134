"""Test whether two nets with different seeds learn the same units or only one subspace."""

from typing import final

import torch
from torch import Tensor

from sonde.measure import cka, correlation_match, regression
from sonde_studies._layers import layers_of, plain_net, split, trained
from sonde_studies._unit_clusters import judge_clusters
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy

WIDTHS, STEPS = (64, 64), 1500
FOUND, LOST = 0.8, 0.5**0.5


@final
class CorrelationMatchStudy(Study):
    """Two ReLU nets with other initial weights and batches, on the same digits."""

    name = "correlation-match"
    title = "do two trainings find the same units?"
    paper = "li2016convergent"
    fidelity = (
        "the matchings as published; fully connected nets of 64 units in place of AlexNet, so "
        "there are no places to average over; nothing was chosen on test digits"
    )
    data = "scikit-learn's digits; two hidden layers of 64, read on digits not trained on"
    claims = (
        Claim(
            "matched",
            "Units are matched one to one better than units of unrelated rows.",
            "mean correlation of the best assignment less its null, second layer",
            arms=("matched units", "units of unrelated rows"),
        ),
        Claim(
            "some found",
            f"Some units have a partner with a correlation above {FOUND}.",
            "share of units, second layer",
        ),
        Claim(
            "some lost",
            "Some units have no partner that shares half of their variance.",
            "share of units, second layer",
        ),
        Claim(
            "few to one",
            "Few units explain more of a unit than the best single one.",
            "difference of shares of variance, second layer",
            arms=("few units", "best single unit"),
        ),
        Claim(
            "clusters",
            "Units of one cluster of both nets correlate more than units by lot.",
            "mean correlation of units in one of eight clusters less that in clusters with "
            "shuffled units, rows that chose no cluster, second layer",
            arms=("clusters", "shuffled clusters"),
        ),
        Claim(
            "many to many",
            "A unit's cluster in the other net explains more of it than as many units by lot that "
            "contain its best partner.",
            "difference of shares of variance, rows that chose no cluster and no weight, second "
            "layer",
            arms=("cluster", "best partner and units by lot"),
        ),
        Claim(
            "subspace",
            "The subspaces are more alike than the units.",
            "CKA less the mean correlation of matched units, second layer",
            arms=("subspaces", "matched units"),
        ),
    )
    null = Claim(
        "unrelated",
        "Rows in another order: units match as far as chance goes.",
        "mean correlation of the best assignment less its null, second layer",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train both nets and match their units."""
        tick("training")
        d = split(seed, 1000)
        steps = 150 if tiny else STEPS
        nets = [
            list(trained(plain_net(s, WIDTHS), d.x, d.label, steps, s))[-1]
            for s in (2 * seed, 2 * seed + 1)
        ]
        tick("matching")
        one, two = (layers_of(net, d.x_test) for net in nets)
        found = [_figures(x, y) for x, y in zip(one, two, strict=True)]
        order = torch.randperm(len(two[1]), generator=torch.Generator().manual_seed(seed))
        last = found[1]
        many = judge_clusters(one[1], two[1], seed)
        for arm in ("few units", "best single unit", "clusters", "shuffled clusters"):
            note_for(arm, rows=len(one[1]) // (2 if "clusters" in arm else 1))
        for arm in ("matched units", "units of unrelated rows", "subspaces"):
            note_for(arm, rows=len(one[1]))
        for arm in ("cluster", "best partner and units by lot"):
            note_for(arm, rows=len(one[1]) // 2, parameters=many["units in a cluster"])
        return {
            "matched": last["one to one"] - last["null"],
            "some found": last["found"],
            "some lost": last["lost"],
            "few to one": last["few to one"] - last["best single"],
            "subspace": last["CKA"] - last["one to one"],
            "clusters": many["in clusters"] - many["in shuffled clusters"],
            "many to many": many["by the cluster"] - many["by lot"],
            "unrelated": _over_null(one[1], two[1][order]),
            **{f"{k} | layer {i + 1}": v for i, part in enumerate(found) for k, v in part.items()},
            **{f"{k} | second layer": v for k, v in many.items()},
            **{
                f"{k} | second layer, rows in another order": v
                for k, v in judge_clusters(one[1], two[1][order], seed).items()
            },
            **{
                f"accuracy | net {i}": accuracy(n, d.x_test, d.label_test)
                for i, n in enumerate(nets)
            },
        }


def _over_null(x: Tensor, y: Tensor) -> float:
    found = correlation_match(x, y)
    return float(found) - float(torch.as_tensor(found.null))


def _figures(x: Tensor, y: Tensor) -> dict[str, float]:
    hard, soft = correlation_match(x, y), correlation_match(x, y, method="soft")
    best = soft.figure[soft.figure.isfinite()]
    return {
        "one to one": float(hard),
        "null": float(torch.as_tensor(hard.null)),
        "found": float((best > FOUND).double().mean()),
        "lost": float((best < LOST).double().mean()),
        "best single": float(best.square().mean()),
        "few to one": float(correlation_match(x, y, method="sparse")),
        "all to one": float(regression(x, y)),
        "CKA": float(cka(x, y)),
    }
