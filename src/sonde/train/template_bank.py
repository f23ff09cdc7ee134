"""Weights as mixtures of shared templates, so that a network can grow by new mixtures.

For a training that begins small. To grow a net whose answers stay the same see ``Resize``.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges

Kind = TypeVar("Kind", bound=nn.Module)


@final
class TemplateLinear(nn.Module):
    """A linear layer whose weight is a grid of blocks, each a mixture of templates.

    Parameters
    ----------
    bank : nn.Parameter of shape (template, out, in)
        Several layers may share it.
    mix : Float[Tensor, "down across template"]
        Coefficients of each block.
    bias : Float[Tensor, "unit"], optional
    """

    def __init__(
        self,
        bank: nn.Parameter,
        mix: Float[Tensor, "down across template"],
        bias: Float[Tensor, "unit"] | None = None,
    ) -> None:
        super().__init__()
        self.bank, self.mix = bank, nn.Parameter(mix)
        self.bias = None if bias is None else nn.Parameter(bias)

    @property
    def weight(self) -> Float[Tensor, "unit dim"]:
        """The weight computed from the templates."""
        blocks = torch.einsum("d a t, t o i -> d o a i", self.mix, self.bank)
        return blocks.flatten(2).flatten(0, 1)

    def forward(self, x: Float[Tensor, "*axes dim"]) -> Float[Tensor, "*axes unit"]:
        """Return the layer's output."""
        return linear(x, self.weight, self.bias)


@final
@dataclass(frozen=True)
class TemplateBank:
    """Make each weight a mixture of a few templates, and a wider network from new mixtures.

    ``W = sum_t c_t T_t``. Linear layers whose weights have one shape share their templates. In the
    wider net a weight is a grid of blocks of the old shape: the first block keeps its coefficients,
    and each further block has new ones. ``orthogonal``: as long as the old ones and at a right
    angle to them and, while there are directions left, to each other. ``copy``: the old ones with
    noise. Coefficients are divided by the root of the number of blocks that a unit reads
    (``copy``: by that number), so that states stay as large.

    Range        models; ``of`` keeps all answers if a bank has at least as many templates as
                 layers, else it takes the nearest mixes. ``copy`` without noise keeps them in the
                 wider net.
    Cost         templates times the weights of one layer of each shape; a forward pass makes each
                 weight anew, n_templates products for each of its numbers.
    Assumes      linear layers; other parameters repeat along the axes that grow. Weights that two
                 layers hold, such as tied embeddings, stay as they are.
    Differs      from the paper: coefficients are divided by what a unit reads; convolutions stay as
                 they are.

    Parameters
    ----------
    n_templates : int, default=4
        Number of templates.
    growth : {"orthogonal", "copy"}, default="orthogonal"
        Way in which coefficients of new layers are made.
    noise : float, default=0.1
        Standard deviation of the noise on copied coefficients, relative to their root mean square.
    seed : int, default=0
        Seed of the initial templates and coefficients.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> like = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 1))
    >>> rule = TemplateBank(n_templates=2)
    >>> wide = rule.plain(rule.grown(rule.of(net), like))
    >>> tuple(wide[0].weight.shape)
    (6, 2)

    References
    ----------
    pham2024mixturegrowth
    """

    n_templates: int = 4
    growth: Literal["orthogonal", "copy"] = "orthogonal"
    noise: float = 0.1
    seed: int = 0
    paper: ClassVar[str] = "pham2024mixturegrowth"

    def __post_init__(self) -> None:
        check_ranges(self, n_templates=">= 1", noise=">= 0")
        if self.growth not in ("orthogonal", "copy"):
            raise InputError(
                f"TemplateBank: expected growth 'orthogonal' or 'copy', got {self.growth!r}."
            )
        if self.growth == "orthogonal" and self.n_templates < 2:
            raise InputError(
                "TemplateBank: expected at least 2 templates for growth='orthogonal', since a "
                "single coefficient has no orthogonal direction. Pass growth='copy', or more "
                "templates."
            )

    @torch.no_grad()
    def of(self, model: nn.Module) -> nn.Module:
        """Return a copy of a model whose linear layers are mixtures of templates.

        Parameters
        ----------
        model : nn.Module

        Raises
        ------
        InputError
            If it has no linear layer, or the weights of one are not finite.
        """
        new, draw = copy.deepcopy(model), torch.Generator().manual_seed(self.seed)
        tied = _tied(new)
        shapes: dict[tuple[int, ...], list[tuple[str, nn.Linear]]] = {}
        for name, layer in _layers(new, nn.Linear):
            if name and id(layer.weight) not in tied:
                shapes.setdefault(tuple(layer.weight.shape), []).append((name, layer))
        if not shapes:
            raise InputError(
                f"TemplateBank.of: expected a model with linear layers inside, got "
                f"{type(model).__name__}."
            )
        for layers in shapes.values():
            weights = torch.stack([layer.weight for _, layer in layers])
            if not bool(weights.isfinite().all()):
                raise InputError(
                    f"TemplateBank.of: expected finite weights, got NaN or infinite ones in one of "
                    f"{', '.join(name for name, _ in layers)}. Train or load the model anew."
                )
            bank, mix = self._bank(weights.double(), draw)
            shared = nn.Parameter(bank.to(weights))
            for (name, layer), c in zip(layers, mix.to(weights), strict=True):
                bias = None if layer.bias is None else layer.bias.detach()
                _put(new, name, TemplateLinear(shared, c[None, None].clone(), bias))
        return new.train(model.training)

    def _bank(
        self, weights: Float[Tensor, "layer out in"], draw: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Return the templates and coefficients that best approximate the weights."""
        n, m, flat = len(weights), self.n_templates, weights.flatten(1)
        if n > m:  # no exact mixes: the span of the first singular vectors is nearest
            mix = torch.linalg.svd(flat, full_matrices=False)[0][:, :m]
            return (mix.T @ flat).unflatten(1, weights.shape[1:]), mix
        drawn = torch.randn(m, n, generator=draw, dtype=torch.float64).to(flat.device)
        mix = torch.linalg.qr(drawn).Q.T  # rows of length 1, at right angles
        size = flat.square().mean().sqrt()
        bank = size * torch.randn(m, flat.shape[1], generator=draw, dtype=torch.float64).to(flat)
        bank = bank + mix.T @ (flat - mix @ bank)
        return bank.unflatten(1, weights.shape[1:]), mix

    @torch.no_grad()
    def grown(self, model: nn.Module, like: nn.Module) -> nn.Module:
        """Return a wider model whose new blocks are new mixtures of the templates.

        Parameters
        ----------
        model : nn.Module
            As ``of`` returns it; it stays as it is.
        like : nn.Module
            A model of the new size with linear layers of the same names.

        Raises
        ------
        InputError
            If a layer of the new size is no whole number of blocks of the old one.
        """
        new, draw = copy.deepcopy(like), torch.Generator().manual_seed(self.seed + 1)
        banks: dict[int, nn.Parameter] = {}
        for name, layer in _layers(model, TemplateLinear):
            wide = dict(new.named_modules()).get(name)
            old = tuple(layer.weight.shape)
            wanted = tuple(wide.weight.shape) if isinstance(wide, nn.Linear) else None
            if wanted is None or any(b % a for a, b in zip(old, wanted, strict=True)):
                raise InputError(
                    f"TemplateBank.grown: expected {name} of a multiple of {old} in like=, got "
                    f"{wanted}. Pass a model of the new size with layers of the same names."
                )
            down, across = (b // a for a, b in zip(old, wanted, strict=True))
            bank = banks.setdefault(id(layer.bank), nn.Parameter(layer.bank.detach().clone()))
            mix = self._mixed(layer.mix.detach(), down, across, draw)
            bias = None if layer.bias is None else layer.bias.detach().repeat(down)
            _put(new, name, TemplateLinear(bank, mix, bias))
        state = model.state_dict()
        for name, x in new.state_dict().items():
            part = state.get(name)
            if name.endswith((".bank", ".mix")) or part is None or part.ndim != x.ndim:
                continue
            times = [b // a for a, b in zip(part.shape, x.shape, strict=True)]
            if part.repeat(*times).shape == x.shape:
                x.copy_(part.repeat(*times))
        return new.train(model.training)

    def _mixed(self, mix: Tensor, down: int, across: int, draw: torch.Generator) -> Tensor:
        """Return the coefficients of a grid that is ``down`` x ``across`` times as large."""
        tiled = mix.double().repeat(down, across, 1)
        if self.growth == "copy":
            size = self.noise * mix.double().square().mean().sqrt()
            moved = size * torch.randn(tiled.shape, generator=draw, dtype=torch.float64).to(tiled)
            moved[: mix.shape[0], : mix.shape[1]] = 0.0
            return ((tiled + moved) / across).to(mix)
        for i in range(mix.shape[0]):
            for j in range(mix.shape[1]):
                taken = mix[i, j].double()[None]
                for d in range(down):
                    for a in range(across):
                        if (d, a) == (0, 0):
                            continue
                        c = _aside(taken, draw) * taken[0].norm()
                        tiled[d * mix.shape[0] + i, a * mix.shape[1] + j] = c
                        taken = torch.cat([taken, c[None]])
        return (tiled / math.sqrt(across)).to(mix)

    @torch.no_grad()
    def plain(self, model: nn.Module) -> nn.Module:
        """Return a copy with ordinary linear layers in place of mixtures, with equal answers.

        Parameters
        ----------
        model : nn.Module
        """
        new = copy.deepcopy(model)
        for name, layer in list(_layers(new, TemplateLinear)):
            weight = layer.weight
            linear = nn.Linear(weight.shape[1], weight.shape[0], layer.bias is not None)
            linear = linear.to(weight)
            linear.weight.copy_(weight)
            if layer.bias is not None:
                linear.bias.copy_(layer.bias)
            _put(new, name, linear)
        return new.train(model.training)


def _aside(taken: Float[Tensor, "vector template"], draw: torch.Generator) -> Tensor:
    """Return a unit vector orthogonal to the first vector, and if possible to all vectors."""
    m = taken.shape[1]
    others = taken if len(taken) < m else taken[:1]
    free = torch.linalg.svd(others, full_matrices=True)[2][len(others) :]
    drawn = torch.randn(len(free), generator=draw, dtype=torch.float64).to(free)
    direction = drawn @ free
    return direction / direction.norm()


def _layers(model: nn.Module, kind: type[Kind]) -> Iterator[tuple[str, Kind]]:
    for name, module in model.named_modules():
        if isinstance(module, kind):
            yield name, module


def _tied(model: nn.Module) -> set[int]:
    """Return the parameters that several layers share."""
    n = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {i for i, times in n.items() if times > 1}


def _put(model: nn.Module, name: str, layer: nn.Module) -> None:
    above, _, own = name.rpartition(".")
    owner: Any = model.get_submodule(above)
    setattr(owner, own, layer)
