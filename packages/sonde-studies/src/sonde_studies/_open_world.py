"""Nets that contrast classes and groups of classes, and rows that are near their centres."""

from typing import Any

import torch
from sklearn.metrics import roc_auc_score  # pyright: ignore[reportMissingTypeStubs]
from torch import Tensor, nn

from sonde.stats import poincare_distance, to_ball
from sonde.train import Contrast, relabel_unknown
from sonde_studies.arms import note_for, part
from sonde_studies.worlds.learning import drawn, minimise

FIT, DIM, UNKNOWN = 1_200, 16, 10


def group_of_digits(groups: Any) -> Tensor:
    """Return the group of each digit, -1 for none."""
    found = torch.full((UNKNOWN + 1,), -1)
    for i, digits in enumerate(groups):
        found[torch.tensor(digits)] = i
    return found


def given_labels(label: Tensor, group_of: Tensor, unseen: list[int]) -> Tensor:
    """Return the labels of training rows of known classes, and -1 for all other rows."""
    known = (torch.arange(len(label)) < FIT) & (group_of[label] >= 0)
    return torch.where(known & ~torch.isin(label, torch.tensor(unseen)), label, -1)


def trained(
    x: Tensor, given: Tensor, group_of: Tensor, metric: Any, seed: int, steps: int
) -> nn.Module:
    """Return a net that learned from the rows with a label."""
    known = torch.nonzero(given >= 0).flatten()
    net = drawn(lambda: nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, DIM)), seed)
    heat = 0.2 if metric == "cosine" else 1.0
    classes, groups = Contrast(heat, metric=metric), Contrast(heat, metric=metric)

    def loss(some: Tensor) -> Tensor:
        rows = known[some]
        states = net(x[rows])
        return classes(states, given[rows]) + groups(states, group_of[given[rows]])

    minimise(loss, net.parameters(), len(known), steps=steps, seed=seed)
    return net


@torch.no_grad()
def shares(
    net: nn.Module,
    x: Tensor,
    label: Tensor,
    given: Tensor,
    group_of: Tensor,
    unseen: list[int],
    metric: str,
) -> tuple[float, float]:
    """Return how often unseen and known rows are nearest to the centre of their own group."""
    right = (_far(net, x, group_of[given], x, metric).argmin(1) == group_of[label]).double()
    strange = torch.isin(label, torch.tensor(unseen))
    seen = (torch.arange(len(x)) >= FIT) & ~strange & (group_of[label] >= 0)
    return float(right[strange].mean()), float(right[seen].mean())


def relabelled(
    net: nn.Module,
    x: Tensor,
    label: Tensor,
    given: Tensor,
    group_of: Tensor,
    unseen: list[int],
    seed: int,
    steps: int,
) -> dict[str, float]:
    """Return the shares that are relabelled, and how well unseen digits are told after it.

    "with" is with the relabelled rows as a class, "by lot" with as many unlabelled rows by lot.
    """
    strange = torch.isin(label, torch.tensor(unseen))
    pool = x[:FIT][strange[:FIT]]
    scraps = nn.functional.pad(pool.reshape(-1, 8, 8), (4, 0))[..., :8].flatten(1)
    rows = torch.cat([x[given >= 0], pool, scraps])
    known = torch.cat([given[given >= 0], torch.full((2 * len(pool),), -1)])
    with torch.no_grad():
        new = relabel_unknown(net(rows), known, UNKNOWN)
    free, draw = torch.nonzero(known < 0).flatten(), torch.Generator().manual_seed(seed)
    chosen = free[torch.randperm(len(free), generator=draw)[: int((new == UNKNOWN).sum())]]
    lot = known.index_fill(0, chosen, UNKNOWN)
    fresh = (torch.arange(len(x)) >= FIT) & (group_of[label] >= 0)
    truth, got = strange[fresh].numpy(), (new[known < 0] == UNKNOWN).double()

    for name in ("unseen digits", "scraps"):
        note_for(name, rows=len(pool))

    def told(arm: str, labels: Tensor) -> float:
        with part(arm):
            own = trained(rows, labels, group_of, "poincare", seed, steps)
        near = _far(own, rows, labels, x[fresh])
        has_class = bool((labels == UNKNOWN).any())
        score = near[:, :-1].amin(1) - near[:, -1] if has_class else near.amin(1)
        return float(roc_auc_score(truth, score.numpy()))

    far = _far(net, rows, known, x[fresh])
    return {
        "unseen": float(got[: len(pool)].mean()),
        "scraps": float(got[len(pool) :].mean()),
        "without": float(roc_auc_score(truth, far.amin(1).numpy())),
        "with": told("relabelled rows", new),
        "by lot": told("rows by lot", lot),
    }


@torch.no_grad()
def _far(
    net: nn.Module, x: Tensor, label: Tensor, fresh: Tensor, metric: str = "poincare"
) -> Tensor:
    """Return the distance of fresh rows to the centre of each label of 0 or more."""
    states, y = net(x), net(fresh)
    centres = torch.stack([states[label == c].mean(0) for c in label[label >= 0].unique()])
    if metric == "poincare":
        return poincare_distance(to_ball(y), to_ball(centres))
    if metric == "cosine":
        y, centres = (nn.functional.normalize(v, dim=1) for v in (y, centres))
    return torch.cdist(y, centres)
