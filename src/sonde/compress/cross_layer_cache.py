"""Store the older tokens of several layers' caches as one low-rank matrix (xKV).

For models whose adjacent layers have similar keys and values. Nothing is gained if the layers'
directions have nothing in common; combine this cache with few bits if both help.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core import CachePacking, InputError, Inputs, Model, PackedTokens, State
from sonde.core.ranges import check_ranges
from sonde.core.renaming import renamed
from sonde.engine.progress import Bar
from sonde.stats import Moments, MomentsState
from sonde.tap import place_of
from sonde.tap.cache.evicting import caching
from sonde.tap.hooks.cache import cache_argument
from sonde.tap.hooks.holding import in_eval
from sonde.tap.rows.padding import right_padded

KEYS, VALUES = 0.8, 1.2
"""Shares of keys and of values, whose directions are spread wider: 2 to 3 as in the paper."""


@renamed(keep="share")
@final
@dataclass(frozen=True)
class CrossLayerCache(CachePacking):
    """Keys and values of adjacent layers, concatenated, as a product of two thin matrices.

    The tokens of a chunk share their coordinates over all layers of a group; each layer has its own
    directions. Keys are taken before their rotation. Formula: ``[X_1 .. X_G] ~ A [B_1 .. B_G]``, by
    singular values of the chunk, or by directions that were fitted on texts (``caches`` of
    ``cross_layer_moments``). With fitted directions only coordinates are held for each token.

    Range        the least squared error of its rank; 0 at full rank.
    Cost         ``keep`` of the bytes; a singular value decomposition of tokens x (layers * heads
                 * width) for each chunk, none with fitted directions; each call multiplies the
                 older tokens out and rotates their keys, one layer at a time.
    Assumes      layers whose heads have one width; rotations as transformers makes them.
    Differs      from the paper: a chunk of tokens at a time, in place of the whole prompt.

    Parameters
    ----------
    layers : int, default=4
        Adjacent layers that share coordinates.
    keep : float, default=0.25
        Fraction of the bytes of the whole cache that the packed tokens take, in (0, 1], with the
        directions of each chunk counted; keys take 0.8 of it and values 1.2.
    chunk : int, default=256
        Tokens that are packed together.
    recent : int, default=64
        Newest tokens in full precision.
    directions : tuple of two Tensors (layers * heads * width, rank), optional
        Directions of keys and of values that were fitted before; by default each chunk has its own.

    Examples
    --------
    >>> CrossLayerCache(layers=2, keep=0.5).setting
    '50 %, 2 layers'

    References
    ----------
    chang2025xkv
    """

    layers: int = 4
    keep: float = 0.25
    chunk: int = 256
    recent: int = 64
    directions: tuple[Tensor, Tensor] | None = None
    before_rotation: ClassVar[bool] = True
    paper: ClassVar[str] = "chang2025xkv"
    examples: ClassVar[tuple[dict, ...]] = (
        {"layers": 2, "keep": 0.9, "chunk": 3, "recent": 1},
        {"layers": 1, "keep": 0.4, "chunk": 4, "recent": 0},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, layers=">= 1", keep="(0, 1]")

    @property
    def setting(self) -> str:
        """Fraction of the bytes, and number of layers."""
        return f"{100 * self.keep:g} %, {self.layers} layers"

    @property
    def size_bytes(self) -> int:
        """Bytes of the fitted basis."""
        return sum(x.nbytes for x in self.directions or ())

    def pack(
        self,
        keys: Float[Tensor, "row head token width"],
        values: Float[Tensor, "row head token width2"],
        real: Bool[Tensor, "row token"],
    ) -> "PackedFactors":
        """Return the coordinates of the tokens, in the fitted basis or a basis of the chunk."""
        directions = (None, None) if self.directions is None else self.directions
        parts = zip((keys, values), directions, (KEYS, VALUES), strict=True)
        return PackedFactors(
            *(self._factors(x, real, basis, weight * self.keep) for x, basis, weight in parts)
        )

    def _factors(
        self, x: Tensor, real: Tensor, directions: Tensor | None, share: float
    ) -> "Factors":
        flat, heads = torch.where(real[..., None], x.transpose(1, 2).flatten(2), 0), x.shape[1]
        if directions is not None:
            right = directions.to(flat)
            return Factors(flat @ right, right.mT.unflatten(-1, (heads, -1)), True)
        n, dim = flat.shape[1:]
        rank = max(min(math.floor(share * n * dim / (n + dim)), n, dim), 1)
        u, s, vh = torch.linalg.svd(flat.float(), full_matrices=False)
        # copies: a part of the whole decomposition would keep all of its memory
        left, right = ((u * s[:, None])[..., :rank].to(x.dtype), vh[:, :rank].to(x.dtype).clone())
        return Factors(left.clone(), right.unflatten(-1, (heads, -1)), False)


@final
@dataclass(frozen=True, eq=False)
class Factors:
    """Coordinates of tokens in a basis, and the basis of each head.

    Parameters
    ----------
    left : Tensor (row, token, rank)
    right : Tensor (row, rank, head, width), or (rank, head, width) for all rows and chunks
    shared : bool
        Whether the directions are those of all chunks.
    """

    left: Tensor
    right: Tensor
    shared: bool

    def unpack(self, heads: slice) -> Float[Tensor, "row head token width"]:
        """Return the reconstructed numbers of some heads."""
        right = self.right[..., heads, :]
        return (self.left @ right.flatten(-2)).unflatten(-1, right.shape[-2:]).transpose(1, 2)

    def over_rows(self, change: Callable[[Tensor], Tensor]) -> "Factors":
        """Return the factors after a change of the rows."""
        right = self.right if self.shared else change(self.right)
        return Factors(change(self.left), right, self.shared)

    @property
    def size_bytes(self) -> int:
        """Bytes of the coordinates, and of a basis that is not shared."""
        return self.left.nbytes + (0 if self.shared else self.right.nbytes)


@final
@dataclass(frozen=True, eq=False)
class PackedFactors(PackedTokens):
    """Keys and values of several layers as factors."""

    keys: Factors
    values: Factors

    def unpack(self, heads: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Return keys and values of some heads."""
        return self.keys.unpack(heads), self.values.unpack(heads)

    def over_rows(self, change: Callable[[Tensor], Tensor]) -> "PackedFactors":
        """Return the packed tokens after a change of the rows."""
        return PackedFactors(self.keys.over_rows(change), self.values.over_rows(change))

    @property
    def size_bytes(self) -> int:
        """Bytes of keys and values."""
        return self.keys.size_bytes + self.values.size_bytes


@final
@dataclass(frozen=True)
class CrossLayerMoments(State):
    """Moments of unrotated keys, and of values, for groups of concatenated layers.

    Parameters
    ----------
    layers : tuple of tuple of int
        Numbers of the layers of each group.
    keys, values : tuple of MomentsState
        Of each group.
    """

    layers: tuple[tuple[int, ...], ...]
    keys: tuple[MomentsState, ...]
    values: tuple[MomentsState, ...]

    def merge(self, other: "CrossLayerMoments") -> "CrossLayerMoments":
        """Return the moments over both sets of texts."""
        both = [
            tuple(map(Moments().merge, own, new))
            for own, new in ((self.keys, other.keys), (self.values, other.values))
        ]
        return CrossLayerMoments(self.layers, *both)

    def caches(self, share: float = 0.25, **parameters: Any) -> dict[int, CrossLayerCache]:
        """Return the packing of each layer, with the basis of the largest energy.

        Open a cache with ``caching(model, found.__getitem__)``.
        """
        by_layer = dict[int, CrossLayerCache]()
        for numbers, keys, values in zip(self.layers, self.keys, self.values, strict=True):
            both = []
            for state, weight in ((keys, KEYS), (values, VALUES)):
                dim = len(state.mean)
                rank = max(min(math.floor(weight * share * dim), dim), 1)
                vectors = torch.linalg.eigh(state.second_moment).eigenvectors
                both.append(vectors[:, -rank:].flip(1).float())
            packing = CrossLayerCache(
                layers=len(numbers), keep=share, directions=(both[0], both[1]), **parameters
            )
            by_layer |= dict.fromkeys(numbers, packing)
        return by_layer


def cross_layer_moments(
    model: Model | nn.Module, inputs: Inputs, layers: int = 4, progress: bool = True
) -> CrossLayerMoments:
    """Return the moments of keys and values of groups of layers over texts.

    Parameters
    ----------
    model : Model or nn.Module
        Causal language model of transformers.
    inputs : Inputs
        Texts, as ``open_inputs`` gives them.
    layers : int, default=4
        Adjacent layers that are taken together.
    progress : bool, default=True
        Whether a progress bar is shown on stderr.

    Raises
    ------
    InputError
        If there is no text.
    """
    module: Any = model.module if isinstance(model, Model) else model
    whole = CrossLayerCache(layers=layers, recent=2**40)  # nothing is ever packed
    moments: CrossLayerMoments | None = None
    bar = Bar("keys and values of texts", len(inputs), progress)
    with bar, in_eval(module), torch.no_grad():
        for batch in map(right_padded, inputs.batches(0, len(inputs))):
            args, kwargs = place_of(module, batch).call(batch.args, batch.kwargs)
            with caching(model, whole, here=True) as cache:
                module(*args, **kwargs, **{cache_argument(module): cache})
                numbers = {id(layer): i for i, layer in enumerate(cache.layers)}
                sides, members = ([], []), []
                for group in cache.groups:
                    *both, real = group.stacked(cache.get_seq_length())
                    members.append(tuple(numbers[id(layer)] for layer in group.layers))
                    for side, x in zip(sides, both, strict=True):
                        side.append(Moments().observe(x.transpose(1, 2).flatten(2)[real]))
            new = CrossLayerMoments(tuple(members), tuple(sides[0]), tuple(sides[1]))
            moments = new if moments is None else moments.merge(new)
            bar.advance(len(batch))
    if moments is None:
        raise InputError("cross_layer_moments: expected texts, got none.")
    return moments
