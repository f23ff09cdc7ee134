"""How much of the training a layer forgets its input in, and what depth does to its length."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sonde.measure import information_plane
from sonde_studies._bit_rule import AT, BITS, RATE, ROWS, STEPS, WIDTHS, bit_rule, checkpoints
from sonde_studies._layers import layers_of, loss, plain_net, trained
from sonde_studies.arms import note_again, note_for, part

BINS = {"estimator": "bins", "low": -1.0, "high": 1.0}
SHALLOW = (14, 7)
"""Two layers with as many parameters as the five of ``WIDTHS``, to 5 %."""
LOOK, LEVEL = 10, 0.3
"""Updates between two looks at the loss, and the loss in nats that both nets are to reach."""


def phases(seed: int, tiny: bool) -> dict[str, float]:
    """Return the figures of claims about the length of compression, the label and depth."""
    x, label = bit_rule(seed)
    steps = 40 if tiny else STEPS
    with part("plane, tanh net"):
        nets = checkpoints(x, label, nn.Tanh, 0.0, seed, steps)
    at = [*AT[: len(nets) - 1], steps]
    sides = [slice(i, None, 8 if tiny else 2) for i in (0, 1)]
    states = [[layers_of(net, x[side])[-1] for net in nets] for side in sides]
    _, other = ([_input_bits(h) for h in half] for half in states)
    most = other.index(max(other))
    told = [label_bits(h, label[sides[0]], seed) for h in states[0]]
    needs = dict[str, float]()
    for arm, widths in (("five layers", WIDTHS), ("two layers", SHALLOW)):
        with part(arm):
            needs[arm] = updates_to(LEVEL, x, label, widths, seed, steps)
    note_again("plane, in the end", "plane, tanh net")
    size = sum(p.numel() for p in nets[-1].parameters())
    note_for("plane, at its largest", updates=at[most], rows=len(x), parameters=size)
    return {
        "long": 1 - at[most] / steps - 0.5,
        "label": told[-1] - told[most] + 0.05,
        "depth": math.log2(needs["two layers"] / needs["five layers"]),
        "bits about the label, last layer | before training": told[0],
        "bits about the label, last layer | at the largest about the input": told[most],
        "bits about the label, last layer | in the end": told[-1],
        **{f"updates to the loss | {arm}": n for arm, n in needs.items()},
    }


def label_bits(h: Tensor, label: Tensor, seed: int) -> float:
    """Return bits about the label, less those about the same labels in random order."""
    order = torch.randperm(len(h), generator=torch.Generator().manual_seed(seed))
    own, lot = (
        float(information_plane(h, y, **BINS, m=len(h)).bits()) for y in (label, label[order])
    )
    return own - lot


def updates_to(
    level: float, x: Tensor, label: Tensor, widths: tuple[int, ...], seed: int, steps: int
) -> float:
    """Return after how many updates the loss on all inputs is first at most ``level``.

    ``steps`` if it never is; looked at every ``LOOK`` updates.
    """
    net = plain_net(seed, widths, nn.Tanh, BITS, 2)
    looks = range(LOOK, steps, LOOK)
    nets: Iterator[nn.Sequential] = trained(net, x, label, steps, seed, RATE, 0.0, looks, ROWS)
    found = [(at, loss(now, x, label)) for at, now in zip((*looks, steps), nets, strict=True)]
    return float(next((at for at, value in found if value <= level), steps))


def _input_bits(h: Tensor) -> float:
    return float(information_plane(h, **BINS, m=len(h)).bits())
