"""Test whether a held-back class is nearest to its own group of classes.

Digits in three groups; states are contrasted by cosine, by distance and in hyperbolic space. Then
unlabelled rows near the known classes become a class of their own.
"""

from typing import Any, final

import torch
from torch import nn

from sonde_studies._open_world import given_labels, group_of_digits, relabelled, shares, trained
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick

STEPS, TINY = 500, 15
GROUPS = ((0, 6, 8), (1, 4, 7), (2, 3, 9))
METRICS: tuple[Any, ...] = ("cosine", "euclidean", "poincare")


@final
class OpenWorldHierarchyStudy(Study):
    """Nine digits in three groups by shape; three digits are never seen in training."""

    name = "open-world-hierarchy"
    title = "do unseen classes fall near the group that they belong to?"
    paper = "doan2024hypow"
    fidelity = (
        "groups chosen by hand; contrast of classes and of groups, relabelling once after training"
    )
    data = (
        "digits: round ones (0, 6, 8), straight ones (1, 4, 7), open ones (2, 3, 9); unlabelled "
        "are digits of unseen classes, and the same digits half outside the picture (scraps)"
    )
    claims = (
        Claim("group", "Unseen classes fall nearest to their own group more often than by chance.",
              "share in hyperbolic space, less 1/3"),
        Claim("hyperbolic", "In hyperbolic space more often than by cosine.",
              "share, hyperbolic less cosine",
              arms=("poincare", "cosine")),
        Claim("known", "Known classes keep to their group.",
              "share of fresh rows of known classes, hyperbolic, less 0.9"),
        Claim("relabelled", "More unseen digits than scraps lie in the radius of known classes.",
              "share of unlabelled rows that are relabelled, unseen digits less scraps",
              arms=("unseen digits", "scraps")),
        Claim("as a class", "Relabelled rows, trained as a class, help to tell unseen digits more "
              "than as many unlabelled rows by lot.",
              "AUROC of fresh unseen against known digits, relabelled less by lot",
              arms=("relabelled rows", "rows by lot")),
    )  # fmt: skip
    null = Claim("made up", "Groups that were drawn at random mean nothing for unseen classes.",
                 "share, hyperbolic", above=1 / 3)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with each metric; once with random groups."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        unseen = [g[int(torch.randint(3, (), generator=draw))] for g in GROUPS]
        found, steps = dict[str, tuple[float, float]](), TINY if tiny else STEPS
        groups, nets = group_of_digits(GROUPS), dict[str, nn.Module]()
        given = given_labels(label, groups, unseen)
        for metric in METRICS:
            tick(metric)
            nets[metric] = trained(x, given, groups, metric, seed, steps)
            found[metric] = shares(nets[metric], x, label, given, groups, unseen, metric)
        tick("relabelling")
        told = relabelled(nets["poincare"], x, label, given, groups, unseen, seed, steps)
        order = torch.randperm(9, generator=draw)
        digits = torch.tensor([d for g in GROUPS for d in g])[order].reshape(3, 3).tolist()
        made_up = [g[0] for g in digits]
        tick("random groups")
        groups = group_of_digits(digits)
        given = given_labels(label, groups, made_up)
        net = trained(x, given, groups, "poincare", seed, steps)
        null = shares(net, x, label, given, groups, made_up, "poincare")
        return {
            "group": found["poincare"][0] - 1 / 3,
            "hyperbolic": found["poincare"][0] - found["cosine"][0],
            "known": found["poincare"][1] - 0.9,
            "relabelled": told["unseen"] - told["scraps"],
            "as a class": told["with"] - told["by lot"],
            "made up": null[0],
            **{f"unseen | {m}": v[0] for m, v in found.items()},
            **{f"known | {m}": v[1] for m, v in found.items()},
            **{f"relabelling | {name}": v for name, v in told.items()},
        }
