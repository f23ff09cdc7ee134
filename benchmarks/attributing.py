"""Attributions against captum's, and at a middle site against those at the input."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.against import seconds_note
from benchmarks.child import ChildError, run_child
from benchmarks.environments import PeerError, python_of
from benchmarks.nets import residual_net
from benchmarks.protocol import AGAIN, PLAIN, interleaved, ratio_of
from benchmarks.rows import Row, not_measured
from benchmarks.size import Size
from sonde.explain import Baseline, IntegratedGradients, Objective

PEER, RUNNER = "captum", "benchmarks.attribute_runner"
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
    try:
        python = python_of(PEER, size.offline)
        taken = run_child(f"{RUNNER}:times", python, rounds=size.rounds, **how)
        held = [
            run_child(f"{RUNNER}:memory", python, steady=True, peer=peer, **how)
            for peer in (False, True)
        ]
    except (PeerError, ChildError) as error:
        return [not_measured("attribute", what, str(error))]
    same = "noise differs" if "Smooth" in what else f"values differ by {taken['apart']:.1e}"
    note = f"{seconds_note(taken)}; {same}; {taken['version']}"
    times = (taken["median"], "x", TIME_BUDGET, taken["spread"], taken["rounds"], note)
    share = held[0] / max(held[1], 1.0)
    adds = f"adds {held[0]:.0f} MiB, the peer {held[1]:.0f}"
    return [
        Row("attribute", f"{what}, time", *times),
        Row("attribute", f"{what}, memory", share, budget=MEMORY_BUDGET, note=adds),
    ]


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
