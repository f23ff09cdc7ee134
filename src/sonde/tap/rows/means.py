"""Token means, summed in blocks to keep precision.

Every mean here is written to a given tensor (``out=``), which autocast leaves alone.
"""

from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

BLOCK = 32
"""Most numbers that are added one after the other."""
LEAST, MOST = 8, 16
"""Sizes of the blocks of a product; ``torch.mean`` adds as many at once and is as exact."""
CACHED_BYTES = 2**21
"""Up to this size ``torch.mean`` is faster than two products: what it reads is in the cache."""


@final
class WholeMean:
    """Mean over all tokens of each example.

    On the CPU it is a product with equal weights if that is faster than ``torch.mean``: over up to
    32 tokens, and for tensors larger than a cache, in equal blocks whose sums are then added.

    Parameters
    ----------
    n, length : int
        Examples, and tokens of each.
    dtype, device
        Of what is averaged.

    Examples
    --------
    >>> WholeMean(1, 2, torch.float32, torch.device("cpu"))(torch.tensor([[[1.0], [4.0]]])).tolist()
    [[2.5]]
    """

    def __init__(self, n: int, length: int, dtype: torch.dtype, device: torch.device) -> None:
        sizes = [length] if length <= BLOCK else range(MOST, LEAST - 1, -1)
        self.block = next((size for size in sizes if size and length % size == 0), 0)
        self.weights = None
        if self.block and device.type == "cpu":
            shape = n * (length // self.block), 1, self.block
            self.weights = torch.full(shape, 1 / length, dtype=dtype)
        n_blocks = length // self.block if self.block else 0
        self.ones = torch.ones(n, 1, n_blocks, dtype=dtype) if 1 < n_blocks <= MOST else None

    def __call__(self, x: Float[Tensor, "row pos dim"]) -> Float[Tensor, "row dim"]:
        """Return the mean of each example, differentiable if ``x`` requires gradients."""
        return x.mean(1) if _has_graph(x) else _written(self, x)

    def write(self, x: Float[Tensor, "row pos dim"], out: Float[Tensor, "row 1 dim"]) -> None:
        """Write the mean of each example."""
        n, length, dim = x.shape
        if self.weights is not None and self.block == length and x.is_contiguous():
            torch.bmm(self.weights, x, out=out)
        elif self.weights is None or x.nbytes <= CACHED_BYTES or not x.is_contiguous():
            torch.mean(x, 1, keepdim=True, out=out)
        else:
            sums = x.new_empty(len(self.weights), 1, dim)
            torch.bmm(self.weights, x.view(-1, self.block, dim), out=sums)
            sums = sums.view(n, -1, dim)
            if self.ones is None:
                torch.sum(sums, 1, keepdim=True, out=out)
            else:
                torch.bmm(self.ones, sums, out=out)


@final
class PickedMean:
    """Mean over some tokens of each example; the other values are ignored, even NaN.

    Tokens are added in blocks of 32, the sums of the blocks likewise, until one is left.

    Parameters
    ----------
    kept : Bool[Tensor, "row pos"]
        Which tokens count, at least one of each example.
    dtype, device
        Of what is averaged.
    """

    def __init__(
        self, kept: Bool[Tensor, "row pos"], dtype: torch.dtype, device: torch.device
    ) -> None:
        counts = kept.sum(dim=1)
        self.counts = counts[:, None, None].to(device=device, dtype=dtype)
        self.steps: list[tuple[Tensor, Tensor]] = []
        index = kept.flatten().nonzero().flatten()
        while int(counts.max()) > BLOCK:
            owner = torch.arange(len(counts)).repeat_interleave(counts)
            place = torch.arange(len(index)) - (counts.cumsum(0) - counts)[owner]
            first = (place % BLOCK == 0).nonzero().flatten()
            self.steps.append((index.to(device), first.to(device)))
            counts, index = -(-counts // BLOCK), torch.arange(len(first))
        self.steps.append((index.to(device), (counts.cumsum(0) - counts).to(device)))

    def __call__(self, x: Float[Tensor, "row pos dim"]) -> Float[Tensor, "row dim"]:
        """Return the mean of each example, differentiable if ``x`` requires gradients."""
        return (self._sums(x) / self.counts)[:, 0] if _has_graph(x) else _written(self, x)

    def write(self, x: Float[Tensor, "row pos dim"], out: Float[Tensor, "row 1 dim"]) -> None:
        """Write the mean of each example."""
        torch.div(self._sums(x), self.counts, out=out)

    def _sums(self, x: Float[Tensor, "row pos dim"]) -> Float[Tensor, "row 1 dim"]:
        sums = x.flatten(0, 1)
        for index, first in self.steps:
            sums = functional.embedding_bag(index, sums, first, mode="sum")
        return sums[:, None]


Mean = WholeMean | PickedMean


def _has_graph(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def _written(mean: Mean, x: Tensor) -> Tensor:
    out = x.new_empty(len(x), 1, x.shape[2])
    mean.write(x, out)
    return out[:, 0]
