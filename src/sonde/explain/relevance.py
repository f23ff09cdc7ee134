"""Layer-wise relevance propagation: each unit passes its relevance to its inputs.

The rules act on torch's functions, not on classes of modules, so functional code, residual sums and
modules that run twice need no special rules.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from sonde.core.errors import SiteError
from sonde.core.ranges import check_ranges
from sonde.explain.attribution import Attributor, Parts
from sonde.explain.objective import FixedObjective
from sonde.tap.streams.site_function import SiteFunction

LINEAR: frozenset[Any] = frozenset({F.linear, torch.addmm})
CONVOLUTION: frozenset[Any] = frozenset({F.conv1d, F.conv2d, F.conv3d})
CURVES: frozenset[Any] = frozenset(
    {
        F.gelu,
        F.silu,
        F.elu,
        F.leaky_relu,
        F.softplus,
        F.mish,
        F.hardswish,
        F.sigmoid,
        F.tanh,
        torch.sigmoid,
        torch.tanh,
        Tensor.sigmoid,
        Tensor.tanh,
    }
)
CONSTANTS: frozenset[Any] = frozenset(
    {
        F.softmax,
        torch.softmax,
        Tensor.softmax,
        torch.rsqrt,
        Tensor.rsqrt,
        torch.sqrt,
        Tensor.sqrt,
        torch.var,
        Tensor.var,
        torch.std,
        Tensor.std,
    }
)
PRODUCTS: frozenset[Any] = frozenset({torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__})
RATIOS: frozenset[Any] = frozenset({torch.div, Tensor.div, Tensor.__truediv__})
CLOSED: frozenset[Any] = frozenset({F.multi_head_attention_forward})


@final
@dataclass(frozen=True)
class Relevance(Attributor):
    """Layer-wise relevance: each unit divides its relevance among its inputs.

    A linear unit ``z_j = sum_i x_i w_ij + b_j`` hands down in proportion to ``x_i w_ij``, by the
    epsilon rule ``x_i w_ij / (z_j + epsilon sign(z_j))``; a convolution by the gamma rule, with
    ``w + gamma max(w, 0)`` for ``w`` in both places. Curves hand down all relevance; attention
    weights, scales of norms and divisors are constants; two factors of a product get half each.

    Range        objective; signed; adds up to the objective less what biases took (``gap``, with
                 the flag ``incomplete`` above 5 %).
    Cost         one forward and backward, linear layers twice where gamma is not 0.
    Assumes      functions of torch that can be seen: attentions inside ``nn.MultiheadAttention``
                 cannot.
    Differs      from the paper: batch norms are linear layers of their own; no box rule for pixels.

    Parameters
    ----------
    epsilon : float, default=1e-6
        Above 0; a larger value leaves relevance in units whose inputs cancel.
    gamma : float, default=0.25
        Extra weight of positive weights in convolutions, at least 0; 0 is the epsilon rule there
        too.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> net.weight.data = torch.tensor([[3.0, -2.0]])
    >>> found = Relevance().explain(net, torch.tensor([[1.0, 5.0]]))
    >>> [round(x, 3) for x in found.value[0].tolist()]
    [3.0, -10.0]

    References
    ----------
    bach2015lrp
    """

    epsilon: float = 1e-6
    gamma: float = 0.25
    adds_up: ClassVar[bool] = True
    paper: ClassVar[str] = "bach2015lrp"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({}, {"gamma": 0.0})

    def __post_init__(self) -> None:
        check_ranges(self, epsilon="> 0", gamma=">= 0")

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        point = function.value.detach().requires_grad_(True)
        with _Rules(self.epsilon, self.gamma):
            outputs = function.run(point)
        number = objective.of(outputs)
        if not number.requires_grad:
            return Parts(torch.zeros_like(point), is_reached=False)
        (slope,) = torch.autograd.grad(number.sum(), point, allow_unused=True)
        if slope is None:
            return Parts(torch.zeros_like(point), is_reached=False)
        return Parts(slope * point.detach(), torch.zeros_like(number).detach())


class _Rules(TorchFunctionMode):
    """Compute functions as usual, but replace their gradients by ``rule / x``.

    Autograd multiplies these gradients on the way down, and adds what several readers of a tensor
    hand back to the tensor.
    """

    def __init__(self, epsilon: float, gamma: float) -> None:
        super().__init__()
        self.epsilon, self.gamma = epsilon, gamma

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if not torch.is_grad_enabled():
            return func(*args, **kwargs)
        if func in CLOSED:
            raise SiteError(
                "Relevance: nn.MultiheadAttention computes inside one function, where relevance "
                "cannot be followed. Take AttentionRelevance or IntegratedGradients."
            )
        if func in LINEAR or func in CONVOLUTION:
            return self._linear(func, self.gamma if func in CONVOLUTION else 0.0, args, kwargs)
        if func in CONSTANTS:
            return func(*args, **kwargs).detach()
        if func is F.scaled_dot_product_attention:
            query, key, *rest = args
            return func(query.detach(), key.detach(), *rest, **kwargs)
        if func in CURVES:
            return self._curve(func, args, kwargs)
        if func is F.layer_norm:
            return _layer_norm(*args, **kwargs)
        if func in PRODUCTS and _both_vary(args):
            a, b = args[:2]
            return 0.5 * (a * b.detach() + a.detach() * b)
        if func in RATIOS and isinstance(args[1], Tensor):
            return func(args[0], args[1].detach(), *args[2:], **kwargs)
        return func(*args, **kwargs)

    def _linear(
        self, func: Callable[..., Any], gamma: float, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Return a linear layer's output, with gradients of the gamma and epsilon rules."""
        z = func(*args, **kwargs)
        if gamma:
            x, *weights = args
            raised = [w + gamma * w.clamp(min=0) if isinstance(w, Tensor) else w for w in weights]
            named = {
                k: w + gamma * w.clamp(min=0) if k in ("weight", "bias") and w is not None else w
                for k, w in kwargs.items()
            }
            ruled = func(x, *raised[:2], *weights[2:], **named)
        else:
            ruled = z
        exact = torch.promote_types(ruled.dtype, torch.float32)
        level = ruled.detach().to(exact)
        below = level + self.epsilon * torch.where(level < 0, -1.0, 1.0)
        factor = (z.detach() / below).to(z)
        return z.detach() + factor * (ruled - ruled.detach())

    def _curve(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """Return the value of an activation function, with the gradient ``f(x) / x``."""
        x = args[0]
        y = func(x.detach().clone(), *args[1:], **(kwargs | _not_in_place(kwargs)))
        zero = x.detach() == 0
        factor = torch.where(zero, 0.0, y / torch.where(zero, 1.0, x.detach()))
        return y + factor * (x - x.detach())


def _not_in_place(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"inplace": False} if "inplace" in kwargs else {}


def _layer_norm(
    x: Tensor,
    shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return a layer norm whose scale is treated as a constant."""
    axes = tuple(range(-len(shape), 0))
    centred = x - x.mean(axes, keepdim=True)
    scale = (centred.detach().square().mean(axes, keepdim=True) + eps).rsqrt()
    y = centred * scale
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _both_vary(args: tuple[Any, ...]) -> bool:
    return all(isinstance(x, Tensor) and x.requires_grad for x in args[:2])
