"""Faults as products: what is changed, which part of it, in which rows, and how.

A *kind* is such a product, ``numbers.one.scale.all``. Kinds are split by a hash: a third of them is
closed, which rules may not be written for.
"""

import copy
import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from tools.faultgen import damages, operators
from tools.faultgen.places import Place, moved, moved_modules
from tools.faultgen.tasks import Rows, Spec
from tools.faultgen.worlds import World
from torch import Tensor, nn

ROWS = ("all", "span", "share")
N_CLOSED = 3


@dataclass(frozen=True)
class Fault:
    """A fault of a world, with drawn place and strength.

    Parameters
    ----------
    kind : str
    on_rows : callable
        Changes rows, by a seed.
    on_net : callable
        Changes a copy of the net, in place; it may give another net.
    """

    kind: str
    on_rows: Callable[[Rows, int], Rows] = lambda rows, _: rows
    on_net: Callable[[nn.Module], nn.Module] = lambda net: net


@dataclass(frozen=True)
class Planted:
    """A world with a fault, and where it sits in the rows that are scanned."""

    healthy: World
    faulty: World
    fault: Fault
    truth: Place


def is_closed(kind: str) -> bool:
    """Return whether a kind is closed: for the last check alone."""
    return hashlib.sha256(kind.encode()).digest()[0] % N_CLOSED == 0


def plant(world: World, fault: Fault) -> Planted:
    """Return a world and its twin with the fault in the net, the given and the fresh rows."""
    net = fault.on_net(copy.deepcopy(world.net))
    faulty = replace(
        world,
        net=net,
        given=fault.on_rows(world.given, 1),
        fresh=fault.on_rows(world.fresh, 2),
    )
    place = moved(world.given, faulty.given, world.task.specs)
    return Planted(world, faulty, fault, replace(place, modules=moved_modules(world.net, net)))


def _in_rows(which: str, draw: random.Random) -> Callable[[Tensor, Tensor, int], Tensor]:
    """Return what keeps a change in some rows: a span at the end or a drawn share of them."""
    start, share = draw.uniform(0.35, 0.65), draw.uniform(0.25, 0.5)

    def kept(old: Tensor, new: Tensor, seed: int) -> Tensor:
        n = len(old)
        if which == "all":
            return new
        if which == "span":
            inside = torch.arange(n) >= int(start * n)
        else:
            inside = torch.rand(n, generator=torch.Generator().manual_seed(seed)) < share
        return torch.where(inside.reshape(-1, *[1] * (old.ndim - 1)), new, old)

    return kept


def _on_tensor(
    name: str, spec: Spec, part: str, which: str, op: operators.Operator, world: World,
    draw: random.Random,
) -> Fault:  # fmt: skip
    x, axis = world.train.tensors[name], spec.feature_axis
    at: Tensor | None = None
    if part != "whole" and axis is not None:
        n = x.shape[axis]
        k = 1 if part == "one" else min(draw.choice((2, 3)), n - 1)
        at = torch.tensor(sorted(draw.sample(range(n), k)))
    seen = x if at is None or axis is None else x.index_select(axis, at)
    change, kept = op.make(draw, seen, spec), _in_rows(which, draw)

    def on_rows(rows: Rows, seed: int) -> Rows:
        old, g = rows.tensors[name], torch.Generator().manual_seed(seed)
        if at is None or axis is None:
            new = change(old, g).to(old.dtype)
        else:
            new = old.clone()
            new.index_copy_(axis, at, change(old.index_select(axis, at), g).to(old.dtype))
        return rows.with_tensor(name, kept(old, new, seed))

    return Fault(f"{spec.role}.{part}.{op.name}.{which}", on_rows)


def _fits(op: operators.Operator, spec: Spec, part: str, x: Tensor) -> bool:
    axis = spec.feature_axis
    n = 1 if axis is None else x.shape[axis]
    return (
        op.role == spec.role
        and part in op.parts
        and (part == "whole" or n > 2 + (part == "some"))
        and (op.needs != "several" or n > 1)
        and (op.needs in ("", "several") or op.needs in spec.axes)
    )


Candidate = tuple[str, Callable[[random.Random], Fault]]


def candidates(world: World) -> Iterator[Candidate]:
    """Yield every kind that a world can have, with what draws a fault of it."""
    for name, spec in world.task.specs.items():
        for op in operators.OPERATORS:
            for part in ("whole", "one", "some"):
                if not _fits(op, spec, part, world.train.tensors[name]):
                    continue
                for which in ROWS:
                    kind = f"{spec.role}.{part}.{op.name}.{which}"
                    yield kind, lambda d, a=(name, spec, part, which, op): _on_tensor(*a, world, d)
    for target in damages.TARGETS:
        if world.task.kind in target.kinds:
            for which in ROWS:
                kind = f"target.{target.name}.{which}"
                yield kind, lambda d, a=(target, which): _on_target(*a, world, d)
    for name, damage in damages.MODULES.items():
        found = list(damage(world))
        if found:
            yield f"net.{name}", lambda d, n=name, f=found: Fault(f"net.{n}", on_net=d.choice(f)(d))


def _on_target(
    target: "damages.TargetChange", which: str, world: World, draw: random.Random
) -> Fault:
    change, kept = target.make(draw, world), _in_rows(which, draw)

    def on_rows(rows: Rows, seed: int) -> Rows:
        new = change(rows.target, torch.Generator().manual_seed(seed))
        return replace(rows, target=kept(rows.target, new, seed))

    return Fault(f"target.{target.name}.{which}", on_rows)
