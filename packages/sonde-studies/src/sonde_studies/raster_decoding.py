"""Nets that tell a picture pixel by pixel; one of them computes most of a row at once.

Digits in four grey levels, and a planted joint distribution of six pixels.
"""

from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import Attention, AxialDecoder
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick
from sonde_studies.worlds.learning import drawn, minimise

Grid = tuple[int, int]
Kind = Literal["decoder", "raster", "axes"]
LEVELS, TRAIN, STEPS, TINY, DIM, WIDE, HEADS, BLOCKS = 4, 1_400, 1_000, 3, 16, 28, 2, 3
RATE, BATCH = 2e-2, 32
SMALL: Grid = (2, 3)
JOINT_ROWS, JOINT_STEPS, JOINT_RATE, JOINT_BATCH, LOT_STEPS = 4_000, 800, 1e-2, 64, 150


@final
class RasterDecodingStudy(Study):
    """An axial decoder and plain decoders of pixels, by the nats that they need."""

    name = "raster-decoding"
    title = "does a decoder that works on whole rows at once lose nats?"
    paper = "ho2019axial"
    fidelity = "one block each along rows, along columns and along the row so far; grey pictures"
    data = "digits in four grey levels, 397 to judge; simulated: six pixels with one joint table"
    seconds = 60.0
    claims = (
        Claim("nats", "An axial decoder needs at most 2 % more nats a pixel than a plain decoder "
              "of as many parameters, whose blocks all run once for each pixel.",
              "nats a pixel of the plain decoder less those of the axial one, over the former, "
              "and 0.02",
              arms=("axial decoder", "raster")),
        Claim("turns", "It needs fewer nats than a wider plain decoder (10 % more parameters), "
              "which runs 64 blocks one after another for a picture, the axial one 80.",
              "nats a pixel of the plain decoder less those of the axial one, over the former",
              arms=("axial decoder", "raster, one block")),
        Claim("all before", "It needs fewer nats than blocks that see a pixel's own row and column "
              "alone.",
              "nats a pixel of blocks along axes less those of the axial decoder, over the former",
              arms=("axial decoder", "axes")),
        Claim("joint", "It learns any joint distribution: of six pixels with a random table it "
              "loses at most 0.02 nats a pixel.",
              "0.02 less the nats a pixel above the entropy of the table"),
        Claim("joint axes", "Blocks along axes lose more.",
              "nats a pixel of blocks along axes less those of the axial decoder",
              arms=("axial decoder, table", "axes, table")),
    )  # fmt: skip
    null = Claim("lot", "Of pixels by lot it names no more than chance.",
                 "share of pixels named right", above=1 / LEVELS)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train each decoder on digits, two on a table, and one on pixels by lot."""
        steps = TINY if tiny else STEPS
        x = (shuffled_digits(seed)[0] * (LEVELS - 0.01)).long()
        nats, turns = dict[str, float](), dict[str, int]()
        arms: dict[str, tuple[Kind, int, int]] = {
            "axial decoder": ("decoder", DIM, BLOCKS),
            "raster": ("raster", DIM, BLOCKS),
            "raster, one block": ("raster", WIDE, 1),
            "axes": ("axes", DIM, BLOCKS),
        }
        for arm, (kind, dim, blocks) in arms.items():
            tick(arm)
            net = drawn(lambda k=kind, d=dim, b=blocks: Pixels(k, (8, 8), LEVELS, d, b), seed)
            learn(net, x[:TRAIN], seed, steps)
            nats[arm], turns[arm] = told(net, x[TRAIN:]), net.turns
        table = random_table(seed)
        drawn_rows = rows_of(table, JOINT_ROWS, seed)
        entropy = -float((table * table.log()).sum()) / drawn_rows.shape[1]
        lost = dict[str, float]()
        for arm in ("axial decoder", "axes"):
            tick(f"{arm}, table")
            net = drawn(lambda k=arms[arm][0]: Pixels(k, SMALL, 2, DIM, BLOCKS), seed)
            learn(net, drawn_rows, seed, TINY if tiny else JOINT_STEPS, JOINT_RATE, JOINT_BATCH)
            lost[arm] = expected(net, table) - entropy
        tick("pixels by lot")
        return {
            "nats": 1 - nats["axial decoder"] / nats["raster"] + 0.02,
            "turns": 1 - nats["axial decoder"] / nats["raster, one block"],
            "all before": 1 - nats["axial decoder"] / nats["axes"],
            "joint": 0.02 - lost["axial decoder"],
            "joint axes": lost["axes"] - lost["axial decoder"],
            "lot": by_lot(pixels_by_lot(seed), seed, TINY if tiny else LOT_STEPS),
            **{f"nats a pixel | {arm}": v for arm, v in nats.items()},
            **{f"blocks in turn | {arm}": float(n) for arm, n in turns.items()},
            **{f"nats a pixel above the table | {arm}": v for arm, v in lost.items()},
        }


class _Block(nn.Module):
    def __init__(self, attention: Attention) -> None:
        super().__init__()
        dim = attention.dim
        self.attention, self.norm = attention, nn.LayerNorm(dim)
        self.each = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        normal = self.norm(x)
        x = x + (self.attention(normal) - normal)
        return x + self.each(x)


class Pixels(nn.Module):
    """A distribution of each pixel given those before it in raster order.

    Parameters
    ----------
    kind : {"decoder", "raster", "axes"}
        An axial decoder, causal attention to all pixels, or to the own row and column.
    grid : (int, int)
    levels : int
        Values of a pixel.
    dim, blocks : int
        Width, and blocks of attention.
    """

    def __init__(self, kind: Kind, grid: Grid, levels: int, dim: int, blocks: int) -> None:
        super().__init__()
        self.grid = grid
        self.value = nn.Embedding(levels, dim)
        self.place = nn.Parameter(0.1 * torch.randn(grid[0] * grid[1], dim))
        self.decoder = None
        n = grid[0] * grid[1]
        if kind == "decoder":
            assert blocks % 3 == 0, "a third of the blocks reads the row so far"
            self.decoder = AxialDecoder(dim, grid, HEADS, blocks // 3)
            self.turns = 2 * blocks // 3 * grid[0] + blocks // 3 * n
        else:
            self.blocks = nn.Sequential(*(_Block(_attention(kind, dim, grid))
                                          for _ in range(blocks)))  # fmt: skip
            self.turns = blocks * n
        self.last = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, levels))

    def forward(self, x: Int[Tensor, "row pixel"]) -> Float[Tensor, "row pixel level"]:
        """Return the logits of each pixel."""
        states = self.value(x)
        if self.decoder is not None:
            return self.last(self.decoder(states + self.place) + self.place)
        before = torch.cat([torch.zeros_like(states[:, :1]), states[:, :-1]], 1)
        return self.last(self.blocks(before + self.place))


def _attention(kind: Kind, dim: int, grid: Grid) -> Attention:
    if kind == "raster":
        return Attention(dim, HEADS, causal=True)
    return Attention(dim, HEADS, "axial", grid, causal=True)


def learn(
    net: Pixels,
    x: Int[Tensor, "row pixel"],
    seed: int,
    steps: int,
    rate: float = RATE,
    batch: int = BATCH,
) -> None:
    """Train a net on pictures at a rate that falls to zero."""
    minimise(
        lambda rows: cross_entropy(net(x[rows]).transpose(1, 2), x[rows]),
        net.parameters(), len(x), steps=steps, seed=seed, rate=rate, batch=batch, falls=True,
    )  # fmt: skip


@torch.no_grad()
def told(net: nn.Module, x: Int[Tensor, "row pixel"]) -> float:
    """Return the mean nats that a pixel takes."""
    return float(cross_entropy(net(x).transpose(1, 2), x))


def pictures_of(pixels: int) -> Int[Tensor, "picture pixel"]:
    """Return all pictures of two levels."""
    return (torch.arange(2**pixels)[:, None] >> torch.arange(pixels)) & 1


@torch.no_grad()
def log_p_of(net: nn.Module, x: Int[Tensor, "row pixel"]) -> Float[Tensor, "row"]:
    """Return the logarithm of the probability that a net gives to each picture."""
    log_p = net(x).double().log_softmax(-1)
    return log_p.gather(2, x[..., None])[..., 0].sum(1)


def expected(net: nn.Module, table: Float[Tensor, "picture"]) -> float:
    """Return the nats a pixel that a net needs for pictures of a joint table."""
    pictures = pictures_of(SMALL[0] * SMALL[1])
    return -float((table * log_p_of(net, pictures)).sum()) / pictures.shape[1]


def random_table(seed: int) -> Float[Tensor, "picture"]:
    """Return a random probability of each picture of six pixels."""
    draw = torch.Generator().manual_seed(seed)
    n = 2 ** (SMALL[0] * SMALL[1])
    return (2 * torch.randn(n, generator=draw, dtype=torch.float64)).softmax(0)


def rows_of(table: Float[Tensor, "picture"], n: int, seed: int) -> Int[Tensor, "row pixel"]:
    """Return pictures drawn from a table, each as often as it should be, to rounding."""
    at = (torch.arange(n) + 0.5) / n
    kinds = torch.searchsorted(table.cumsum(0), at.double()).clamp(max=len(table) - 1)
    note(rows=n)
    return pictures_of(SMALL[0] * SMALL[1])[kinds]


def pixels_by_lot(seed: int) -> Int[Tensor, "row pixel"]:
    """Return pictures whose pixels say nothing of one another."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(LEVELS, (TRAIN + 400, 64), generator=draw)


def by_lot(x: Int[Tensor, "row pixel"], seed: int, steps: int) -> float:
    """Train an axial decoder; return the share of pixels that it names right in the last 400."""
    net = drawn(lambda: Pixels("decoder", (8, 8), LEVELS, DIM, BLOCKS), seed)
    learn(net, x[:-400], seed, steps)
    with torch.no_grad():
        return float((net(x[-400:]).argmax(2) == x[-400:]).double().mean())
