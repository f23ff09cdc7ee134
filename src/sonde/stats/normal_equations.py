"""Least squares from sums of products that may be singular.

A sum of products has the square of the rows' condition, so directions without data get eigenvalues
of rounding size: some pass a cutoff of ``eps * dim`` on one processor and not on another.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

GRAM_CUT: Final = 1e-10
"""Fraction of the largest eigenvalue of a sum of products below which an eigenvalue is rounding."""


def solve_normal_equations(
    gram: Float[Tensor, "dim dim"], right: Float[Tensor, "dim dim2"]
) -> Float[Tensor, "dim dim2"]:
    """Return the least-norm solution of ``gram @ x = right``, with units scaled equally.

    Directions below ``GRAM_CUT`` of the largest eigenvalue get no weight. Units are brought to one
    scale first, so that small ones are not taken for rounding.

    Parameters
    ----------
    gram : Float[Tensor, "dim dim"]
        Symmetric, without negative eigenvalues: sums of products of the same units.
    right : Float[Tensor, "dim dim2"]
        Right-hand sides, one in each column.
    """
    square = gram.diagonal()
    scale = torch.where(square > 0, square, 1.0).rsqrt()
    values, vectors = torch.linalg.eigh(gram * scale[:, None] * scale)
    kept = values > GRAM_CUT * values[-1:].clamp(min=0)
    along = vectors[:, kept]
    solution = along @ ((along.T @ (right * scale[:, None])) / values[kept, None])
    return solution * scale[:, None]
