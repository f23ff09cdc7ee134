"""Causal context of every pixel, computed for a whole row of pixels at once as far as possible.

For models that predict a picture pixel by pixel. A single causal ``Attention`` with the pattern
``axial`` sees the pixel's own row and column alone.
"""

from collections.abc import Callable
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.layers.attention import Attention
from sonde.layers.layer import Layer


@final
class AxialDecoder(Layer):
    """Contexts of pixels in raster order: each depends on all pixels before it, and on no other.

    The outer part reads whole rows: attention along rows without a mask, then along columns down
    to the own row; its output moves down by one row, so that a pixel gets a summary of all rows
    above. The inner part adds the pixel to the left and attends to the row so far.
    A product of one distribution for each context can express any joint distribution, and
    ``decode`` runs the outer part once for each row of pixels, not for each pixel.

    Cost         ``depth (3 (high + wide) dim + 24 dim^2)`` products a pixel; ``decode`` runs the
                 outer part ``high`` times and the inner part, on one row, ``high wide`` times.
    Assumes      tokens in raster order that fill the grid, with their places in the states.
    Differs      from the paper: as many inner as outer blocks; pictures of one channel.

    Parameters
    ----------
    dim : int
        Width of the states; a multiple of ``heads``.
    grid : (int, int)
        Height and width of the picture.
    heads : int, default=4
        Number of heads.
    depth : int, default=1
        Blocks along rows, along columns, and along the row so far: ``depth`` of each.

    Examples
    --------
    >>> layer = AxialDecoder(4, (2, 3), heads=2)
    >>> x = torch.arange(24.0).reshape(1, 6, 4)
    >>> changed = x.clone()
    >>> changed[:, 4] = 0.0
    >>> (layer(x) != layer(changed)).any(2).tolist()
    [[False, False, False, False, False, True]]

    References
    ----------
    ho2019axial
    """

    paper: ClassVar[str] = "ho2019axial"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "grid": (3, 2), "heads": 2},
        {"dim": 4, "grid": (2, 3), "heads": 1, "depth": 2},
    )
    layout: ClassVar[tuple[str, ...]] = ("row token dim",)
    insertable = False
    causal = True

    def __init__(self, dim: int, grid: tuple[int, int], heads: int = 4, depth: int = 1) -> None:
        super().__init__()
        if depth < 1 or min(grid) < 1:
            raise InputError(
                "AxialDecoder: expected a depth and a grid of at least 1, got "
                f"depth={depth} and grid={tuple(grid)}."
            )
        self.dim, self.grid = dim, (int(grid[0]), int(grid[1]))
        self.token = self.grid[0] * self.grid[1]
        line = (1, self.grid[1])
        self.outer = nn.Sequential(*[
            part for _ in range(depth)
            for part in (_Block(Attention(dim, heads, "axial:row", self.grid)),
                         _Block(Attention(dim, heads, "axial:column", self.grid, causal=True)))
        ])  # fmt: skip
        self.inner = nn.Sequential(
            *[_Block(Attention(dim, heads, "axial:row", line, causal=True)) for _ in range(depth)]
        )

    def forward(self, x: Float[Tensor, "row token dim"]) -> Float[Tensor, "row token dim"]:
        """Return the context of every token: a function of the tokens before it alone."""
        above = self.above(x).unflatten(1, self.grid).flatten(0, 1)
        lines = x.unflatten(1, self.grid).flatten(0, 1)
        return self.along(above, lines).unflatten(0, (len(x), -1)).flatten(1, 2)

    def above(self, x: Float[Tensor, "row token dim"]) -> Float[Tensor, "row token dim"]:
        """Return the outer part's summary, for each token, of the rows above its row."""
        return _moved(self.outer(x), self.grid[1])

    def along(
        self, above: Float[Tensor, "row wide dim"], line: Float[Tensor, "row wide dim"]
    ) -> Float[Tensor, "row wide dim"]:
        """Return the contexts of one row's tokens from the rows above and from the row itself.

        Parameters
        ----------
        above : Float[Tensor, "row wide dim"]
            The row's part of ``above``.
        line : Float[Tensor, "row wide dim"]
            States of the row's tokens; a context depends on those to the left of its token.
        """
        return self.inner(above + _moved(line, 1))

    @torch.no_grad()
    def decode(
        self, n: int, draw: Callable[[Tensor, int], Tensor]
    ) -> Float[Tensor, "row token dim"]:
        """Return the states of ``n`` pictures that are drawn token by token.

        The result is that of ``forward`` on all tokens so far, anew for each token.

        Parameters
        ----------
        n : int
            Pictures to draw together.
        draw : callable
            Takes the contexts, ``(n, dim)``, and the number of a token in raster order; returns
            the states of the tokens that it draws, ``(n, dim)``.
        """
        high, wide = self.grid
        x = next(self.parameters()).new_zeros(n, high * wide, self.dim)
        for first in range(0, high * wide, wide):
            line = slice(first, first + wide)
            above = self.above(x)[:, line]
            for column in range(wide):
                context = self.along(above, x[:, line])[:, column]
                x[:, first + column] = draw(context, first + column)
        return x


class _Block(nn.Module):
    """Attention and a hidden layer, each behind a layer norm and added to the states."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        dim = attention.dim
        self.attention, self.norm = attention, nn.LayerNorm(dim)
        self.each = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the states plus what both parts add."""
        normal = self.norm(x)
        x = x + (self.attention(normal) - normal)  # Attention adds its own input
        return x + self.each(x)


def _moved(x: Tensor, n: int) -> Tensor:
    """Return tokens moved ``n`` places to the end; zeros come first."""
    return torch.cat([torch.zeros_like(x[:, :n]), x[:, :-n]], 1)
