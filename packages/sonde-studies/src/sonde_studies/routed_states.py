"""Routed dimensions of a residual net's own states: few are read and changed for each token.

A simulated task of thirty-two kinds of tokens, each with a map of its own. A net of two blocks
carries a state of 72 numbers; each block reads and changes 24 of them for a row. Its dense rival
carries 24 numbers and has wider blocks, so that a row meets as many numbers. The rate of each arm
is the best of three on seeds 100 and 101.
"""

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from sonde.layers import Experts
from sonde_studies.arms import note_again, note_for
from sonde_studies.parts.lots import labels_by_lot
from sonde_studies.routed_dimensions import overlap_by_kind
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

KINDS, DIM, FIT, HELD, STEPS, LOT_STEPS, TINY = 32, 16, 16_000, 2_000, 600, 100, 6
BLOCKS, STATE, PARTS, K, SHARED, WIDTH, FUSED_WIDTH = 2, 72, 9, 2, 1, 32, 24
NARROW, NARROW_WIDTH = 24, 60
MOST = 0.9
"""Fraction of a state's sum of squares that the dimensions in use hold."""


@final
class RoutedStatesStudy(Study):
    """Three of nine parts of the states between blocks, against dense nets."""

    name = "routed-states"
    title = "do routed dimensions of the states do more than as many that are always on?"
    paper = "chen2024mohd"
    fidelity = "two blocks of one hidden layer; fusion reconstructed; no attention is routed"
    data = "simulated: thirty-two kinds of rows, each with a curved map of its own"
    claims = (
        Claim("active", "A net that routes the dimensions of its state does more than a dense net "
              "of as many active numbers.",
              "R2, routed less dense of as many active numbers, each at its best rate",
              arms=("routed", "dense, active")),
        Claim("all", "It does as well as a net of as many numbers that are all on.",
              "R2, routed less dense of all numbers, and 0.05",
              arms=("routed", "dense, all")),
        Claim("scaled", "Scaled by all parts over those that are on, it does more.",
              "R2, routed less routed without a scale, each at its best rate",
              arms=("routed", "routed, no scale")),
        Claim("shared", "A part that is always on and two routed ones do more than three routed "
              "parts.",
              "R2, one shared part less none",
              arms=("routed", "routed, none shared")),
        Claim("fused", "Groups that are fused behind each block do more than as many active "
              "numbers in its hidden layer.",
              "R2, fused groups less none",
              arms=("fused groups", "routed")),
        Claim("apart", "Kinds of rows turn on different dimensions.",
              "mean overlap of the parts of two rows, of one kind less of two kinds",
              arms=("routed", "routed, two kinds")),
        Claim("few", "A dense net's states have most of their square in fewer dimensions than "
              "normal numbers, which nothing has trained.",
              "share of dimensions that hold 0.9 of a row's square, normal less dense",
              arms=("dense, all", "normal numbers")),
    )  # fmt: skip
    null = Claim("lots", "Targets by lot are not told of other rows.",
                 "correlation of the routed net's answers with targets by lot")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each net."""
        x, y, kind = _world(seed)
        arms: dict[str, tuple[Callable[[], _Blocks], float]] = {
            "routed": (_routed, 1e-2),
            "routed, no scale": (lambda: _routed(scale="none"), 2e-2),
            "routed, none shared": (lambda: _routed(k=K + SHARED, shared=0), 1e-2),
            "fused groups": (lambda: _routed(width=FUSED_WIDTH, fusion="groups"), 1e-2),
            "dense, active": (lambda: _dense(NARROW, NARROW_WIDTH), 4e-2),
            "dense, all": (lambda: _dense(STATE, WIDTH), 2e-2),
        }
        found, nets = dict[str, float](), dict[str, _Blocks]()
        for arm, (make, rate) in arms.items():
            tick(arm)
            net = _learned(make, x, y, seed, TINY if tiny else STEPS, rate)
            with torch.no_grad():
                left = (net(x[FIT:]) - y[FIT:]).square().mean()
            truth = y[FIT:]
            found[arm] = float(1 - left / (truth - truth.mean(0)).square().mean())
            nets[arm] = net
        note_again("routed, two kinds", "routed")
        note_for("normal numbers", rows=0, updates=0, parameters=0)
        used = share_in_use(nets["dense, all"].states(x[FIT:]))
        draw = torch.Generator().manual_seed(seed)
        normal = share_in_use(torch.randn(HELD, STATE, generator=draw))
        first = nets["routed"].first()
        with torch.no_grad():
            start = nets["routed"].start(x[FIT:])
        tick("targets by lot")
        return {
            "active": found["routed"] - found["dense, active"],
            "all": found["routed"] - found["dense, all"] + 0.05,
            "scaled": found["routed"] - found["routed, no scale"],
            "shared": found["routed"] - found["routed, none shared"],
            "fused": found["fused groups"] - found["routed"],
            "apart": overlap_by_kind(first, start, kind[FIT:]),
            "few": normal - used,
            "lots": by_lot(x, seed, TINY if tiny else LOT_STEPS),
            "dimensions in use | dense, all": used,
            "dimensions in use | normal numbers": normal,
            **{f"R2 | {arm}": v for arm, v in found.items()},
        }


def by_lot(x: Tensor, seed: int, steps: int) -> float:
    """Return the correlation of a routed net's answers with targets by lot, on other rows."""
    table = torch.randn(KINDS, DIM, generator=torch.Generator().manual_seed(seed))
    y = table[labels_by_lot(x, KINDS, seed)]
    net = _learned(_routed, x, y, seed, steps, 1e-2)
    with torch.no_grad():
        both = torch.stack([(part - part.mean(0)).flatten() for part in (net(x[FIT:]), y[FIT:])])
    return float(torch.corrcoef(both)[0, 1])


def share_in_use(states: Tensor) -> float:
    """Return the mean share of a row's dimensions, largest first, that hold most of its square."""
    size = states.square().sort(-1, descending=True).values
    held = size.cumsum(-1) / size.sum(-1, keepdim=True)
    return float(((held < MOST).sum(-1) + 1).double().mean() / states.shape[-1])


def _world(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows, their targets and their kinds."""
    draw = torch.Generator().manual_seed(seed)
    kind = torch.randint(KINDS, (FIT + HELD,), generator=draw)
    centres = 1.5 * torch.randn(KINDS, DIM, generator=draw)
    maps = torch.randn(KINDS, DIM, DIM, generator=draw) / DIM**0.5
    noise = torch.randn(FIT + HELD, DIM, generator=draw)
    return centres[kind] + noise, torch.tanh(torch.einsum("nd,nde->ne", noise, maps[kind])), kind


def _learned(
    make: "Callable[[], _Blocks]", x: Tensor, y: Tensor, seed: int, steps: int, rate: float
) -> "_Blocks":
    net = drawn(make, seed)
    minimise(lambda r: (net(x[r]) - y[r]).square().mean(), net.parameters(), FIT, steps=steps,
             seed=seed, rate=rate, batch=256, falls=True)  # fmt: skip
    return net


@final
class _Blocks(nn.Module):
    """A map to the state, blocks that add to it, and a map to the answer."""

    def __init__(self, state: int, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.start = nn.Linear(DIM, state)
        self.blocks = nn.Sequential(*(block() for _ in range(BLOCKS)))
        self.head = nn.Linear(state, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.start(x)))

    @torch.no_grad()
    def states(self, x: Tensor) -> Tensor:
        """Return the states behind the last block, around their mean."""
        states = self.blocks(self.start(x))
        return states - states.mean(0)

    def first(self) -> Experts:
        """Return the first routed block."""
        return next(part for part in self.modules() if isinstance(part, Experts))


def _routed(width: int = WIDTH, k: int = K, shared: int = SHARED, **given: Any) -> _Blocks:
    return _Blocks(
        STATE, lambda: Experts(STATE, PARTS, width, over="dims", k=k, shared=shared, **given)
    )


def _dense(state: int, width: int) -> _Blocks:
    return _Blocks(state, lambda: Experts(state, 1, width, router="mean", k=1))
