"""Weights in (0, 1) that sum to ``k``: a differentiable selection of the largest entries."""

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError

HALVINGS = 64


class _SoftTopK(torch.autograd.Function):
    """``p = sigmoid(alpha (x + t))``, with closed-form backward that skips the search for ``t``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: int, alpha: float) -> Tensor:
        real = torch.isfinite(x)
        wide = x.double()
        low = -wide.masked_fill(~real, -torch.inf).amax(-1, keepdim=True) - 40.0 / alpha
        high = -wide.masked_fill(~real, torch.inf).amin(-1, keepdim=True) + 40.0 / alpha
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            above = torch.sigmoid(alpha * (wide + middle)).sum(-1, keepdim=True) > k
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        p = torch.sigmoid(alpha * (wide + (low + high) / 2))
        ctx.save_for_backward(p)
        ctx.alpha = alpha
        return p.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (p,) = ctx.saved_tensors
        grad = grads[0].to(p.dtype)
        v = ctx.alpha * p * (1.0 - p)
        total = v.sum(-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)
        gradient = v * grad - v * (v * grad).sum(-1, keepdim=True) / total
        return gradient.to(grads[0].dtype), None, None


def soft_top_k(
    x: Float[Tensor, "*axes entry"], k: int, alpha: float = 1.0, hard: bool = False
) -> Float[Tensor, "*axes entry"]:
    """Return weights that favour the ``k`` largest entries and sum to ``k``.

    ``sigmoid(alpha (x + t))`` with the ``t`` at which they sum to ``k``, by bisection in float64.
    The gradient is exact: ``diag(v) - v v' / sum v`` with ``v = alpha p (1 - p)``. Adding a
    constant to all entries changes nothing.

    Parameters
    ----------
    x : Float[Tensor, "*axes entry"]
        An entry of ``-inf`` gets weight 0.
    k : int
        From 1 to the number of finite entries; that number gives ones.
    alpha : float, default=1.0
        Sharpness; large values give 0 and 1.
    hard : bool, default=False
        Give back 0 and 1, with the gradient of the soft weights.

    Examples
    --------
    >>> soft_top_k(torch.tensor([2.0, 1.0, 0.0, -1.0]), 2).double().round(decimals=3).tolist()
    [0.818, 0.622, 0.378, 0.182]

    References
    ----------
    gupta2024dexml
    """
    fewest = int(torch.isfinite(x).sum(-1).min()) if x.numel() else x.shape[-1]
    if not 1 <= k <= fewest or alpha <= 0:
        raise InputError(
            f"soft_top_k: expected k from 1 to the {fewest} finite entries of a row and alpha "
            f"above 0, got k={k}, alpha={alpha}. Choose fewer entries."
        )
    soft = cast(Tensor, _SoftTopK.apply(x, k, alpha))
    if not hard:
        return soft
    chosen = torch.zeros_like(soft).scatter(-1, x.topk(k, dim=-1).indices, 1.0)
    return chosen + (soft - soft.detach())
