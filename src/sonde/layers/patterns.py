"""Attention patterns, which define the allowed keys of each token, such as ``window:8``.

Some patterns cut the tokens in groups, and a token looks at its own group: ``Attention`` computes
these patterns group by group. Other patterns tell for each pair whether it is allowed.
"""

import math
from abc import ABC, abstractmethod
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError

Grid = tuple[int, int]
HALF = 0.5001
"""What rounds a product to the nearest whole number, also if it ends just below one half."""
CHUNK = 1024
"""Random numbers that are drawn at a time."""


@dataclass(frozen=True)
class Where:
    """Information about the tokens for a pattern.

    Parameters
    ----------
    position : Int[Tensor, "row token"]
        Place of each token in its text, padding not counted; raster order on a grid.
    real : Bool[Tensor, "row token"]
        False at padding.
    heads : int
        Number of heads of the attention.
    grid : (int, int), optional
        Height and width.
    intensity : Float[Tensor, "row head token"], optional
        What ``Histogram`` sorts by.
    generator : torch.Generator, optional
        What ``RandomKeep`` draws from; it stays as it is.
    causal : bool, default=False
        If True, a token must not depend on later tokens.
    """

    position: Int[Tensor, "row token"]
    real: Bool[Tensor, "row token"]
    heads: int
    grid: Grid | None = None
    intensity: Float[Tensor, "row head token"] | None = None
    generator: torch.Generator | None = None
    causal: bool = False

    def at(self) -> tuple[Tensor, Tensor, Grid]:
        """Return the row and column of each token, and the size of the grid.

        Raises
        ------
        InputError
            If there is no grid, or the tokens do not fill it.
        """
        if self.grid is None:
            raise InputError(
                "pattern of an attention: expected grid=(height, width) for this pattern, got none."
            )
        high, wide = self.grid
        if self.position.shape[1] != high * wide:
            raise InputError(
                f"pattern of an attention: expected {high * wide} tokens for the grid "
                f"{high} x {wide}, got {self.position.shape[1]}. Pass the grid of these tokens."
            )
        return self.position // wide, self.position % wide, self.grid


@dataclass(frozen=True)
class Pattern(ABC):
    """Pattern of the tokens that each token may attend to. Subclasses are final dataclasses."""

    word: ClassVar[str]
    spatial: ClassVar[bool] = False
    """Whether the pattern needs a grid."""
    drawn: ClassVar[bool] = False
    """Whether the pattern is drawn anew in training, and absent in eval mode."""
    sorts: ClassVar[bool] = False
    """Whether the pattern sorts the tokens by their values."""

    def __str__(self) -> str:
        """Return the text of this pattern, such as ``window:8``."""
        given = (getattr(self, field.name) for field in fields(self))
        return ":".join([self.word, *(_said(value) for value in given)])

    @abstractmethod
    def allowed(self, where: Where) -> Bool[Tensor, "row head query key"]:
        """Return a mask of allowed keys; axes of size 1 broadcast over rows or heads."""

    def groups(self, where: Where) -> Int[Tensor, "row head token"] | None:
        """Return the group of each token, or None if the pattern has no groups."""
        return None


class _Groups(Pattern):
    """A pattern that partitions the tokens into groups."""

    def allowed(self, where: Where) -> Bool[Tensor, "row head query key"]:
        """Return a mask of the keys in each query's group."""
        group = self.groups(where)
        return group[..., :, None] == group[..., None, :]

    @abstractmethod
    def groups(self, where: Where) -> Int[Tensor, "row head token"]:
        """Return the group of each token."""


@final
@dataclass(frozen=True)
class All(Pattern):
    """Every token attends to every token."""

    word: ClassVar[str] = "all"

    def allowed(self, where: Where) -> Bool[Tensor, "row head query key"]:
        """Return True for every pair."""
        n = where.position.shape[1]
        return torch.ones(1, 1, n, n, dtype=torch.bool, device=where.position.device)


@final
@dataclass(frozen=True)
class Window(Pattern):
    """Tokens at most ``radius`` steps away; with ``step=s``, only each s-th of them (dilated).

    Parameters
    ----------
    radius : int
        Largest number of steps between two tokens that attend to each other.
    step : int, default=1
        Distance of two tokens that counts as one step.
    """

    radius: int
    step: int = 1
    word: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        _check(self, self.radius >= 0 and self.step >= 1, "radius >= 0 and step >= 1")

    def allowed(self, where: Where) -> Bool[Tensor, "row head query key"]:
        """Return a mask of the pairs that are near enough."""
        gap = _gap(where)
        return (gap.abs() <= self.radius * self.step) & (gap % self.step == 0)


@final
@dataclass(frozen=True)
class Global(Pattern):
    """A window, and the first ``n`` tokens, which attend to and are attended by all tokens.

    Parameters
    ----------
    n : int, default=1
        Number of first tokens that attend to and are attended by all tokens.
    radius : int, default=0
        Largest distance of two other tokens that attend to each other.
    """

    n: int = 1
    radius: int = 0
    word: ClassVar[str] = "global"

    def __post_init__(self) -> None:
        _check(self, self.n >= 1 and self.radius >= 0, "n >= 1 and radius >= 0")

    def allowed(self, where: Where) -> Bool[Tensor, "row head query key"]:
        """Return a mask of the pairs that are near or include a global token."""
        is_global = (where.position < self.n)[:, None]
        return (_gap(where).abs() <= self.radius) | is_global[..., None, :] | is_global[..., None]


@final
@dataclass(frozen=True)
class Blocks(_Groups):
    """Consecutive blocks of tokens. A token attends to its own block only.

    Parameters
    ----------
    sizes : int or tuple of int
        Size of all blocks, or the size of each; the last block takes the tokens that are left.
    """

    sizes: int | tuple[int, ...]
    word: ClassVar[str] = "block"

    def __post_init__(self) -> None:
        sizes = self.sizes if isinstance(self.sizes, tuple) else (self.sizes,)
        _check(self, bool(sizes) and min(sizes) >= 1, "sizes >= 1")

    def groups(self, where: Where) -> Int[Tensor, "row head token"]:
        """Return the block of each token."""
        if not isinstance(self.sizes, tuple):
            return (where.position // self.sizes)[:, None]
        ends = torch.tensor(self.sizes[:-1], device=where.position.device).cumsum(0)
        return torch.bucketize(where.position.contiguous(), ends, right=True)[:, None]


@final
@dataclass(frozen=True)
class Axial(Pattern):
    """Tokens of the same row, the same column, or both, on a grid.

    Parameters
    ----------
    axis : {"both", "row", "column"}, default="both"
        Which tokens are attended to: those of the same row, of the same column, or both.
    """

    axis: Literal["both", "row", "column"] = "both"
    word: ClassVar[str] = "axial"
    spatial: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, self.axis in ("both", "row", "column"), "axis both, row or column")

    def allowed(self, where: Where) -> Bool[Tensor, "row head query key"]:
        """Return a mask of the pairs that share a row or a column."""
        rows, columns, _ = where.at()
        same = [_pairs(rows, rows), _pairs(columns, columns)]
        return same[0] | same[1] if self.axis == "both" else same[self.axis == "column"]

    def groups(self, where: Where) -> Int[Tensor, "row head token"] | None:
        """Return the row or the column of each token; None if both are used."""
        if self.axis == "both":
            return None
        rows, columns, _ = where.at()
        return (columns if self.axis == "column" else rows)[:, None]


@final
@dataclass(frozen=True)
class Stripes(_Groups):
    """Horizontal bands for half of the heads and vertical bands for the others, on a grid.

    Parameters
    ----------
    width : int, default=1
        Height of a horizontal band and width of a vertical one, in positions.
    """

    width: int = 1
    word: ClassVar[str] = "stripes"
    spatial: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, self.width >= 1, "width >= 1")

    def groups(self, where: Where) -> Int[Tensor, "row head token"]:
        """Return the band of each token, by head."""
        if where.heads % 2:
            raise InputError(
                "pattern of an attention: expected an even number of heads for stripes, got "
                f"{where.heads}. Take axial, which does not divide the heads."
            )
        rows, columns, _ = where.at()
        half = where.heads // 2
        return torch.stack([rows] * half + [columns] * half, 1) // self.width


@final
@dataclass(frozen=True)
class RandomKeep(Pattern):
    """A random fraction ``keep`` of the tokens for each token, redrawn for each training batch.

    The tokens are put in random order, the same for all rows. With ``keep = 1 / n`` the order is
    cut in ``n`` groups; otherwise each token looks at the ``keep`` nearest to it in that order,
    whose end is joined to its start.

    Parameters
    ----------
    keep : float, default=0.5
        Fraction of the tokens, rounded to whole tokens; below 1 at least one is left out.
    draws : int, default=0
        In eval mode 0 looks at all tokens; n takes the mean of the output over n draws.
    """

    keep: float = 0.5
    draws: int = 0
    word: ClassVar[str] = "random"
    drawn: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _check(self, 0.0 < self.keep <= 1.0 and self.draws >= 0, "keep in (0, 1] and draws >= 0")

    def allowed(self, where: Where) -> Bool[Tensor, "row head query key"]:
        """Return a mask of the keys that are near enough in the random order."""
        if (group := self.groups(where)) is not None:
            return group[..., :, None] == group[..., None, :]
        rank, n = self._rank(where), where.real.sum(1)[:, None, None]
        ahead = (rank[:, None] - rank[:, :, None]) % n.clamp(min=1)
        kept = (self.keep * n + HALF).floor().long()
        kept = torch.minimum(kept, n - 1).clamp(min=1)
        return ((ahead + kept // 2) % n.clamp(min=1) < kept)[:, None]

    def groups(self, where: Where) -> Int[Tensor, "row head token"] | None:
        """Return the random group of each token, or None if ``1 / keep`` is not an integer."""
        n_groups = round(1.0 / self.keep)
        if abs(self.keep * n_groups - 1.0) > 1e-9:
            return None
        size = (where.real.sum(1, keepdim=True) + n_groups - 1) // n_groups
        return (self._rank(where) // size.clamp(min=1))[:, None]

    def _rank(self, where: Where) -> Int[Tensor, "row token"]:
        """Return each token's rank in the random order of its text's real tokens."""
        if where.generator is None:
            raise InputError(
                "pattern of an attention: expected a generator for random groups, got none."
            )
        # A copy, so that a second question has the same answer; whole chunks, so that a longer
        # text has the same numbers at its start.
        draw, device = where.generator.clone_state(), where.real.device
        n = -(-max(where.real.shape[1], 1) // CHUNK) * CHUNK
        noise = torch.rand(n, generator=draw, device=draw.device).to(device)
        noise = noise[where.position.clamp(min=0)]
        return _rank(noise.masked_fill(~where.real, 2.0))


@final
@dataclass(frozen=True)
class Histogram(Pattern):
    """Groups of tokens of similar intensity: the mean of the head's values.

    In a causal attention each token sorts itself and the tokens before it.

    Parameters
    ----------
    bins : int, default=4
        Number of groups of tokens.
    mode : {"within", "across"}, default="within"
        Tokens look at their bin, or at the tokens of the same rank in all bins.
    """

    bins: int = 4
    mode: Literal["within", "across"] = "within"
    word: ClassVar[str] = "histogram"
    sorts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        is_right = self.bins >= 1 and self.mode in ("within", "across")
        _check(self, is_right, "bins >= 1 and mode within or across")

    def allowed(self, where: Where) -> Bool[Tensor, "row head query key"]:
        """Return a mask of the keys in each query's bin."""
        if (group := self.groups(where)) is not None:
            return group[..., :, None] == group[..., None, :]
        x = self._intensity(where)
        smaller = x[..., :, None] < x[..., None, :]  # smaller[m, j]: m stands before j
        same = (x[..., :, None] == x[..., None, :]).triu(1)
        rank = (smaller | same).long().cumsum(-2)  # among the tokens up to the query
        n = where.real.cumsum(1)[:, None, :, None]
        bins = self._bins(rank, n)
        return bins == bins.diagonal(dim1=-2, dim2=-1)[..., None]

    def groups(self, where: Where) -> Int[Tensor, "row head token"] | None:
        """Return the bin of each token, or its rank in the bin; None for causal attention."""
        if where.causal:
            return None
        n = where.real.sum(1)[:, None, None]
        return self._bins(_rank(self._intensity(where)), n)

    def _intensity(self, where: Where) -> Float[Tensor, "row head token"]:
        if where.intensity is None:
            raise InputError(
                "pattern of an attention: histogram sorts the values, which this port does "
                "not provide."
            )
        return where.intensity.masked_fill(~where.real[:, None], float("inf"))

    def _bins(self, rank: Tensor, n: Tensor) -> Tensor:
        size = ((n + self.bins - 1) // self.bins).clamp(min=1)
        return rank // size if self.mode == "within" else rank % size


PATTERNS: dict[str, type[Any]] = {
    kind.word: kind for kind in (All, Axial, Blocks, Global, Histogram, RandomKeep, Stripes, Window)
}


def pattern_of(said: str | Pattern) -> Pattern:
    """Return the pattern from its text: ``window:8``, ``axial:row``, ``block:4,4,8``.

    Parameters
    ----------
    said : str or Pattern
        The kind, and its parameters in their order, after colons.

    Raises
    ------
    InputError
        If no pattern has this form (the message lists all patterns), or a parameter is wrong.

    Examples
    --------
    >>> pattern_of("window:8"), str(Blocks((4, 8)))
    (Window(radius=8, step=1), 'block:4,8')
    """
    if isinstance(said, Pattern):
        return said
    word, *given = said.split(":")
    kind = PATTERNS.get(word)
    try:
        if kind is not None and len(given) <= len(fields(kind)):
            return kind(*map(_value, given))
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
    forms = ", ".join(
        ":".join([name, *(f.name.upper() for f in fields(one))]) for name, one in PATTERNS.items()
    )
    raise InputError(f"expected a pattern of an attention among {forms}, got {said!r}.")


def _value(text: str) -> Any:
    if "," in text:
        return tuple(int(part) for part in text.removesuffix(",").split(","))
    for kind in (int, float):
        with suppress(ValueError):
            if math.isfinite(value := kind(text)):
                return value
    return text


def _said(value: Any) -> str:
    if not isinstance(value, tuple):
        return str(value)
    return ",".join(map(str, value)) + ("," if len(value) == 1 else "")


def _check(pattern: Pattern, is_right: bool, expected: str) -> None:
    if not is_right:
        raise InputError(f"{type(pattern).__name__}: expected {expected}, got {pattern}.")


def _gap(where: Where) -> Tensor:
    return (where.position[:, None] - where.position[:, :, None])[:, None]


def _pairs(queries: Tensor, keys: Tensor) -> Tensor:
    return (queries[:, :, None] == keys[:, None])[:, None]


def _rank(x: Tensor) -> Tensor:
    return x.argsort(dim=-1, stable=True).argsort(-1)
