"""Linear and convolution layers of a model, with weight and bias as one matrix."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

Layer = nn.Linear | nn.Conv2d


def layers_of(module: nn.Module) -> dict[str, Layer]:
    """Return the linear layers and the convolutions without groups, by name."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) or (isinstance(part, nn.Conv2d) and part.groups == 1)
    }


def joined_weights(layer: Layer) -> Float[Tensor, "out dim"]:
    """Return weight and bias as one matrix; the bias is the last column."""
    flat = layer.weight.flatten(1)
    return flat if layer.bias is None else torch.cat((flat, layer.bias[:, None]), 1)


def split_weights(
    layer: Layer, whole: Float[Tensor, "out dim"]
) -> tuple[Float[Tensor, "out *dims"], Float[Tensor, "out"] | None]:
    """Return the weight and the bias of a layer from one matrix."""
    n = layer.weight[0].numel()
    weight = whole[:, :n].reshape(layer.weight.shape)
    return weight, None if layer.bias is None else whole[:, n]


@torch.no_grad()
def put_weights(layer: Layer, whole: Float[Tensor, "out dim"]) -> None:
    """Write weight and bias of a layer."""
    weight, bias = split_weights(layer, whole)
    layer.weight.copy_(weight)
    if layer.bias is not None and bias is not None:
        layer.bias.copy_(bias)
