"""Two gated streams, and embedding tables with one or two uses."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, mse_loss

from sonde.layers import SecondOrder, SharedTable, UnitGate
from sonde_studies.arms import note_again, note_for, part
from sonde_studies.worlds.learning import drawn, minimise

ROWS, FIT = 900, 600
SIDE, STREAM = 6, 12
VALUES, KINDS, PAST, LONG = 60, 6, 8, 3_000
USES = {
    "decoupled": ("decoupled", 8, 8),
    "narrow": ("decoupled", 8, 4),
    "shared": ("shared", 16, 8),
}
"""Kind of tables, width of a vector of meaning, and of one for searching."""
LOOKS = 8


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


def compared_gradients(meaning: Tensor, searching: Tensor) -> tuple[float, float, float]:
    """Return the share of rows that point apart, the mean cosine, and the log ratio of norms."""
    used = (meaning != 0).any(1) & (searching != 0).any(1)
    one, two = meaning[used], searching[used]
    cosine = cosine_similarity(one, two)
    return (
        float((cosine < 0).double().mean()),
        float(cosine.mean()),
        float((one.norm() / two.norm()).log()),
    )


def table_uses(seed: int, steps: int) -> dict[str, float]:
    """Return the R^2 of nets with one and with two embedding tables on a target, and more.

    ``conflict``, ``alike`` and ``larger`` are about the gradients of both uses of one table: the
    share of values whose two gradients point apart, their mean cosine, and the logarithm of the
    norm of that of meaning over that of searching; means over ``LOOKS`` moments of the training.
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
    for arm, (tables, width, search) in USES.items():
        size = VALUES if tables == "decoupled" else 64 * VALUES  # no value shares an entry
        table = SharedTable(1, width, size, tables, search_width=search, seed=seed)  # pyright: ignore
        head = drawn(lambda width=width: nn.Linear(width, 1), seed)

        def told(
            rows: Tensor, table: SharedTable = table, head: nn.Module = head, use: str = "both"
        ) -> Tensor:
            ids, asked = past[rows], target[rows]
            read = table.search if table.narrow is not None else table
            keys, query = read(ids.reshape(-1, 1)).reshape(*ids.shape, -1), read(asked)[:, 0]
            values = table(ids.reshape(-1, 1)).reshape(*ids.shape, -1)
            if use == "meaning":
                keys, query = keys.detach(), query.detach()
            elif use == "searching":
                values = values.detach()
            look = (keys @ query[:, :, None])[..., 0].softmax(1)
            return head((look.unsqueeze(2) * values).sum(1))[:, 0]

        weights = [*table.parameters(), *head.parameters()]
        done, looks = count(), list[tuple[float, float, float]]()

        def loss(rows: Tensor, told: Any = told, table: SharedTable = table, looks: Any = looks,
                 step: Iterator[int] = done) -> Tensor:  # fmt: skip
            if next(step) % (steps // LOOKS or 1) == 0 and table.narrow is None:
                both = [
                    torch.autograd.grad(
                        mse_loss(told(torch.arange(n), use=use), y[:n]), table.entries
                    )[0][0]
                    for use in ("meaning", "searching")
                ]
                looks.append(compared_gradients(*both))
            return mse_loss(told(rows), y[rows])

        name = "one table" if tables == "shared" else arm
        with part(f"training of {name}"):  # most entries of a hashed table are read by no value
            minimise(loss, weights, n, steps=steps, seed=seed, rate=1e-2)
        used = (width + (search if tables == "decoupled" else 0)) * VALUES + width + 1
        note_for(name, updates=steps, rows=n, parameters=used)
        with torch.no_grad():
            found[arm] = r_squared(told(torch.arange(n, LONG)), y[n:])
        if looks:
            means = torch.tensor(looks).mean(0).tolist()
            found |= dict(zip(("conflict", "alike", "larger"), means, strict=True))
            for use in ("gradient of meaning", "gradient of searching"):
                note_again(use, f"training of {name}")
    return found
