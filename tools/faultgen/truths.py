"""Whether a warning about a world without a fault is true: asked of rows that no scan has seen.

A net without a planted fault may still be too sure of its answers, or its data may hold near
copies. A warning that says so is right. Each check here is made of rows, weights and answers alone,
without the code of the rule. A warning that has no check counts as false.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from tools.faultgen.tasks import Rows
from tools.faultgen.worlds import World, answers, by_row
from torch import Tensor

Finding = Mapping[str, Any]
SURE: Final = 0.05
"""Least confidence above accuracy, on fresh rows, of a net that is too sure."""
NEAR: Final = 0.1
"""Distance of a near copy, relative to that of the fifth nearest row."""
STILL_ROWS: Final = 0.95
"""Fraction of fresh rows on which a unit or an input without use has one value."""
MOST: Final = 0.75
"""Fraction of the named units that must hardly change."""
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


def _states(world: World, rows: Rows, site: str) -> Tensor:
    """Return what a module gives for each row, as one vector: a mean over positions or pixels."""
    kept: list[Tensor] = []

    def keep(_: Any, __: Any, output: Any) -> None:
        x = next(iter(output.values())) if isinstance(output, Mapping) else output
        kept.append((x if isinstance(x, Tensor) else x[0]).double())

    handle = world.net.get_submodule(site.split(":")[0]).register_forward_hook(keep)
    try:
        answers(world.net, rows)
    finally:
        handle.remove()
    return torch.cat(kept)


def _by_vector(x: Tensor) -> Tensor:
    """Return one vector a row: channels of a picture, or the last axis, averaged over the rest."""
    return x if x.ndim == 2 else x.flatten(2).mean(2) if x.ndim == 4 else x.flatten(1, -2).mean(1)


def _is_weak_group(finding: Finding, world: World) -> bool:
    """Return whether fresh rows next to the listed ones, by states, are answered worse."""
    rows = torch.tensor([int(i) for i in finding["rows"]])
    if len(rows) < 3 or not finding["sites"]:
        return False
    site = finding["sites"][0]
    given, fresh = (_by_vector(_states(world, x, site)) for x in (world.given, world.fresh))
    some = torch.isin(torch.cdist(fresh, given).argmin(1), rows)
    score = by_row(world.task.kind, answers(world.net, world.fresh), world.fresh.target)
    if not 2 < int(some.sum()) < len(some) - 2:
        return False
    a, b = score[some], score[~some]
    error = (a.var() / len(a) + b.var() / len(b)) ** 0.5
    return float(b.mean() - a.mean()) > 2 * float(error)


def _are_still(finding: Finding, world: World) -> bool:
    """Return whether about as many units of a site as are named hardly change on fresh rows."""
    named = re.search(r"([0-9,]+) of [0-9,]+ units", finding["sentence"])
    if named is None or not finding["sites"]:
        return False
    x = _states(world, world.fresh, finding["sites"][0])
    x = x.movedim(1, -1) if x.ndim == 4 else x
    units = x.reshape(-1, x.shape[-1])
    still = (units == units.mode(0).values).double().mean(0) >= STILL_ROWS
    return int(still.sum()) >= MOST * int(named[1].replace(",", ""))


def _is_idle(finding: Finding, world: World) -> bool:
    """Return whether the named inputs hold one value in nearly all fresh rows too."""
    named = finding["location"]
    for name in named["tensors"]:
        x, axis = world.fresh.tensors[name], world.task.specs[name].feature_axis
        for column in named["columns"] or [None]:
            values = x if axis is None or column is None else x.select(axis, int(column))
            if float((values == values.flatten().mode().values).double().mean()) < STILL_ROWS:
                return False
    return bool(named["tensors"])


CHECKS: Final[Mapping[str, Callable[[Finding, World], bool]]] = {
    "SND003": _are_as_early,
    "SND011": _are_still,
    "SND042": _are_near,
    "SND061": _is_weak_group,
    "SND062": _has_weak_classes,
    "SND063": _is_weak_group,
    "SND069": _is_too_sure,
    "SND083": _is_idle,
    "SND085": _is_repeated,
}
