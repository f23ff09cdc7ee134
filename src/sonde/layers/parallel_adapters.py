"""Small layers parallel to a frozen feed-forward layer, one per domain, mixed per token."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import Model
from sonde.layers._attending import wide_type
from sonde.layers.layer import Layer


@final
class Adapter(Layer):
    """A residual bottleneck ``x + up(relu(down(x)))`` whose second map starts at zero.

    Cost         2 dim width numbers and products for each state.

    Parameters
    ----------
    dim, width : int
        Width of the states, and width of the bottleneck.

    References
    ----------
    diao2023mixda
    """

    paper: ClassVar[str] = "diao2023mixda"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"dim": 4, "width": 3},)
    layout: ClassVar[tuple[str, ...]] = ("*axes dim",)

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        self.dim = dim
        self.down, self.up = nn.Linear(dim, width), nn.Linear(width, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Return the states plus the bottleneck's output."""
        return x + self.change(x)

    def change(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Return the bottleneck's output."""
        return self.up(torch.relu(self.down(x)))


@final
class ParallelAdapters(Layer):
    """A frozen feed-forward layer plus the outputs of parallel domain adapters.

    ``F(x) + sum_k g_k(x) A_k(x)``: each ``A_k`` is a bottleneck whose second layer starts at zero,
    so that a fresh one changes no bit of the model. The gate ``g`` is a one-head attention of the
    token over the layer's own output and the adapters' outputs, one share for each; shares start
    equal. Without a gate every ``g_k`` is 1. First train each adapter on its domain with
    ``change_on`` of general text as a penalty, then train the gate on the task.

    Cost         2 dim width numbers and products for each adapter.
    Assumes      the layer is a function of each token by itself.

    Parameters
    ----------
    layer : nn.Module
        The feed-forward layer, (.., dim) -> (.., dim). Its parameters are frozen.
    dim : int
        Width of the states.
    n_domains : int, default=1
        Number of adapters, one for each domain.
    width : int, optional
        Width of the bottleneck; by default a 16th of ``4 dim``, the usual width of the feed-forward
        layer.
    gated : bool, default=False
        Weigh the adapters by an attention of the token; without it every adapter counts fully.
    dropout : float, default=0.1
        On the gate's shares, in training.

    References
    ----------
    diao2023mixda
    """

    paper: ClassVar[str] = "diao2023mixda"
    layout: ClassVar[tuple[str, ...]] = ("*axes dim",)
    insertable = False

    def __init__(
        self,
        layer: nn.Module,
        dim: int,
        n_domains: int = 1,
        width: int | None = None,
        gated: bool = False,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if n_domains < 1:
            raise InputError(f"ParallelAdapters: expected at least one domain, got {n_domains}.")
        self.dim = dim
        self.layer = layer.requires_grad_(False)
        adapters = [Adapter(dim, width or max(1, dim // 4)) for _ in range(n_domains)]
        self.adapters = nn.ModuleList(adapters)
        self.query = nn.Linear(dim, dim, bias=False) if gated else None
        self.key = nn.Linear(dim, dim, bias=False) if gated else None
        self.dropout = nn.Dropout(dropout)
        if self.query is not None:
            nn.init.zeros_(self.query.weight)  # equal shares at the start

    def forward(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes dim"]:
        """Return the layer's output plus the adapters' outputs."""
        base = self.layer(x)
        added = torch.stack([cast(Adapter, a).change(x) for a in self.adapters], dim=-2)
        if self.query is None or self.key is None:
            return base + added.sum(-2)
        keys = self.key(torch.cat((base.unsqueeze(-2), added), dim=-2))
        keys = keys.to(wide_type(keys))  # products of half types overflow
        scores = (self.query(x).to(keys).unsqueeze(-2) * keys).sum(-1) / x.shape[-1] ** 0.5
        share = self.dropout(scores.softmax(-1).to(base))[..., 1:]
        return base + (share.unsqueeze(-1) * added).sum(-2)

    def change_on(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, ""]:
        """Return the mean squared change of the layer's output, the penalty on general text."""
        return (self(x) - self.layer(x)).square().mean()


def with_adapters(
    model: Model | nn.Module, layers: Sequence[str], dim: int, **parameters: Any
) -> Any:
    """Return a copy of a model with adapters for some layers, and its own weights frozen.

    Parameters
    ----------
    model : Model or nn.Module
        Stays as it is.
    layers : sequence of str
        Names of the feed-forward layers, e.g. those of blocks 7 and 11 of 12.
    dim : int
        Width of the residual stream.
    **parameters
        Parameters of ``ParallelAdapters``.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    >>> new = with_adapters(net, ["1"], 4)
    >>> x = torch.ones(2, 3)
    >>> torch.equal(new(x), net(x)), sum(p.requires_grad for p in new.parameters())
    (True, 4)
    """
    new = copy.deepcopy(model.module if isinstance(model, Model) else model).requires_grad_(False)
    names = {name for name, _ in new.named_modules()}
    if missing := [name for name in layers if name not in names or not name]:
        raise InputError(f"with_adapters: the model has no layer {missing[0]!r}.")
    if not layers:
        raise InputError("with_adapters: expected the name of at least one layer, got none.")
    for name in layers:
        path, _, leaf = name.rpartition(".")
        adapted = ParallelAdapters(new.get_submodule(name), dim, **parameters)
        setattr(new.get_submodule(path), leaf, adapted)
    return new
