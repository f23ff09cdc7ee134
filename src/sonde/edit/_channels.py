"""Channels of a network: the layers that compute them, and edits that scale or silence them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sonde.core.edit import Edit, EditContext
from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.core.site import Site
from sonde.weights import Change, Sparse
from sonde.weights.tuning import each_batch, row_losses

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = nn.modules.batchnorm._BatchNorm


def channel_layers(owner: str, module: nn.Module, only: str | None = None) -> dict[str, Any]:
    """Return, by name, the layers that compute channels: convolutions, or their batch norms.

    Parameters
    ----------
    owner : str
        For errors.
    module : nn.Module
    only : str, optional
        The name of the only layer to return.

    Raises
    ------
    InputError
        If there are no convolutions, or ``only`` is no layer that makes channels.
    """
    layers: dict[str, Any] = {}
    last: tuple[str, nn.Module] | None = None
    for name, part in module.named_modules():
        if next(part.children(), None) is not None:
            continue
        if isinstance(part, _CONVOLUTIONS):
            layers[name] = part
        elif isinstance(part, _NORMS) and last is not None and last[0] in layers and part.affine:
            del layers[last[0]]
            layers[name] = part
        last = name, part
    if not layers:
        raise InputError(
            f"{owner}.plan: expected a model with convolutions, got none in "
            f"{type(module).__name__}. Use another method for this model."
        )
    if only is None:
        return layers
    if only not in layers:
        raise InputError(
            f"{owner}.plan: expected a layer that computes channels, one of {', '.join(layers)}, "
            f"got {only!r}."
        )
    return {only: layers[only]}


@final
@dataclass(eq=False)
class Scaled(Edit):
    """Scale the weights and the biases of layers, channel by channel.

    Parameters
    ----------
    layers : mapping of str to nn.Module
        By name.
    weight, bias : dict of str to Float[Tensor, "channel"]
        Factors, by layer; a layer without factors keeps its channels.
    """

    layers: Mapping[str, Any]
    weight: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    bias: dict[str, Tensor] = field(default_factory=dict[str, Tensor])

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the scaled channels."""
        weight, bias = self.weight.get(site.path), self.bias.get(site.path)
        if weight is None and bias is None:
            return x
        own = self.layers[site.path].bias
        shift = x.new_zeros(()) if own is None else own.to(x)
        scaled = x - shift if weight is None else (x - shift) * weight.to(x)
        return scaled + (shift if bias is None else shift * bias.to(x))


@final
@dataclass(eq=False)
class MeanPassed(Edit):
    """Running sum of ``max(x, 0)`` for each channel, which leaves activations unchanged."""

    total: Tensor | None = None
    n: int = 0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return ``x`` unchanged."""
        rows = x.detach().flatten(0, -2).double().clamp(min=0)
        self.total = rows.sum(0) if self.total is None else self.total + rows.sum(0)
        self.n += len(rows)
        return x


def silenced(
    layers: Mapping[str, Any], which: Mapping[str, Bool[Tensor, "channel"]]
) -> dict[str, Change]:
    """Return the changes that set the weights and biases of chosen channels to 0."""
    changes: dict[str, Change] = {}
    for name, chosen in which.items():
        for part in ("weight", "bias"):
            own = getattr(layers[name], part)
            if own is None or not bool(chosen.any()):
                continue
            entries = chosen.to(own.device).view(-1, *[1] * (own.ndim - 1)).expand(own.shape)
            index = entries.flatten().nonzero()[:, 0].cpu()
            changes[f"{name}.{part}"] = Sparse(index, torch.zeros(len(index), dtype=torch.float64))
    return changes


@torch.no_grad()
def accuracy(model: Model, module: nn.Module, clean: Inputs) -> float:
    """Return the fraction of labelled examples that a module classifies correctly."""
    return accuracy_of(row_losses(model, module, clean), each_batch(clean))


def accuracy_of(losses: Any, batches: Iterable[InputBatch]) -> float:
    """Return the accuracy over the answers whose label is known."""
    right = n = 0
    for batch in batches:
        answers = losses.answers(batch)
        is_known = answers.truth >= 0
        right += int(((answers.log_p.argmax(1) == answers.truth) & is_known).sum())
        n += int(is_known.sum())
    return right / max(1, n)


def labelled(owner: str, clean: Inputs) -> None:
    """Raise if the data have no labels.

    Raises
    ------
    InputError
        If there are no examples, or the first batch has no labels.
    """
    first = next(each_batch(clean), None)
    if first is None:
        raise InputError(f"{owner}: expected at least one clean example, got none.")
    if not bool((first.label >= 0).any()):
        raise InputError(
            f"{owner}: expected clean examples with labels, got no labels. Name the column of "
            "the labels, or pass data that have labels."
        )
