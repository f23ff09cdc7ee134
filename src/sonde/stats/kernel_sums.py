"""Sums of Gaussian kernels over row pairs, and their Cauchy-Schwarz divergences.

Shared by losses and measures; differentiable in the rows.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CHUNK = 512


def gaussian_kernel(
    x: Float[Tensor, "row dim"], others: Float[Tensor, "row2 dim"]
) -> Float[Tensor, "row row2"]:
    """Return ``exp(-d^2 / 2)`` of every row pair; rows are divided by the kernel width.

    Parameters
    ----------
    x : Float[Tensor, "row dim"]
        Rows, divided by the kernel width.
    others : Float[Tensor, "row2 dim"]
        Rows to compare with, divided by the same width.
    """
    squares = x.square().sum(1)[:, None] + others.square().sum(1) - 2 * x @ others.T
    return (-squares.clamp(min=0) / 2).exp()


def quadratic_information(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"]
) -> Float[Tensor, ""]:
    """Return the Cauchy-Schwarz quadratic mutual information of paired rows, in nats.

    ``ln mean_ij K_ij L_ij + ln (mean K mean L) - 2 ln mean_i (mean_j K_ij mean_j L_ij)``, a chunk
    of rows at a time.

    Parameters
    ----------
    x, y : Float[Tensor, "row dim"]
        In units of the widths of their kernels.
    """
    joint = x.new_zeros(())
    means: list[tuple[Tensor, Tensor]] = []
    for part in torch.arange(len(x), device=x.device).split(CHUNK):
        near_x, near_y = gaussian_kernel(x[part], x), gaussian_kernel(y[part], y)
        joint = joint + (near_x * near_y).sum()
        means.append((near_x.mean(1), near_y.mean(1)))
    u, v = (torch.cat(sides) for sides in zip(*means, strict=True))
    return (joint / len(x) ** 2).log() + (u.mean() * v.mean()).log() - 2 * (u * v).mean().log()


def conditional_divergence(
    x: Float[Tensor, "row dim"], y: Float[Tensor, "row dim2"], other: Float[Tensor, "row dim2"]
) -> Float[Tensor, ""]:
    """Return the Cauchy-Schwarz divergence of ``p(y | x)`` from ``p(other | x)``, in nats.

    ``ln sum_i (K L)_i+ / K_i+^2 + ln sum_i (K M)_i+ / K_i+^2 - 2 ln sum_i (K C)_i+ / K_i+^2`` with
    kernels ``K`` of ``x``, ``L`` of ``y``, ``M`` of ``other`` and ``C`` of ``y`` with ``other``.

    Parameters
    ----------
    x, y, other : Float[Tensor, "row dim"]
        In units of the widths of their kernels; ``y`` and ``other`` share one width.
    """
    near = gaussian_kernel(x, x)
    weight = near / near.sum(1, keepdim=True).square()
    pairs = ((y, y), (other, other), (y, other))
    own, its, both = ((weight * gaussian_kernel(a, b)).sum().log() for a, b in pairs)
    return own + its - 2 * both


def unbiased_hsic(
    near_x: Float[Tensor, "row row"], near_y: Float[Tensor, "row row"]
) -> Float[Tensor, ""]:
    """Return the unbiased HSIC of two kernel matrices of the same rows.

    ``(tr KL + sum K sum L / ((n - 1) (n - 2)) - 2 sum (K L) / (n - 2)) / (n (n - 3))`` with zeros
    on both diagonals; at least four rows.
    """
    n = len(near_x)
    own = torch.eye(n, dtype=torch.bool, device=near_x.device)
    k, m = (near.masked_fill(own, 0.0) for near in (near_x, near_y))
    rows_k, rows_m = k.sum(1), m.sum(1)
    total = rows_k.sum() * rows_m.sum() / ((n - 1) * (n - 2))
    return ((k * m).sum() + total - 2 * (rows_k @ rows_m) / (n - 2)) / (n * (n - 3))
