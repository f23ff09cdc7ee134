"""Routed units of one layer: few are active for each token.

A simulated task of eight kinds of tokens, each with a map of its own. ``Experts`` adds its input
to its output, and the target holds none of it, so every arm returns what a layer adds. Widths are
such that the arms on fusion use equally many numbers for a row, the full map a tenth more.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.layers import Adapter, Experts
from sonde_studies.arms import note_again
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

KINDS, DIM, PARTS, K, SHARED, FIT, HELD, STEPS, TINY = 8, 16, 9, 2, 1, 4_000, 1_000, 800, 6
PART, WIDE_PART, MAPPED_PART = 8, 20, 6


@final
class RoutedDimensionsStudy(Study):
    """Three of nine parts of a hidden layer chosen by a router, against dense layers."""

    name = "routed-dimensions"
    title = "do routed units do more than as many units that are always on?"
    paper = "chen2024mohd"
    fidelity = "one hidden layer in place of all of a language model's states; fusion reconstructed"
    data = "simulated: eight kinds of rows, each with a curved map of its own"
    claims = (
        Claim("active", "Routed units do more than as many that are always on.",
              "R2, routed less dense of as many active units",
              arms=("routed", "dense, active")),
        Claim("all", "They come within .05 of all units always on.",
              "R2, routed less dense of all units, and 0.05",
              arms=("routed", "dense, all")),
        Claim("apart", "Kinds of rows turn on different parts.",
              "mean overlap of the parts of two rows, of one kind less of two kinds",
              arms=("routed", "routed, two kinds")),
        Claim("scaled", "Scaled by all parts over those that are on, they learn more.",
              "R2, routed less routed without a scale",
              arms=("routed", "routed, no scale")),
        Claim("fused", "A map that fuses groups of units before the nonlinearity helps.",
              "R2, fused groups less no fusion",
              arms=("fused groups", "routed")),
        Claim("worth", "It helps more than wider parts with as many active numbers.",
              "R2, fused groups less wider parts without fusion",
              arms=("fused groups", "wider parts")),
        Claim("grouped", "Fused groups do as well as a full map of as many active numbers.",
              "R2, fused groups less full map, and 0.05",
              arms=("fused groups", "full map")),
    )  # fmt: skip
    null = Claim("lots", "Targets by lot are not told of other rows.",
                 "correlation of what the routed layer adds with targets by lot")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each layer."""
        draw = torch.Generator().manual_seed(seed)
        kind = torch.randint(KINDS, (FIT + HELD,), generator=draw)
        centres = 1.5 * torch.randn(KINDS, DIM, generator=draw)
        maps = torch.randn(KINDS, DIM, DIM, generator=draw) / DIM**0.5
        noise = torch.randn(FIT + HELD, DIM, generator=draw)
        x = centres[kind] + noise
        y = torch.tanh(torch.einsum("nd,nde->ne", noise, maps[kind]))
        arms = {
            "routed": _routed,
            "routed, no scale": lambda: _routed(scale="none"),
            "routed, root": lambda: _routed(scale="rms"),
            "routed, scores": lambda: _routed(scale="scores"),
            "fused groups": lambda: _routed(fusion="groups"),
            "full map": lambda: _routed(MAPPED_PART, fusion="dense"),
            "wider parts": lambda: _routed(WIDE_PART),
            "dense, active": lambda: _Added(Adapter(DIM, (K + SHARED) * PART)),
            "dense, all": lambda: _Added(Adapter(DIM, PARTS * PART)),
        }
        found, nets = dict[str, float](), dict[str, nn.Module]()
        steps = TINY if tiny else STEPS
        for arm, make in arms.items():
            tick(arm)
            net = _learned(make, x, y, seed, steps)
            with torch.no_grad():
                left = (net(x[FIT:]) - y[FIT:]).square().mean()
            truth = y[FIT:]
            found[arm] = float(1 - left / (truth - truth.mean(0)).square().mean())
            nets[arm] = net
        note_again("routed, two kinds", "routed")
        tick("targets by lot")
        return {
            "active": found["routed"] - found["dense, active"],
            "all": found["routed"] - found["dense, all"] + 0.05,
            "apart": overlap_by_kind(_layer(nets["routed"]), x[FIT:], kind[FIT:]),
            "scaled": found["routed"] - found["routed, no scale"],
            "fused": found["fused groups"] - found["routed"],
            "worth": found["fused groups"] - found["wider parts"],
            "grouped": found["fused groups"] - found["full map"] + 0.05,
            "lots": by_lot(x, seed, steps),
            **{f"R2 | {arm}": v for arm, v in found.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the correlation of what a routed layer adds with targets by lot, on other rows."""
    table = torch.randn(KINDS, DIM, generator=torch.Generator().manual_seed(seed))
    y = table[labels_by_lot(x, KINDS, seed)]
    net = _learned(_routed, x, y, seed, steps)
    with torch.no_grad():
        both = torch.stack([(part - part.mean(0)).flatten() for part in (net(x[FIT:]), y[FIT:])])
    return float(torch.corrcoef(both)[0, 1])


def _learned(
    make: Callable[[], nn.Module], x: Tensor, y: Tensor, seed: int, steps: int
) -> nn.Module:
    net = drawn(make, seed)
    minimise(lambda r: (net(x[r]) - y[r]).square().mean(), net.parameters(), FIT, steps=steps,
             seed=seed, batch=128)  # fmt: skip
    return net


@final
class _Added(nn.Module):
    """What a layer adds to its input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) - x


def _routed(part: int = PART, **given: Any) -> _Added:
    layer = Experts(DIM, PARTS, part, over="units", k=K, shared=SHARED, **given)
    return _Added(layer)


def _layer(net: nn.Module) -> Experts:
    return next(part for part in net.modules() if isinstance(part, Experts))


@torch.no_grad()
def overlap_by_kind(layer: Experts, x: Tensor, kind: Tensor) -> float:
    """Return the mean overlap of two rows' routed parts, rows of one kind less rows of two."""
    on = (layer.shares(x) > 0).double()
    both = on @ on.T / layer.k
    same = (kind[:, None] == kind) & ~torch.eye(len(x), dtype=torch.bool)
    return float(both[same].mean() - both[kind[:, None] != kind].mean())
