"""Softmax in 120 decimal digits, one row at a time: what fast code is compared with."""

from decimal import Decimal, localcontext

import torch

LOGITS = torch.tensor(
    [
        [3.0, 1.5, -0.5, 0.0, 2.5],
        [0.125, 0.25, 0.375, 0.5, 0.625],
        [9.0, -2.0, 1.0, 0.5, -4.0],
        [-1.0, -6.0, -1.5, 2.0, 1.875],
        [30.0, 0.0, 1.0, 2.0, 3.0],
        [0.25, 4.0, 0.125, 0.375, 0.25],
        [2.0, 2.0, 2.0, -1.0, 2.0],
        [-70.0, -80.0, 20.0, -60.0, -65.0],
    ]
)


def exact_softmax(row, temperature=1.0):
    """Return the probabilities of one row of logits."""
    with localcontext() as context:
        context.prec = 120
        powers = [(Decimal(float(f)) / Decimal(temperature)).exp() for f in row]
        total = sum(powers)
        return [power / total for power in powers]


def exactly(function, logits, temperature=1.0):
    """Return a function of each row's probabilities, rounded to double precision."""
    with localcontext() as context:
        context.prec = 120
        return [float(function(exact_softmax(row, temperature))) for row in logits.tolist()]
