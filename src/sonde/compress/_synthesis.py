"""Network that makes one reference of several dictionary entries, and its training."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from sonde.stats.training import generator, xavier

FINE, OCTAVE = 64, 8
"""References are rounded to this fraction of a step, spreads to this fraction of an octave: both
sides of a codec then have the same numbers, though sums may differ in their last digits."""
BATCH, RATE = 256, 3e-3


@dataclass(frozen=True)
class Synthesis:
    """Map from the entries of a row, nearest first, to its expected values and their spreads.

    Weights of the entries and of the spreads come from a hidden layer that sees all entries; a
    correction is added to the weighted mean.

    Parameters
    ----------
    weights : tuple of Tensor
        ``centre (dim,)`` and ``scale ()`` of the entries, ``first (hidden, n dim)``, its offset,
        ``second (n + 2 dim, hidden)`` and its offset.
    """

    weights: tuple[Tensor, ...]

    def __call__(
        self, x: Float[Tensor, "row n dim"], smallest: float
    ) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row dim"]]:
        """Return the references, and the spreads in steps, at least ``smallest``."""
        centre, scale, first, offset, second, last = self.weights
        normal = (x - centre) / scale
        hidden = functional.gelu(functional.linear(normal.flatten(1), first, offset))
        n, dim = x.shape[1:]
        odds, moved, spread = functional.linear(hidden, second, last).split([n, dim, dim], 1)
        mixed = (odds.softmax(1)[:, :, None] * x).sum(1)
        return mixed + scale * moved, spread.exp2().clamp(min=smallest, max=2.0**20)

    def rounded(
        self, x: Float[Tensor, "row n dim"], smallest: float, step: float
    ) -> tuple[Float[Tensor, "row dim"], Float[Tensor, "row dim"]]:
        """Return references and spreads, rounded as a codec needs them."""
        reference, spread = self(x, smallest)
        fine = step / FINE
        return (reference / fine).round() * fine, (spread.log2() * OCTAVE).round().div(
            OCTAVE
        ).exp2()


@torch.enable_grad()
def learned_synthesis(
    rows: Float[Tensor, "row dim"],
    entries: Float[Tensor, "entry dim"],
    chosen: Int[Tensor, "row n"],
    spreads: Float[Tensor, "dim"],
    step: float,
    hidden: int,
    updates: int,
    seed: int,
    smallest: float,
) -> Synthesis:
    """Return a network trained to code rows in few bits; it starts close to the nearest entry."""
    n, dim = chosen.shape[1], rows.shape[1]
    source = generator("synthesis", seed)
    last = torch.cat([torch.zeros(n), torch.zeros(dim), spreads.log2().float()])
    last[0] += 2.0  # the nearest entry begins with most of the weight
    drawn = [xavier(source, hidden, n * dim), torch.zeros(hidden),
             torch.zeros(n + 2 * dim, hidden), last]  # fmt: skip
    learned = [weight.double().requires_grad_() for weight in drawn]
    deviation = (entries - entries.mean(0)).square().mean().sqrt().clamp(min=1e-6)
    net = Synthesis((entries.mean(0), deviation, *learned))
    adam = torch.optim.Adam(learned, lr=RATE)
    for _ in range(updates):
        some = torch.randint(len(rows), (min(BATCH, len(rows)),), generator=source)
        reference, spread = net(entries[chosen[some]], smallest)
        bits = normal_bits((rows[some] - reference) / step, spread)
        adam.zero_grad()
        bits.mean().backward()
        adam.step()
    return Synthesis(tuple(weight.detach() for weight in net.weights))


def normal_bits(
    x: Float[Tensor, "row dim"], spread: Float[Tensor, "row dim"]
) -> Float[Tensor, "row dim"]:
    """Return the bits of numbers in steps of 1 by a normal distribution of mean 0."""
    above, below = (torch.special.ndtr((half - x.abs()) / spread) for half in (0.5, -0.5))
    return -(above - below).clamp(min=1e-9).log2()
