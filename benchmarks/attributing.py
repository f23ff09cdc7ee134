"""Attributions against captum's, and at a middle site against those at the input."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.nets import residual_net
from benchmarks.peers import PEER_OF, time_and_memory_rows
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row
from benchmarks.size import Size
from sonde.explain import Baseline, IntegratedGradients, Objective

RUNNER = "attribute_runner"
PEER = PEER_OF[RUNNER]
TIME_BUDGET, MEMORY_BUDGET, MIDDLE_BUDGET = 1.02, 1.0, 0.7
MIDDLE = "7"
"""The fourth of the blocks 4 to 11 of the residual net."""
METHODS = ("integrated gradients", "SmoothGrad", "Grad-CAM", "occlusion")


def attribution_rows(size: Size) -> list[Row]:
    """Time and memory of attributions at the input, with 256 rows in a forward in both arms."""
    width, side, steps = size.pick((64, 224, 50), (4, 32, 4))
    depth, wide, length = size.pick((12, 768, 64), (2, 64, 8))
    pictures: dict[str, Any] = {"kind": "picture", "width": width, "side": side, "steps": steps}
    of = f"18-layer residual net of width {width}, one picture of {side} x {side}"
    asked = [(f"{method}, {of}", pictures | {"method": method}) for method in METHODS]
    texts: dict[str, Any] = {"kind": "text", "depth": depth, "width": wide, "length": length}
    what = f"integrated gradients, {depth} x {wide} transformer, one text of {length} tokens"
    asked.append((what, texts | {"steps": steps}))
    found: list[Row] = []
    for what, how in asked:
        found += _against(f"{what}, against {PEER}", how, size)
    return [*found, _middle(of, width, side, steps, size)]


def _against(what: str, how: dict[str, Any], size: Size) -> list[Row]:
    def notes(taken: dict[str, Any]) -> tuple[str, str]:
        apart = f"values differ by {taken['apart']:.1e}"
        return f"; {'noise differs' if 'Smooth' in what else apart}", ""

    budgets = (TIME_BUDGET, MEMORY_BUDGET)
    return time_and_memory_rows(RUNNER, "attribute", what, size, how, budgets, notes)


def _middle(of: str, width: int, side: int, steps: int, size: Size) -> Row:
    """Return the time of integrated gradients at a middle block, over that at the input."""
    net = residual_net(width)
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    method, goal = IntegratedGradients(steps, Baseline("zero")), Objective("logit", target=3)

    def at(site: str) -> Callable[[], object]:
        return lambda: method.explain(net, x, objective=goal, site=site)

    arms = {PLAIN: at("input"), "ours": at(MIDDLE), AGAIN: at("input")}
    ratio = ratio_of(interleaved(arms, size.rounds, warm_ups=1), "ours")
    return Row(
        "attribute",
        f"integrated gradients after the fourth of eight blocks, {of}, against those at the input",
        ratio.median,
        "x",
        MIDDLE_BUDGET,
        ratio.spread,
        ratio.rounds,
        ratio.noise,
    )
