"""Rows needed by several kinds of weight sharing if one of many patches shows the class.

Simulated. Theory orders the maps by what they know before: full, local, shared.
"""

from itertools import pairwise
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import GeneratedKernels, GridMixer, WaveChannels
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import accuracy, drawn, minimise

SIDE, DIM, HELD, STEPS, TINY = 6, 4, 1_000, 300, 15
SIZES, CLEAR, FAINT = (50, 200, 800), 1.5, 1.0
"""Rows to learn from; sizes of the pattern. Of clear ones 50 rows teach some arms all."""
KINDS = ("full", "local", "shared", "axis", "raft", "dilated", "generated")
WAVES = {"waves": 3, "plain waves": 4}
"""Channels behind dilated branches: waves for each channel of the map (345 and 361 numbers)."""
ALL = ("grid", "near", "product")
KERNELS = {"grid": (42, ALL[:1]), "near": (24, ALL[1:2]), "block": (16, ALL)}
"""Branches of two layers, and units of their slow network (322, 316, 320 numbers a layer)."""
NETS, DEEP, PLAIN = ("skips", "no skips", "plain net"), 3, 7
"""Nets of three blocks with and without a connection around each (960 numbers), and of three
convolutions whose hidden maps have seven channels (963)."""


@final
class LocalityStudy(Study):
    """A class shown at a random position of a grid, learned by several maps over positions."""

    name = "locality"
    title = "which sharing of weights over places needs the fewest rows?"
    paper = "lahoti2024dsd"
    fidelity = (
        "one mixing layer between two maps of each place; parameters differ by design but for "
        "wave channels and layers with several kernels, which have as many as their rivals"
    )
    data = "simulated: a 2 x 2 pattern of the class's sign at one place of a 6 x 6 grid, and noise"
    claims = (
        Claim("local", "A local map needs fewer rows than a full one.",
              "accuracy at 200 rows, local less full, which has four times the parameters",
              arms=("local", "full")),
        Claim("shared", "A shared map needs fewer rows than a local one.",
              "accuracy at 200 rows, shared less local, which has 16 times the parameters",
              arms=("shared", "local")),
        Claim("many", "With many rows the full map catches up in part.",
              "gap of shared and full, of 62 times the parameters, at 50 rows less that at 800",
              arms=("shared", "full")),
        Claim("axis", "Maps along rows and columns need as few rows as local ones.",
              "accuracy at 200 rows, axis less local, which has 3.4 times the parameters",
              arms=("axis", "local")),
        Claim("raft", "Maps along rows and columns over two channels at once need fewer rows.",
              "accuracy at 200 rows, raft of two channels (3.3 times the parameters) less axis",
              arms=("raft", "axis")),
        Claim("raft full", "They need fewer rows than a full map.",
              "accuracy at 200 rows, raft of two channels less full, which has four times the "
              "parameters",
              arms=("raft", "full")),
        Claim("dilated few", "Gated branches of two dilations need fewer rows than one shared map.",
              "accuracy at 50 faint rows, dilated (2.5 times the parameters) less shared",
              arms=("dilated, faint", "shared, faint")),
        Claim("generated", "Kernels that a network makes of coordinates need as few as local ones.",
              "accuracy at 200 rows, generated less local, which has eight times the parameters",
              arms=("generated", "local")),
        Claim("waves", "Behind dilated branches waves need fewer rows than ordinary channels.",
              "accuracy at 50 faint rows, waves less ordinary channels of as many parameters",
              arms=("waves, faint", "plain waves, faint")),
        Claim("near", "Small generated kernels need fewer rows than ones of the grid's size.",
              "accuracy at 50 faint rows, small kernels less the grid's, of as many parameters",
              arms=("near, faint", "grid, faint")),
        Claim("block", "A block of several generated kernels needs fewer rows than the grid's.",
              "accuracy at 50 faint rows, block less the grid's kernels, of as many parameters",
              arms=("block, faint", "grid, faint")),
        Claim("block near", "It needs fewer rows than small generated kernels.",
              "accuracy at 50 faint rows, block less small kernels, of as many parameters",
              arms=("block, faint", "near, faint")),
        Claim("slow error", "An error that draws the kernels of two blocks together helps.",
              "accuracy at 50 faint rows, block with the error less block without it",
              arms=("slow error, faint", "block, faint")),
        Claim("no skips", "A net of three blocks without connections around them is at most .02 "
              "behind the same net with them.",
              "accuracy at 50 faint rows, without less with, and 0.02",
              arms=("no skips, faint", "skips, faint")),
        Claim("no skips, plain", "It needs fewer rows than a net of three convolutions.",
              "accuracy at 50 faint rows, blocks less convolutions of as many parameters",
              arms=("no skips, faint", "plain net, faint")),
    )  # fmt: skip
    null = Claim("noise", "Without a signal the shared map says nothing.",
                 "accuracy of the shared map at 200 rows", above=0.5)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each map at each training-set size, and once without a signal."""
        steps, found = TINY if tiny else STEPS, dict[str, dict[int, float]]()
        for kind in KINDS:
            tick(kind)
            found[kind] = {n: _accuracy(kind, n, seed, steps) for n in SIZES}
        few, some, most = SIZES
        new = dict[str, float]()
        for kind in ("shared", "dilated", *WAVES, *KERNELS, "slow error", *NETS):
            tick(f"{kind}, faint")
            new[kind] = _accuracy(kind, few, seed, steps, FAINT)
        tick("noise")
        gap = {n: found["shared"][n] - found["full"][n] for n in SIZES}
        return {
            "local": found["local"][some] - found["full"][some],
            "shared": found["shared"][some] - found["local"][some],
            "many": gap[few] - gap[most],
            "axis": found["axis"][some] - found["local"][some],
            "raft": found["raft"][some] - found["axis"][some],
            "raft full": found["raft"][some] - found["full"][some],
            "dilated few": new["dilated"] - new["shared"],
            "generated": found["generated"][some] - found["local"][some],
            "waves": new["waves"] - new["plain waves"],
            "near": new["near"] - new["grid"],
            "block": new["block"] - new["grid"],
            "block near": new["block"] - new["near"],
            "slow error": new["slow error"] - new["block"],
            "no skips": new["no skips"] - new["skips"] + 0.02,
            "no skips, plain": new["no skips"] - new["plain net"],
            "noise": _accuracy("shared", some, seed, steps, signal=0.0),
            **{f"{kind} | {n} rows": v for kind, row in found.items() for n, v in row.items()},
            **{f"{kind} | {few} faint rows": value for kind, value in new.items()},
        }


def rows_of(n: int, seed: int, signal: float) -> tuple[Tensor, Tensor]:
    """Return grids with a pattern of a size at a random place, and its sign as the label."""
    draw = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (n,), generator=draw)
    x = 0.5 * torch.randn(n, 1, SIDE, SIDE, generator=draw)
    pattern = torch.tensor([[1.0, -1.0], [1.0, 1.0]])
    high, wide = torch.randint(0, SIDE - 1, (2, n), generator=draw)
    for i in range(n):
        sign = 2.0 * float(label[i]) - 1.0
        place = x[i, 0, high[i] : high[i] + 2, wide[i] : wide[i] + 2]
        place += signal * sign * pattern
    return x, label


def _accuracy(kind: str, n: int, seed: int, steps: int, signal: float = CLEAR) -> float:
    return trained_net(kind, n, seed, steps, signal)[1]


def trained_net(
    kind: str, n: int, seed: int, steps: int, signal: float
) -> tuple[nn.Sequential, float]:
    """Return the net of an arm, and its accuracy on new grids.

    Parameters
    ----------
    kind : str
        One of ``KINDS``, ``WAVES``, ``KERNELS`` or ``NETS``.
    n : int
        Grids to learn from.
    seed, steps : int
    signal : float
        Size of the pattern.
    """
    x, label = rows_of(n, 2 * seed, signal)
    held, truth = rows_of(HELD, 2 * seed + 1, signal)

    def make() -> nn.Sequential:
        # normalised, so that a map is positive somewhere: else all units can die, at chance
        ends = nn.Conv2d(DIM, DIM, 1), nn.GroupNorm(1, DIM), nn.ReLU(), nn.AdaptiveMaxPool2d(1)
        parts = (nn.Conv2d(1, DIM, 1), *_mixers(kind), *ends, nn.Flatten(), nn.Linear(DIM, 2))
        return nn.Sequential(*parts)

    net = drawn(make, seed)
    blocks = [m for m in net if isinstance(m, GeneratedKernels)] if kind == "slow error" else []

    def loss(rows: Tensor) -> Tensor:
        slow = sum((a.slow_error(b) for a, b in pairwise(blocks)), torch.zeros(()))
        return cross_entropy(net(x[rows]), label[rows]) + slow

    minimise(loss, net.parameters(), n, steps=steps, seed=seed, rate=1e-2)
    return net, accuracy(net.eval(), held, truth)


def _mixers(kind: str) -> list[nn.Module]:
    """Return the layers of an arm."""
    if kind in WAVES:
        waves = WaveChannels(DIM, WAVES[kind], waves=kind == "waves")
        return [GridMixer(DIM, "dilated"), waves]
    if kind in KERNELS or kind == "slow error":
        width, branches = KERNELS.get(kind, KERNELS["block"])
        grid = (SIDE, SIDE)
        return [GeneratedKernels(DIM, grid, branches, coordinate_width=width) for _ in range(2)]  # pyright: ignore[reportArgumentType]
    if kind == "plain net":
        channels = (DIM, PLAIN, PLAIN, DIM)
        convolutions = (nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(channels))
        return [part for layer in convolutions for part in (layer, nn.SiLU())]
    if kind in NETS:
        how: dict[str, Any] = {"coordinate_width": KERNELS["block"][0]}
        return [GeneratedKernels(DIM, (SIDE, SIDE), residual=kind == "skips", **how)
                for _ in range(DEEP)]  # fmt: skip
    weights, raft = ("axis", 2) if kind == "raft" else (kind, 1)
    return [GridMixer(DIM, weights, (SIDE, SIDE), raft=raft)]  # pyright: ignore[reportArgumentType]
