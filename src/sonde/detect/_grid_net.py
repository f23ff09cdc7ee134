"""Network of ``FOD``: reconstructs patches from other patches of their image and from references.

In each layer a patch attends to the patches of its image, and to the usual patch at each position.
Each of these two attentions has a target: a Gaussian over the grid whose widths the net chooses.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from sonde.stats.training import generator, xavier
from sonde.stats.training_weights import Weights

FLOOR = 1e-4


@dataclass(frozen=True)
class Correlation:
    """An attention map and the target that it is compared with; rows of both sum to 1."""

    attention: Float[Tensor, "image head pos pos"]
    target: Float[Tensor, "image head pos pos"]

    def gap(self) -> Float[Tensor, "image pos"]:
        """Return each patch's symmetric divergence of attention and target, averaged over heads."""
        return symmetric_kl(self.attention, self.target).mean(1)

    def attention_fixed(self) -> "Correlation":
        """Return this correlation with the gradient stopped through the attention."""
        return Correlation(self.attention.detach(), self.target)

    def target_fixed(self) -> "Correlation":
        """Return this correlation with the gradient stopped through the target."""
        return Correlation(self.attention, self.target.detach())


@dataclass(frozen=True)
class Rebuilt:
    """Patches reconstructed by the network, and the correlations of each layer."""

    x: Float[Tensor, "image pos dim"]
    intra: tuple[Correlation, ...]
    inter: tuple[Correlation, ...]

    def error(self, x: Float[Tensor, "image pos dim"]) -> Float[Tensor, "image pos"]:
        """Return each patch's mean squared error plus one minus its cosine."""
        square = (self.x - x).square().mean(2)
        return square + 1 - functional.cosine_similarity(self.x, x, dim=2)

    def displacement(self) -> Float[Tensor, "image pos"]:
        """Return each patch's distance of inter attention from its target, averaged over layers."""
        return torch.stack([c.gap() for c in self.inter]).mean(0)


def symmetric_kl(
    p: Float[Tensor, "*rows pos"], q: Float[Tensor, "*rows pos"]
) -> Float[Tensor, "*rows"]:
    """Return the sum of both Kullback-Leibler divergences of each row, in nats.

    Shares count as at least 1e-4 under the logarithm, so no pair of rows is infinitely far apart.
    """
    return ((p - q) * (p.clamp(min=FLOOR).log() - q.clamp(min=FLOOR).log())).sum(-1)


def row_entropy(p: Float[Tensor, "*rows pos"]) -> Float[Tensor, "*rows"]:
    """Return the entropy of each row, in nats."""
    return -(p * p.clamp(min=FLOOR).log()).sum(-1)


def widths(a: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return ``3^(sigmoid(5 a) + 1e-5) - 1``, a width in (0, 2)."""
    return torch.expm1((torch.sigmoid(5 * a) + 1e-5) * math.log(3.0))


def grid_gaussian(
    height: Float[Tensor, "*rows pos"],
    width: Float[Tensor, "*rows pos"],
    squares: Float[Tensor, "2 pos pos"],
) -> Float[Tensor, "*rows pos pos"]:
    """Return for each patch a Gaussian over the grid around it, normalised to 1.

    Parameters
    ----------
    height, width : Float[Tensor, "*rows pos"]
        Standard deviations over lines and over columns.
    squares : Float[Tensor, "2 pos pos"]
        Squared distances of patches, in lines and in columns.
    """
    down = squares[0] / (2 * height[..., None].square())
    across = squares[1] / (2 * width[..., None].square())
    return torch.softmax(-down - across, dim=-1)


def squared_distances(n: int, columns: int) -> Float[Tensor, "2 pos pos"]:
    """Return the squared row and column distances of ``n`` patches in ``columns`` columns."""
    index = torch.arange(n)
    place = torch.stack([index // columns, index % columns]).float()
    return (place[:, :, None] - place[:, None, :]).square()


class _Branch(nn.Module):
    """Attention from patches to tokens of a source, with a Gaussian target over the grid."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.reach = nn.Linear(width, 2 * heads)

    def forward(self, x: Tensor, source: Tensor, squares: Tensor) -> tuple[Tensor, Correlation]:
        split = "image pos (head dim) -> image head pos dim"
        q, k, v = (
            rearrange(part, split, head=self.heads)
            for part in (self.query(x), self.key(source), self.value(source))
        )
        attention = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        mixed = rearrange(attention @ v, "image head pos dim -> image pos (head dim)")
        reach = rearrange(
            widths(self.reach(x)), "image pos (two head) -> two image head pos", two=2
        )
        target = grid_gaussian(reach[0], reach[1], squares)
        return self.out(mixed), Correlation(attention, target)


class _BranchLayer(nn.Module):
    """Both branches, then a two-layer map of each patch separately."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.intra, self.inter = _Branch(width, heads), _Branch(width, heads)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.norm, self.last_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(
        self, x: Tensor, reference: Tensor, squares: Tensor
    ) -> tuple[Tensor, Correlation, Correlation]:
        own, intra = self.intra(x, x, squares)
        usual, inter = self.inter(x, reference.expand_as(x), squares)
        x = self.norm(x + own + usual)
        x = self.last_norm(x + self.second(functional.gelu(self.first(x))))
        return x, intra, inter


class _GridNet(nn.Module):
    def __init__(self, dim: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed, self.rebuild = nn.Linear(dim, width), nn.Linear(width, dim)
        self.layers = nn.ModuleList(_BranchLayer(width, heads) for _ in range(layers))

    def forward(self, x: Tensor, reference: Tensor, squares: Tensor) -> Rebuilt:
        hidden, usual = self.embed(x), self.embed(reference)
        intra: list[Correlation] = []
        inter: list[Correlation] = []
        for layer in self.layers:
            hidden, own, other = layer(hidden, usual, squares)
            intra.append(own)
            inter.append(other)
        return Rebuilt(self.rebuild(hidden), tuple(intra), tuple(inter))


@cache
def _without_weights(dim: int, width: int, heads: int, layers: int) -> _GridNet:
    with torch.device("meta"):
        return _GridNet(dim, width, heads, layers)


@dataclass(frozen=True)
class GridNet:
    """Architecture of the network; each call takes the weights."""

    width: int
    heads: int
    layers: int

    def names(self, dim: int) -> list[str]:
        """Return the names of the weights, in order."""
        return [name for name, _ in self._empty(dim).named_parameters()]

    def _empty(self, dim: int) -> _GridNet:
        return _without_weights(dim, self.width, self.heads, self.layers)

    def start(self, dim: int, seed: int) -> Weights:
        """Return seeded initial weights: normal matrices, zero biases, unit norms."""
        source = generator("grid net", seed)
        values: list[Tensor] = []
        for name, value in self._empty(dim).named_parameters():
            if value.ndim == 2:
                values.append(xavier(source, value.shape[0], value.shape[1]))
            else:
                unit = "norm" in name and name.endswith("weight")
                values.append(torch.full(value.shape, 1.0 if unit else 0.0))
        return Weights.of(*values)

    def __call__(
        self,
        values: Iterable[Tensor],
        x: Float[Tensor, "image pos dim"],
        reference: Float[Tensor, "pos dim"],
        columns: int,
    ) -> Rebuilt:
        """Return the patches of images, reconstructed by the network with these weights."""
        weights = dict(zip(self.names(x.shape[2]), values, strict=True))
        squares = squared_distances(x.shape[1], columns).to(x)
        return functional_call(self._empty(x.shape[2]), weights, (x, reference, squares))
