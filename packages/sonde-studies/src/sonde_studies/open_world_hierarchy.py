"""Test whether a held-back class is nearest to its own group of classes.

Digits in three groups; states are contrasted by cosine, by distance and in hyperbolic space.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.stats import poincare_distance, to_ball
from sonde.train import Contrast
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

FIT, STEPS, TINY, DIM = 1_200, 500, 15, 16
GROUPS = ((0, 6, 8), (1, 4, 7), (2, 3, 9))
METRICS: tuple[Any, ...] = ("cosine", "euclidean", "poincare")


@final
class OpenWorldHierarchyStudy(Study):
    """Nine digits in three groups by shape; three digits are never seen in training."""

    name = "open-world-hierarchy"
    title = "do unseen classes fall near the group that they belong to?"
    paper = "doan2024hypow"
    fidelity = "groups chosen by hand; the contrast of classes and of groups, no detector"
    data = "digits: round ones (0, 6, 8), straight ones (1, 4, 7), open ones (2, 3, 9)"
    claims = (
        Claim("group", "Unseen classes fall nearest to their own group more often than by chance.",
              "share in hyperbolic space, less 1/3"),
        Claim("hyperbolic", "In hyperbolic space more often than by cosine.",
              "share, hyperbolic less cosine"),
        Claim("known", "Known classes keep to their group.",
              "share of fresh rows of known classes, hyperbolic, less 0.9"),
    )  # fmt: skip
    null = Claim("made up", "Groups that were drawn at random mean nothing for unseen classes.",
                 "share, hyperbolic", above=1 / 3)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train with each metric; once with random groups."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        unseen = [g[int(torch.randint(3, (), generator=draw))] for g in GROUPS]
        found, steps = dict[str, tuple[float, float]](), TINY if tiny else STEPS
        for metric in METRICS:
            tick(metric)
            found[metric] = _shares(x, label, _groups(GROUPS), unseen, metric, seed, steps)
        order = torch.randperm(9, generator=draw)
        digits = torch.tensor([d for g in GROUPS for d in g])[order].reshape(3, 3).tolist()
        made_up = [g[0] for g in digits]
        tick("random groups")
        null = _shares(x, label, _groups(digits), made_up, "poincare", seed, steps)
        return {
            "group": found["poincare"][0] - 1 / 3,
            "hyperbolic": found["poincare"][0] - found["cosine"][0],
            "known": found["poincare"][1] - 0.9,
            "made up": null[0],
            **{f"unseen | {m}": v[0] for m, v in found.items()},
            **{f"known | {m}": v[1] for m, v in found.items()},
        }


def _groups(groups: Any) -> Tensor:
    """Return the group of each digit, -1 for none."""
    found = torch.full((10,), -1)
    for i, digits in enumerate(groups):
        found[torch.tensor(digits)] = i
    return found


def _shares(
    x: Tensor,
    label: Tensor,
    group_of: Tensor,
    unseen: list[int],
    metric: Any,
    seed: int,
    steps: int,
) -> tuple[float, float]:
    """Return how often unseen and known rows are nearest to the centre of their own group."""
    strange = torch.isin(label, torch.tensor(unseen))
    known = torch.nonzero(~strange[:FIT] & (group_of[label[:FIT]] >= 0)).flatten()
    net = drawn(lambda: nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, DIM)), seed)
    heat = 0.2 if metric == "cosine" else 1.0
    classes, groups = Contrast(heat, metric=metric), Contrast(heat, metric=metric)

    def loss(some: Tensor) -> Tensor:
        rows = known[some]
        states = net(x[rows])
        return classes(states, label[rows]) + groups(states, group_of[label[rows]])

    minimise(loss, net.parameters(), len(known), steps=steps, seed=seed)
    with torch.no_grad():
        states = net(x)
        centres = torch.stack(
            [states[known][group_of[label[known]] == g].mean(0) for g in range(3)]
        )
        near = _near(states, centres, metric)
    right = (near == group_of[label]).double()
    fresh = torch.arange(len(x)) >= FIT
    seen = fresh & ~strange & (group_of[label] >= 0)
    return float(right[strange].mean()), float(right[seen].mean())


def _near(x: Tensor, centres: Tensor, metric: str) -> Tensor:
    if metric == "poincare":
        return poincare_distance(to_ball(x), to_ball(centres)).argmin(1)
    if metric == "cosine":
        x, centres = (nn.functional.normalize(v, dim=1) for v in (x, centres))
    return torch.cdist(x, centres).argmin(1)
