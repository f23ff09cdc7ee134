"""Places in a world: tensors and their features, rows, targets, modules; found by comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tools.faultgen.tasks import Rows, Spec
from torch import Tensor, nn

MOST = 0.9
"""Fraction of rows from which a change is one of all rows."""


@dataclass(frozen=True)
class Place:
    """Where something sits.

    Parameters
    ----------
    tensors : mapping of str to frozenset of int
        Features of each tensor; empty: all of them.
    rows : frozenset of int or None
        None: all rows.
    targets : bool
    modules : frozenset of str
    """

    tensors: Mapping[str, frozenset[int]] = field(default_factory=dict[str, frozenset[int]])
    rows: frozenset[int] | None = None
    targets: bool = False
    modules: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.tensors or self.targets or self.modules or self.rows)

    def json(self) -> dict[str, Any]:
        """Return the place as JSON."""
        return {
            "tensors": {n: sorted(f) for n, f in self.tensors.items()},
            "rows": None if self.rows is None else len(self.rows),
            "targets": self.targets,
            "modules": sorted(self.modules),
        }


def _features(a: Tensor, b: Tensor, spec: Spec) -> frozenset[int]:
    axis = spec.feature_axis
    if axis is None:
        return frozenset()
    moved = (a != b).movedim(axis, 0).flatten(1).any(1)
    found = torch.nonzero(moved).flatten().tolist()
    return frozenset() if len(found) == a.shape[axis] else frozenset(found)


def moved(before: Rows, after: Rows, specs: Mapping[str, Spec]) -> Place:
    """Return the tensors, features and rows in which two sets of rows differ."""
    tensors, changed = {}, torch.zeros(len(before), dtype=torch.bool)
    for name, old in before.tensors.items():
        new = after.tensors[name]
        if new.shape != old.shape:
            tensors[name] = frozenset[int]()
            changed |= True
        elif not torch.equal(old, new):
            tensors[name] = _features(old, new, specs[name])
            changed |= (old != new).flatten(1).any(1)
    targets = before.target.shape != after.target.shape or not torch.equal(
        before.target, after.target
    )
    if targets and before.target.shape == after.target.shape:
        changed |= (before.target != after.target).reshape(len(before), -1).any(1)
    share = float(changed.float().mean())
    rows = frozenset(torch.nonzero(changed).flatten().tolist()) if 0 < share < MOST else None
    return Place(tensors, rows, targets)


def moved_modules(before: nn.Module, after: nn.Module) -> frozenset[str]:
    """Return the modules whose own weights, buffers, class or plain attributes differ."""
    old, new = (dict(net.named_modules()) for net in (before, after))
    return frozenset(n for n, m in new.items() if n not in old or _differ(old[n], m))


def _differ(a: nn.Module, b: nn.Module) -> bool:
    if type(a) is not type(b):
        return True
    held = [dict(m.named_parameters(recurse=False)) | dict(m.named_buffers(recurse=False))
            for m in (a, b)]  # fmt: skip
    if held[0].keys() != held[1].keys():
        return True
    if any(not torch.equal(held[0][n], held[1][n]) for n in held[0]):
        return True
    plain = [
        {k: v for k, v in vars(m).items() if isinstance(v, bool | int | float | str)}
        for m in (a, b)
    ]
    return plain[0] != plain[1]


def overlap(named: Place, truth: Place, specs: Mapping[str, Spec]) -> bool:
    """Return whether a named place meets the planted one and is about as narrow.

    A column fault is met by its column, among at most a few others; the fault of a whole tensor by
    that tensor, or by at least half of its features. Rows are met if the named ones lie among the
    planted ones far more often than by chance.
    """
    if truth.targets and named.targets:
        return True
    if truth.modules and named.modules and len(named.modules) <= 2 + 2 * len(truth.modules):
        return any(_nested(a, b) for a in named.modules for b in truth.modules)
    for name, features in truth.tensors.items():
        if name in named.tensors and _features_meet(named.tensors[name], features, specs[name]):
            return True
    return False


def rows_meet(named: Sequence[int], truth: Place, n: int) -> bool:
    """Return whether named rows are planted ones, more often than half way above chance."""
    if truth.rows is None or not named:
        return False
    share = len(truth.rows) / n
    inside = sum(row in truth.rows for row in named) / len(named)
    return inside >= (1 + share) / 2


def _features_meet(named: frozenset[int], truth: frozenset[int], spec: Spec) -> bool:
    if not truth:
        return True if not named or spec.feature_axis is None else len(named) >= 2
    if not named:
        return False
    return bool(named & truth) and len(named) <= 2 + 2 * len(truth)


def _nested(a: str, b: str) -> bool:
    return bool(a and b) and (a == b or a.startswith(f"{b}.") or b.startswith(f"{a}."))
