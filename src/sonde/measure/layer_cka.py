"""Similarity between all pairs of layers, from one aligned sample of rows.

For two sites alone, over all rows, see ``cka``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.chart import Chart, cells, matrix
from sonde.core.function import as_function
from sonde.core.hashing import rank_key
from sonde.core.instrument import SAMPLE
from sonde.core.ranges import check_ranges
from sonde.core.result import Direction, Result
from sonde.core.statistic import Span
from sonde.measure._flags import precision_flags, relative_spread
from sonde.measure._reads import PairSampleInstrument
from sonde.stats import HashSampleState
from sonde.stats.halves import half_error, random_halves

BLOCKS = 32
BUFFER_ENTRIES = 1 << 23


@final
@dataclass(frozen=True, kw_only=True)
class LayerCKAResult(Result):
    """Similarity of all pairs of layers; ``dead`` (constant) layers have NaN.

    ``spread`` is ``sqrt(total variance) / |mean|`` of each layer: near 0 for a layer nearly dead.
    """

    title: ClassVar[str] = "Similarity of layers"
    direction: Direction = "higher"
    dead: Bool[Tensor, "layer"]
    spread: Float[Tensor, "layer"]

    def chart(self) -> Chart:
        """Return a chart with a heat map of the layers."""
        values = torch.as_tensor(self.value).reshape(len(self.dead), -1).tolist()
        return matrix(self.title, cells(values, "other", "layer", "cka"), "layer", "other", "cka")


@final
@dataclass(frozen=True)
class LayerCKA(PairSampleInstrument):
    """Debiased linear CKA of every pair of sites, on the rows that all of them sampled.

    ``h(K, L) / sqrt(h(K, K) h(L, L))`` with the unbiased independence criterion ``h`` of the two
    Gram matrices. If rows come in groups, one row of each group is taken, since rows of a group are
    alike at every site. Errors come from 20 random halves of the groups.

    Range        [0, 1], below 0 by chance; higher = more alike. Null 0.
    Cost         one pass; state 4 m dim bytes per site; result O(layers m^2 dim + layers^2 m^2).
    Assumes      at least 4 rows; a constant layer is NaN and ``dead``, never 0 or 1.
    Differs      from the papers: all pairs from one sample, not mini-batches.

    Parameters
    ----------
    m : int, default=2048
        Most rows in the sample.

    Examples
    --------
    >>> rows = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    >>> layer_cka([rows, 3 * rows.flip(1) + 1, rows.square()]).value.round(decimals=1).tolist()
    [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    References
    ----------
    kornblith2019cka, nguyen2021wide, song2012hsic
    """

    m: int = SAMPLE
    span: ClassVar[Span] = "all"
    least_rows: ClassVar[int] = 4
    paper: ClassVar[str] = "kornblith2019cka"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"m": 64})

    def __post_init__(self) -> None:
        check_ranges(self, m=">= 4")

    def result(self, samples: tuple[HashSampleState, ...]) -> LayerCKAResult:
        """Compare the aligned samples' Gram matrices."""
        takes = shared_positions(samples)
        n, dims = len(takes[0]), [s.rows.shape[1] for s in samples]
        layers, flags = [], []
        size = max(1, math.ceil(n / BLOCKS))
        for sample, take in zip(samples, takes, strict=True):
            layers.append(_ScaledRows.of(sample.rows, take))
            how_far = layers[-1].spread
            flags += precision_flags(how_far, sample.rows.dtype) if how_far > 0 else []
        sums = _PairSums.of(layers, n, size)
        value = sums.cka(torch.ones(sums.n_blocks, dtype=torch.bool))
        dead = torch.isnan(value.diagonal())
        blocks = torch.arange(sums.n_blocks)
        halves = random_halves(blocks)
        enough = n >= 16
        figures = torch.stack([sums.cka(h) for h in halves])
        se = half_error(figures, blocks) if enough else None
        flags += ["dead"] if bool(dead.any()) else []
        flags += ["few_rows"] if n <= max(dims) else []
        flags += [] if all(s.is_everything for s in samples) else ["sampled"]
        return LayerCKAResult(
            value=value,
            se=se,
            null=0.0,
            n=n,
            range=(0.0, 1.0),
            flags=tuple(dict.fromkeys(flags)),
            conventions={
                "debiased": True,
                "centered": True,
                "kernel": "linear",
                "rows": "one of each group",
                "se": "20 random halves" if enough else "too few rows for halves",
            },
            dead=dead,
            spread=torch.tensor([layer.spread for layer in layers], dtype=torch.float64),
        )


def shared_positions(samples: Sequence[HashSampleState]) -> list[Int[Tensor, "row"]]:
    """Return each sample's positions of the shared rows, by sampling key.

    One row of each group is taken.
    """
    first = samples[0]
    same = all(torch.equal(s.draw, first.draw) for s in samples[1:])
    take = [
        _one_of_each_group(s) if len(s.draw) else s.draw for s in (samples[:1] if same else samples)
    ]
    if same:
        return take * len(samples)
    draws = [s.draw[t] for s, t in zip(samples, take, strict=True)]
    shared = set(draws[0].tolist()).intersection(*(set(d.tolist()) for d in draws[1:]))
    return [
        t[torch.tensor([d in shared for d in draw.tolist()], dtype=torch.bool)]
        for t, draw in zip(take, draws, strict=True)
    ]


def _one_of_each_group(sample: HashSampleState) -> Int[Tensor, "group"]:
    if len(torch.unique(sample.group)) < len(sample.group):
        return sample.first_of_each_group()
    return torch.argsort(rank_key(sample.draw))


@dataclass(frozen=True)
class _ScaledRows:
    """Sampled rows that are centred and scaled on every access, to save memory.

    ``rough`` and ``residual`` add up to the mean; ``scale`` makes the mean square of a row 1.
    """

    rows: Float[Tensor, "_row _dim"]
    take: Int[Tensor, "row"]
    rough: Float[Tensor, "_dim"]
    residual: Float[Tensor, "_dim"]
    scale: float
    spread: float

    @classmethod
    def of(cls, rows: Float[Tensor, "_row _dim"], take: Int[Tensor, "row"]) -> "_ScaledRows":
        """Return a layer with its mean and deviation."""
        x = _widened(rows, take)
        rough = x.mean(0)
        z = x.sub_(rough)
        residual = z.mean(0)
        z -= residual
        total = z.square().sum(1).double().sum() / max(len(z), 1)
        scale = float(total.rsqrt()) if float(total) > 0 else 0.0
        spread = relative_spread(rough.double() + residual, total[None])
        return cls(rows, take, rough, residual, scale, spread)

    def unit(self, start: int, stop: int) -> Float[Tensor, "padded _dim"]:
        """Return the rows ``start .. stop``, centred, with mean square 1; zeros after the last."""
        x = _widened(self.rows, self.take[start:stop])
        x.sub_(self.rough).sub_(self.residual).mul_(self.scale)
        out = torch.zeros(stop - start, x.shape[1], device=x.device) if len(x) < stop - start else x
        out[: len(x)] = x
        return out.float()


def _widened(rows: Float[Tensor, "_row _dim"], take: Int[Tensor, "row"]) -> Tensor:
    """Return a copy of these rows in float32 or float64."""
    x = rows.index_select(0, take.to(rows.device))
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


@dataclass(frozen=True)
class _PairSums:
    """Sums of products of Gram matrices over pairs of row blocks, without the diagonal.

    ``products[l, m, a, b]`` sums ``K_ij L_ij`` over rows ``i`` of block ``a`` and ``j`` of ``b``;
    ``rows[l, i, b]`` sums ``K_ij`` over the rows ``j`` of block ``b``.
    """

    products: Float[Tensor, "layer layer block block"]
    rows: Float[Tensor, "layer row block"]
    block: Int[Tensor, "row"]

    @property
    def n_blocks(self) -> int:
        return self.rows.shape[2]

    @cached_property
    def counts(self) -> Int[Tensor, "block"]:
        return torch.bincount(self.block, minlength=self.n_blocks)

    @classmethod
    def of(cls, layers: Sequence[_ScaledRows], n: int, size: int) -> "_PairSums":
        """Return the sums for ``n`` rows in blocks of ``size`` rows."""
        count = math.ceil(n / size)
        padded = count * size
        step = max(1, BUFFER_ENTRIES // (len(layers) * padded * size))
        buffer = torch.empty(min(step, count) * size * padded * len(layers))
        products = torch.zeros(len(layers), len(layers), count, count, dtype=torch.float64)
        for a in range(0, count, step):
            b = min(a + step, count)
            grams = _gram_blocks(layers, (a, b, count), size, buffer).transpose(0, 1)
            sums = torch.bmm(grams, grams.transpose(1, 2)).double()
            corner = sums.reshape(b - a, count - a, *sums.shape[1:]).permute(2, 3, 0, 1)
            products[:, :, a:b, a:] = corner
            products[:, :, a:, a:b] = corner.transpose(2, 3)
        rows = torch.stack([_row_sums(layer.unit(0, padded), size)[:n].cpu() for layer in layers])
        return cls(products.cpu(), rows, torch.arange(n) // size)

    def cka(self, blocks: Bool[Tensor, "block"]) -> Float[Tensor, "layer layer"]:
        """Return debiased CKA on these blocks' rows; NaN for a constant layer."""
        n = int(self.counts[blocks].sum())
        if n < 4:
            return torch.full(self.products.shape[:2], math.nan, dtype=torch.float64)
        weight = blocks.double()
        total = torch.einsum("lmab,a,b->lm", self.products, weight, weight)
        rows = (self.rows @ weight)[:, blocks[self.block]]
        sums = rows.sum(1)
        hsic = total + torch.outer(sums, sums) / ((n - 1) * (n - 2)) - 2 * rows @ rows.T / (n - 2)
        own = hsic.diagonal()
        own = torch.where(own > 1e-12 * total.diagonal(), own, torch.full_like(own, math.nan))
        return hsic / torch.sqrt(torch.outer(own, own))


def _gram_blocks(
    layers: Sequence[_ScaledRows],
    blocks: tuple[int, int, int],
    size: int,
    buffer: Float[Tensor, "_entries"],
) -> Float[Tensor, "layer pair entry"]:
    """Return the Gram entries of each block in ``a .. b`` with all from ``a`` to ``end``.

    ``blocks`` is ``(a, b, end)``.
    """
    a, b, end = blocks
    width, across = (b - a) * size, end - a
    shape = (len(layers), b - a, across, size, size)
    out = buffer[: math.prod(shape)].view(shape)
    for index, layer in enumerate(layers):
        z = layer.unit(a * size, end * size)
        gram = z[:width] @ z.T
        gram[:, :width].fill_diagonal_(0.0)
        out[index] = gram.view(b - a, size, across, size).transpose(1, 2)
    return out.view(len(layers), (b - a) * across, size * size)


def _row_sums(z: Float[Tensor, "padded dim"], size: int) -> Float[Tensor, "padded block"]:
    blocks = z.reshape(-1, size, z.shape[1]).sum(1)
    sums = (z @ blocks.T).double()
    every = torch.arange(len(z), device=z.device)
    sums[every, every // size] -= z.square().sum(1).double()
    return sums


layer_cka = as_function(LayerCKA)
