"""All inputs of 12 bits labelled by a quadratic form, and nets that learn it, at checkpoints."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde_studies._layers import plain_net, trained

BITS, WIDTHS, RATE, STEPS, ROWS = 12, (10, 7, 5, 4, 3), 1e-2, 1500, 256
AT = (0, 20, 50, 100, 200, 400, 700, 1000)
PLAIN_RATE, PLAIN = 0.2, 8
"""Rate of stochastic gradient descent, and its steps for each of AdamW's."""


def bit_rule(seed: int) -> tuple[Float[Tensor, "row bit"], Int[Tensor, "row"]]:
    """Return all inputs in random order, and a balanced label of pairs of bits."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.cartesian_prod(*BITS * [torch.tensor([-1.0, 1.0])])
    x = x[torch.randperm(len(x), generator=draw)]
    form = torch.randn(BITS, BITS, generator=draw)
    score = ((x @ form) * x).sum(1)
    return x, (score > score.median()).long()


def untrained(seed: int, act: type[nn.Module]) -> nn.Sequential:
    """Return a net of five narrow layers with an activation."""
    return plain_net(seed, WIDTHS, act, BITS, 2)


def checkpoints(
    x: Float[Tensor, "row bit"],
    label: Int[Tensor, "row"],
    act: type[nn.Module],
    decay: float,
    seed: int,
    steps: int,
    plain: bool = False,
) -> list[nn.Sequential]:
    """Return the net after the steps ``AT``, and at the end.

    AdamW trains the net, or with ``plain`` stochastic gradient descent without momentum, in
    ``PLAIN`` times as many steps.
    """
    net = untrained(seed, act)
    rate, times = (PLAIN_RATE, PLAIN) if plain else (RATE, 1)
    at = [times * step for step in AT]
    return list(trained(net, x, label, times * steps, seed, rate, decay, at, ROWS, plain))
