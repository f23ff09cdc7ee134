"""Two gated streams, and embedding tables with one or two uses."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from sonde.layers import SecondOrder, SharedTable, UnitGate
from sonde_studies.arms import note_for, part
from sonde_studies.worlds.learning import drawn, minimise

ROWS, FIT = 900, 600
SIDE, STREAM = 6, 12
VALUES, KINDS, PAST, LONG = 60, 6, 8, 3_000


def r_squared(said: Tensor, y: Tensor) -> float:
    """Return the fraction of the variance of ``y`` that is explained."""
    return float(1 - (said - y).square().mean() / y.var(correction=0))


class _Streams(nn.Module):
    """Two nets with separate gates, combined by a bilinear form or by a sum."""

    def __init__(self, joined: bool, gated: bool) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            UnitGate(2 * SIDE, score="conditioned", condition=SIDE) if gated else nn.Identity()
            for _ in range(2)
        )
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * SIDE, 24), nn.ReLU(), nn.Linear(24, STREAM))
            for _ in range(2)
        )
        self.heads: Any = nn.ModuleList(nn.Linear(STREAM, 1) for _ in range(2))
        if joined:
            self.heads = SecondOrder("bilinear_heads", STREAM, heads=3)
        self.joined, self.gated = joined, gated

    def forward(self, x: Tensor) -> Tensor:
        sides = x[:, :SIDE], x[:, SIDE:]
        shown = (g(x, s) if self.gated else x for g, s in zip(self.gates, sides, strict=True))
        one, two = (net(s) for net, s in zip(self.nets, shown, strict=True))
        if self.joined:
            return self.heads(one, two)[:, 0]
        return (self.heads[0](one) + self.heads[1](two))[:, 0]


def two_streams(seed: int, steps: int) -> dict[str, float]:
    """Return R^2 on test rows of two streams: bilinear and gated, without gates, and summed."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * ROWS, 2 * SIDE, generator=draw)
    user, item = torch.randn(2, SIDE, 2, generator=draw) / SIDE**0.5
    y = ((x[:, :SIDE] @ user) * (x[:, SIDE:] @ item)).sum(1)
    y = y / y.std() + 0.3 * torch.randn(len(y), generator=draw)
    found: dict[str, float] = {}
    n = 2 * FIT
    for name, joined, gated in (("bilinear", True, True), ("no gates", True, False),
                                ("sum", False, True)):  # fmt: skip
        net = drawn(lambda joined=joined, gated=gated: _Streams(joined, gated), seed)
        with part("no gates of streams" if name == "no gates" else name):
            minimise(lambda rows, net=net: mse_loss(net(x[rows]), y[rows]), net.parameters(), n,
                     steps=steps, seed=seed)  # fmt: skip
        with torch.no_grad():
            found[name] = r_squared(net(x[n:]), y[n:])
    return found


def table_uses(seed: int, steps: int) -> dict[str, float]:
    """Return the R^2 of nets with one and with two embedding tables on a target.

    The target is the mean worth of those past values that are of the same kind as the last one.
    """
    draw = torch.Generator().manual_seed(seed)
    kind, worth = torch.arange(VALUES) % KINDS, torch.randn(VALUES, generator=draw)
    past = torch.randint(VALUES, (LONG, PAST), generator=draw)
    past[:, 0] = past[:, 0] - past[:, 0] % KINDS
    target = torch.randint(VALUES // KINDS, (LONG, 1), generator=draw) * KINDS
    target = target + kind[past.gather(1, torch.randint(PAST, (LONG, 1), generator=draw))]
    same = (kind[past] == kind[target]).float()
    y = (same * worth[past]).sum(1) / same.sum(1)
    found: dict[str, float] = {}
    n = LONG * 2 // 3
    for tables, width in (("decoupled", 8), ("shared", 16)):
        size = VALUES if tables == "decoupled" else 64 * VALUES  # no value shares an entry
        table = SharedTable(1, width, size, tables, search_width=8, seed=seed)  # pyright: ignore
        head = drawn(lambda width=width: nn.Linear(width, 1), seed)

        def told(rows: Tensor, table: SharedTable = table, head: nn.Module = head) -> Tensor:
            ids, asked = past[rows], target[rows]
            read = table.search if table.narrow is not None else table
            keys = read(ids.reshape(-1, 1)).reshape(*ids.shape, -1)
            look = (keys @ read(asked)[:, 0, :, None])[..., 0].softmax(1)
            values = table(ids.reshape(-1, 1)).reshape(*ids.shape, -1)
            return head((look.unsqueeze(2) * values).sum(1))[:, 0]

        weights = [*table.parameters(), *head.parameters()]
        name = "one table" if tables == "shared" else tables
        with part(f"training of {name}"):  # most entries of a hashed table are read by no value
            minimise(lambda rows, told=told: mse_loss(told(rows), y[rows]), weights, n,
                     steps=steps, seed=seed, rate=1e-2)  # fmt: skip
        used = 2 * 8 * VALUES + width + 1
        note_for(name, updates=steps, rows=n, parameters=used)
        with torch.no_grad():
            found[tables] = r_squared(told(torch.arange(n, LONG)), y[n:])
    return found
