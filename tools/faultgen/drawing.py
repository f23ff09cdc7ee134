"""``draw(seed)``: a task, a net that learned it, a fault that costs, and where it sits."""

import random
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count

from tools.faultgen.grammar import Candidate, Fault, Planted, candidates, is_closed, plant
from tools.faultgen.worlds import World, answers, draw_world, score

LEAST = {"number": 0.1, "numbers": 0.1}
POINTS = 0.05
"""Accuracy that a fault costs at least; of regressions a tenth of R^2."""
TRIES = 12
GROUPS = {"numbers": 4, "codes": 2, "mask": 1, "bonds": 1, "target": 2, "net": 3}
FORWARD = ("pooling", "no mask", "flattening", "no residual", "dropout on", "padding",
           "activation", "no norm")  # fmt: skip


def bounded(value: float) -> float:
    """Return a score, not below that of the mean: R^2 has no lower end."""
    return max(value, 0.0)


def worlds(draw: random.Random, seed: int) -> Iterator[World]:
    """Yield worlds whose nets learned enough."""
    for number in count():
        world = draw_world(draw, seed, number)
        if world is not None:
            yield world


def healthy(seed: int) -> World:
    """Return a world without a fault."""
    return next(worlds(random.Random(seed), seed))


def draw(seed: int, closed: bool = False) -> Planted:
    """Return a world with a fault that costs 5 points or a tenth of R^2.

    Parameters
    ----------
    seed : int
        The same seed gives the same world and fault.
    closed : bool, default=False
        Whether the fault is of a closed kind. Its draw depends on the week too.
    """
    week = datetime.now(UTC).strftime("%G-%V") if closed else ""
    chosen = random.Random(f"{seed} {week} fault")
    for world in worlds(random.Random(seed), seed):
        kinds = [c for c in candidates(world) if is_closed(c[0]) == closed]
        for _ in range(TRIES):
            made = plant(world, _chosen(kinds, chosen))
            if runs(made) and cost(made) >= LEAST.get(world.task.kind, POINTS):
                return made
    raise AssertionError  # worlds never end


def runs(made: Planted) -> bool:
    """Return whether the damaged net still answers: a net that raises has no silent fault."""
    try:
        answers(made.faulty.net, made.faulty.given)
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    return True


def cost(made: Planted) -> float:
    """Return the score that a fault takes from fresh rows."""
    kind = made.healthy.task.kind
    before, after = (score(kind, w.net, w.fresh) for w in (made.healthy, made.faulty))
    return bounded(before) - bounded(after)


def _chosen(kinds: list[Candidate], draw: random.Random) -> Fault:
    groups: dict[str, list[Candidate]] = {}
    for kind, make in kinds:
        groups.setdefault(group_of(kind), []).append((kind, make))
    names = list(groups)
    group = groups[draw.choices(names, [GROUPS[n.partition(" ")[0]] for n in names])[0]]
    return draw.choice(group)[1](draw)


def group_of(kind: str) -> str:
    """Return the group of a kind: what is changed; a net by its weights or its forward."""
    head, _, rest = kind.partition(".")
    if head == "net":
        return "net forward" if rest in FORWARD else "net weights"
    return head
