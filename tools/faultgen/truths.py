"""Whether a warning about a world without a fault is true: asked of rows that no scan has seen.

A net without a planted fault may still be too sure of its answers, or its data may hold near
copies. A warning that says so is right. Each check here is made of rows, weights and answers alone,
without the code of the rule. A warning that has no check counts as false.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
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
"""Largest change of a weight, relative to its size, since early in the training, or largest slope
of a saturated unit, relative to the steepest."""
DIRECTIONS: Final = 2.0
"""Effective number of directions of a layer without any other use than one direction."""
ALIKE: Final = 0.99
"""Mean cosine of the states of different rows that hardly differ."""


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
    is_set = world.task.shape == "set"  # in another order it is the same set
    parts = [
        _spread((x.sort(1).values if is_set else x).double().flatten(1))
        for x in world.given.tensors.values()
    ]
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
        for column in named["columns"] or [None]:
            values = x if axis is None or column is None else x.select(axis, int(column))
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
    """Return whether fresh rows of the named label are answered worse.

    Without a label, rows next to the listed ones, by states.
    """
    score = by_row(world.task.kind, answers(world.net, world.fresh), world.fresh.target)
    label = re.match(r"label (\d+):", finding["sentence"])
    if label is not None and world.fresh.target.shape == score.shape:
        return _is_worse(score, world.fresh.target == int(label[1]))
    rows = torch.tensor([int(i) for i in finding["rows"]])
    if len(rows) < 3 or not finding["sites"]:
        return False
    site = finding["sites"][0]
    given, fresh = (_by_vector(_states(world, x, site)) for x in (world.given, world.fresh))
    return _is_worse(score, torch.isin(torch.cdist(fresh, given).argmin(1), rows))


def _is_worse(score: Tensor, some: Tensor) -> bool:
    """Return whether some rows are answered worse than the others by two standard errors."""
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


def _is_decoded_earlier(finding: Finding, world: World) -> bool:
    """Return whether a classifier of states at the named site beats the model on fresh rows."""
    given, fresh = (
        _by_vector(_states(world, x, finding["sites"][0])) for x in (world.given, world.fresh)
    )
    probe = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    probe.fit(given.numpy(), world.given.target.numpy())
    better = torch.from_numpy(probe.predict(fresh.numpy())) == world.fresh.target
    own = answers(world.net, world.fresh).argmax(1) == world.fresh.target
    gain = better.double() - own.double()
    return float(gain.mean()) > 2 * float(gain.std()) / len(gain) ** 0.5


def _units(world: World, site: str) -> Tensor:
    """Return the states of fresh rows at a site, one vector for each row and position."""
    x = _states(world, world.fresh, site)
    x = x.movedim(1, -1) if x.ndim == 4 else x
    return x.reshape(-1, x.shape[-1])


def _is_saturated(finding: Finding, world: World) -> bool:
    """Return whether most units of a tanh or a sigmoid are at its ends in most fresh rows."""
    site = finding["sites"][0]
    module, y = world.net.get_submodule(site.split(":")[0]), _units(world, site)
    if isinstance(module, torch.nn.Tanh):
        slope = 1 - y.square()
    elif isinstance(module, torch.nn.Sigmoid):
        slope = 4 * y * (1 - y)
    else:
        return False
    return float((slope < STILL).double().mean()) > 0.5


def _are_one_direction(finding: Finding, world: World) -> bool:
    """Return whether the correlations of a site's units have about one large eigenvalue."""
    x = _units(world, finding["sites"][0])
    x = x[:, x.std(0) > 1e-6 * x.abs().mean()]
    if x.shape[1] < 3:
        return False
    values = torch.linalg.eigvalsh(torch.corrcoef(x.T))
    return float(values.sum() ** 2 / values.square().sum()) < DIRECTIONS


def _are_alike(finding: Finding, world: World) -> bool:
    """Return whether the states of fresh rows point the same way."""
    x = _units(world, finding["sites"][0])
    x = x[torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:1000]]
    x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return float(x.mean(0).norm()) ** 2 > ALIKE


CHECKS: Final[Mapping[str, Callable[[Finding, World], bool]]] = {
    "SND003": _are_as_early,
    "SND011": _are_still,
    "SND013": _is_saturated,
    "SND022": _are_one_direction,
    "SND023": _are_alike,
    "SND031": _is_decoded_earlier,
    "SND042": _are_near,
    "SND061": _is_weak_group,
    "SND062": _has_weak_classes,
    "SND063": _is_weak_group,
    "SND069": _is_too_sure,
    "SND083": _is_idle,
    "SND085": _is_repeated,
}
