"""What plain hooks cost that do nothing but take a mean: the measure of what a call costs here.

Machines differ twofold in what a few lines of Python and one call of torch take in the middle of a
forward, so costs for each site and call are told in this unit too.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row


def bare_hooks(net: nn.Module, sites: Sequence[str], forwards: Callable[[], object]) -> None:
    """Run forwards with a hook at each site that keeps the mean over the second axis."""
    kept: list[torch.Tensor] = []
    hooks = [
        net.get_submodule(s).register_forward_hook(lambda m, a, out: kept.append(out.mean(1)))
        for s in sites
    ]
    try:
        forwards()
    finally:
        for hook in hooks:
            hook.remove()


def bare_cost(
    net: nn.Module, sites: Sequence[str], forward: Callable[[], object], per_round: int, rounds: int
) -> float:
    """Return microseconds of such a hook for each site and forward."""

    def plain() -> None:
        for _ in range(per_round):
            forward()

    arms = {PLAIN: plain, "bare": lambda: bare_hooks(net, sites, plain), AGAIN: plain}
    taken = interleaved(arms, rounds)
    seconds = sum(taken[PLAIN]) / rounds / per_round
    return 1e6 * seconds * (ratio_of(taken, "bare").median - 1.0) / len(sites)


def in_bare_hooks(row: Row, bare: float, budget: float) -> Row:
    """Return a row of microseconds in bare hooks."""
    return Row(
        row.name,
        f"{row.what}, in bare hooks",
        row.value / bare,
        budget=budget,
        spread=row.spread / bare,
        rounds=row.rounds,
        note=f"a bare hook {bare:.1f} us",
    )
