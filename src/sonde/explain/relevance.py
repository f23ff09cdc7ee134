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
        F.hardsigmoid,
        F.hardtanh,
        F.logsigmoid,
        F.selu,
        F.celu,
        F.softsign,
        F.softshrink,
        F.hardshrink,
        F.tanhshrink,
        F.sigmoid,
        F.tanh,
        torch.sigmoid,
        torch.tanh,
        torch.square,
        torch.sin,
        torch.log1p,
        Tensor.sigmoid,
        Tensor.tanh,
        Tensor.square,
        Tensor.sin,
        Tensor.log1p,
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
        torch.reciprocal,
        Tensor.reciprocal,
        Tensor.__rtruediv__,
    }
)
PRODUCTS: frozenset[Any] = frozenset(
    {
        torch.mul,
        Tensor.mul,
        Tensor.__mul__,
        Tensor.__rmul__,
        torch.matmul,
        Tensor.matmul,
        Tensor.__matmul__,
        torch.bmm,
        Tensor.bmm,
    }
)
RATIOS: frozenset[Any] = frozenset({torch.div, Tensor.div, Tensor.__truediv__})
POWERS: frozenset[Any] = frozenset({torch.pow, Tensor.pow, Tensor.__pow__})
ATTENTION: frozenset[Any] = frozenset({F.scaled_dot_product_attention})
OPERANDS = ("input", "other", "mat2", "exponent", "query", "key", "value")
"""Names of operands that callers may pass by keyword, in the order of their positions."""
CLOSED: frozenset[Any] = frozenset({F.multi_head_attention_forward})
IN_PLACE: dict[Any, Any] = {
    twin: func
    for func in (*CURVES, *POWERS, *PRODUCTS, *RATIOS)
    for owner in (torch, Tensor, F)
    if (twin := getattr(owner, f"{func.__name__}_", None)) is not None
} | {Tensor.__imul__: Tensor.mul, Tensor.__itruediv__: Tensor.div, Tensor.__ipow__: Tensor.pow}
"""The function that each function computes in place."""


@final
@dataclass(frozen=True)
class Relevance(Attributor):
    """Layer-wise relevance: each unit divides its relevance among its inputs.

    A linear unit ``z_j = sum_i x_i w_ij + b_j`` hands down in proportion to ``x_i w_ij``, by the
    epsilon rule ``x_i w_ij / (z_j + epsilon sign(z_j))``; a convolution by the gamma rule, with
    ``w + gamma max(w, 0)`` for ``w`` in both places. Curves hand down all relevance; attention
    weights, scales of norms and divisors are constants; two factors of a product, or of a matrix
    product, get half each. What is computed in place has the rule of its function.

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
        with _Rules(self.epsilon, self.gamma) as rules:
            outputs = function.run(point)
        number = objective.of(outputs)
        if not number.requires_grad and rules.constants:
            raise SiteError(
                f"Relevance: the answer depends on the input only through {rules.constants[-1]}, "
                "which the rules treat as a constant. Explain the logits before it, or take "
                "IntegratedGradients."
            )
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
        self.constants: list[str] = []

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
            self.constants.append(func.__name__.strip("_"))
            return func(*args, **kwargs).detach()
        if func in IN_PLACE:
            return args[0].copy_(self.__torch_function__(IN_PLACE[func], types, args, kwargs))
        if func in CURVES | POWERS | PRODUCTS | RATIOS | ATTENTION:
            args = (*args, *(kwargs.pop(name) for name in OPERANDS if name in kwargs))
        if func in ATTENTION:
            query, key, *rest = args
            return func(query.detach(), key.detach(), *rest, **kwargs)
        if func in POWERS and _is_scale(args[1]):
            return func(*args, **kwargs).detach()  # as sqrt, rsqrt and divisors
        if func in CURVES or (func in POWERS and isinstance(args[0], Tensor)):
            return self._curve(func, args, kwargs)
        if func in NORMS:
            return NORMS[func](*args, **kwargs)
        if func in PRODUCTS and _both_vary(args):
            return _halved(func, *args)
        if func is torch.einsum and len(args) == 3 and _both_vary(args[1:]):
            return _halved(lambda a, b: func(args[0], a, b), *args[1:])
        if func is F.glu:
            value, gate = args[0].chunk(2, args[1] if len(args) > 1 else kwargs.get("dim", -1))
            return _halved(torch.mul, value, self._curve(torch.sigmoid, (gate,), {}))
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
        x, changed = args[0], args[0].detach().clone()
        y = func(changed, *args[1:], **kwargs).detach()
        value = x.detach().clone()
        zero = value == 0
        factor = torch.where(zero, 0.0, y / torch.where(zero, 1.0, value))
        ruled = y.clone() + factor * (x - value)
        return x.copy_(ruled) if y.data_ptr() == changed.data_ptr() else ruled


def _halved(func: Callable[..., Tensor], a: Tensor, b: Tensor) -> Tensor:
    """Return a product whose two factors get half of its relevance each."""
    return 0.5 * (func(a, b.detach().clone()) + func(a.detach().clone(), b))


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


def _rms_norm(
    x: Tensor, shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """Return a norm by the root mean square, which is treated as a constant."""
    axes = tuple(range(-len(shape), 0))
    least = torch.finfo(x.dtype).eps if eps is None else eps
    y = x * (x.detach().square().mean(axes, keepdim=True) + least).rsqrt()
    return y if weight is None else y * weight


def _group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return a group norm whose scale is treated as a constant."""
    rows = x.reshape(len(x), groups, -1)
    y = _layer_norm(rows, rows.shape[-1:], eps=eps).reshape(x.shape)
    wide = (1, -1, *[1] * (x.ndim - 2))
    y = y if weight is None else y * weight.reshape(wide)
    return y if bias is None else y + bias.reshape(wide)


def _instance_norm(
    x: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return an instance norm whose scale is treated as a constant."""
    if use_input_stats:
        return _group_norm(x, x.shape[1], weight, bias, eps)
    return F.batch_norm(x, running_mean, running_var, weight, bias, eps=eps)


def _normalize(
    x: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Tensor | None = None
) -> Tensor:
    """Return vectors over their length, which is treated as a constant."""
    return x / x.detach().norm(p, dim, keepdim=True).clamp_min(eps)


NORMS: dict[Any, Callable[..., Tensor]] = {
    F.layer_norm: _layer_norm,
    F.rms_norm: _rms_norm,
    F.group_norm: _group_norm,
    F.instance_norm: _instance_norm,
    F.normalize: _normalize,
}


def _is_scale(exponent: Any) -> bool:
    return (not isinstance(exponent, Tensor) or exponent.numel() == 1) and (
        float(exponent) in (0.5, -0.5, -1.0)
    )


def _both_vary(args: tuple[Any, ...]) -> bool:
    return all(isinstance(x, Tensor) and x.requires_grad for x in args[:2])
