"""Linear layers whose weights are changed."""

from torch import nn

from sonde.core.errors import InputError
from sonde.weights._layer import Layer, layer_of

MATRICES = ("matrix", "transposed")


def linear_layer(owner: str, module: nn.Module, layer: str) -> Layer:
    """Return a layer after a check that it is linear.

    Parameters
    ----------
    owner : str
        Method that changes the layer, for the message.
    module : Module
        Module that contains the layer.
    layer : str
        Path of the layer.

    Raises
    ------
    InputError
        If the layer is not linear; the message names the linear layers inside it.
    """
    part = module.get_submodule(layer)
    layer_at = layer_of(layer, part)
    if layer_at is not None and layer_at.kind in MATRICES:
        return layer_at
    inside = linear_layers(module, layer)
    raise InputError(
        f"{owner}: expected a linear layer, got {layer}, a {type(part).__name__}. Linear layers "
        f"in it: {', '.join(inside) or 'none'}."
    )


def linear_layers(module: nn.Module, path: str) -> list[str]:
    """Return the paths of the linear layers inside a module, in the order of the module tree.

    Parameters
    ----------
    module : Module
        Module that contains the layers.
    path : str
        Path of the part to look in.
    """
    inside = module.get_submodule(path).named_modules()
    layers = (layer_of(f"{path}.{name}", part) for name, part in inside if name)
    return [layer.name for layer in layers if layer is not None and layer.kind in MATRICES]
