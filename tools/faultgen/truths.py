"""Whether a warning about a world without a fault is true: asked of rows that no scan has seen.

A net without a planted fault may still be too sure of its answers, or its data may hold near
copies. A warning that says so is right. Each check here is made of rows, weights and answers alone,
without the code of the rule. A warning that has no check counts as false.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from tools.faultgen.worlds import World, answers
from torch import Tensor

Finding = Mapping[str, Any]
SURE: Final = 0.05
"""Least confidence above accuracy, on fresh rows, of a net that is too sure."""
NEAR: Final = 0.1
"""Distance of a near copy, relative to that of the fifth nearest row."""
STILL: Final = 0.05
"""Largest change of a weight, relative to its size, since early in the training."""


def is_true(finding: Finding, world: World) -> bool:
    """Return whether a warning is true of a world without a fault."""
    check = CHECKS.get(finding["code"])
    return check is not None and check(finding, world)


def _is_too_sure(_: Finding, world: World) -> bool:
    logits, target = answers(world.net, world.fresh), world.fresh.target
    sure, answer = logits.softmax(1).max(1)
    gap = sure - (answer == target).float()
    return float(gap.mean()) - 2 * float(gap.std()) / len(gap) ** 0.5 > SURE


def _has_weak_classes(finding: Finding, world: World) -> bool:
    """Return whether fresh rows of the named classes are answered worse than the others."""
    target = world.fresh.target
    some = torch.isin(target, torch.tensor([int(c) for c in finding["classes"]], dtype=torch.long))
    right = (answers(world.net, world.fresh).argmax(1) == target).float()
    if not 1 < int(some.sum()) < len(some) - 1:
        return False
    a, b = right[some], right[~some]
    error = (a.var() / len(a) + b.var() / len(b)) ** 0.5
    return float(b.mean() - a.mean()) > 2 * float(error)


def _are_near(finding: Finding, world: World) -> bool:
    """Return whether most of the listed rows have a near copy among the inputs themselves."""
    parts = [_spread(x.double().flatten(1)) for x in world.given.tensors.values()]
    x = torch.cat(parts, 1)
    rows = torch.tensor([int(i) for i in finding["rows"]])
    if not len(rows):
        return False
    near = torch.cdist(x[rows], x).topk(6, largest=False).values[:, 1:]
    return float((near[:, 0] <= NEAR * near[:, -1]).double().mean()) > 0.5


def _spread(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-9)


def _is_repeated(finding: Finding, world: World) -> bool:
    """Return whether one value is in 5 % of a named column of fresh rows, far ahead of others."""
    named = finding["location"]
    for name in named["tensors"]:
        x, axis = world.fresh.tensors[name], world.task.specs[name].feature_axis
        for column in named["columns"]:
            values = x if axis is None else x.select(axis, int(column))
            counts = values.unique(return_counts=True)[1].sort(descending=True).values.tolist()
            if len(counts) > 1 and counts[0] >= max(0.05 * values.numel(), 3 * counts[1]):
                return True
    return False


def _are_as_early(finding: Finding, world: World) -> bool:
    """Return whether a named weight has hardly moved since early in the training."""
    now = world.net.state_dict()
    named = [n for n in now if any(n == s or n.startswith(f"{s}.") for s in finding["sites"])]
    named += [n for n in now if n in finding["sentence"]]
    moved = [
        float((now[n] - world.early[n]).norm() / now[n].norm().clamp(min=1e-12))
        for n in named if n in world.early and now[n].ndim > 1
    ]  # fmt: skip
    return bool(moved) and min(moved) < STILL


CHECKS: Final[Mapping[str, Callable[[Finding, World], bool]]] = {
    "SND003": _are_as_early,
    "SND042": _are_near,
    "SND062": _has_weak_classes,
    "SND069": _is_too_sure,
    "SND085": _is_repeated,
}
