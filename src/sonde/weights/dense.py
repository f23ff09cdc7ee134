"""Dense weights of a model, whatever form its layers store them in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sonde.core.inputs import Model
from sonde.core.repacking import PackedWeight
from sonde.tap import is_plain
from sonde.weights.forms import is_packed
from sonde.weights.live import DYNAMIC, module_of, plain_tensor
from sonde.weights.quant_tensor import HeldTensor, PackedOwner


@dataclass(frozen=True, eq=False)
class DenseWeight:
    """One weight of a model, which is unpacked when it is read.

    Parameters
    ----------
    shape : tuple of int
        Shape of the dense weight.
    is_packed : bool
        Whether the model stores the weight in another form than a plain tensor.
    is_buffer : bool
        Whether the model stores the weight as a buffer, which training does not change.
    source : object
        The tensor or module that stores the weight: tied weights have one source.
    read : callable () -> Tensor
        Return the dense weight, without a gradient.
    """

    shape: tuple[int, ...]
    is_packed: bool
    is_buffer: bool
    source: object
    read: Callable[[], Tensor]


def dense_weights(model: Model | nn.Module) -> dict[str, DenseWeight]:
    """Return the weights of a model by name, as those of a model of plain layers.

    A packed layer has the weight that it multiplies by and its bias, under the names that they have
    in the layer before it was packed; its codes and scales are no weights. A tensor subclass with a
    method ``dequantize`` (those of torchao), a quantised tensor and a sparse tensor become plain
    tensors when they are read. A tied weight has its first name alone; a lazy
    layer that never ran has no weight.

    Parameters
    ----------
    model : Model or nn.Module
        Model to read; it is not changed.

    Examples
    --------
    >>> from sonde.compress import RTN
    >>> plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> small = RTN(bits=4).plan(plain).fold(plain)
    >>> len([*small.parameters(), *small.buffers()])
    10
    >>> weights = dense_weights(small)
    >>> list(weights), weights["0.weight"].is_packed, weights["0.weight"].read().shape
    (['0.weight', '0.bias', '1.weight', '1.bias'], True, torch.Size([8, 8]))
    """
    weights: dict[str, DenseWeight] = {}
    seen: set[int] = set()
    for path, part in module_of(model).named_modules():
        for leaf, weight in own_weights(part).items():
            if id(weight.source) not in seen:
                seen.add(id(weight.source))
                weights[f"{path}.{leaf}".lstrip(".")] = weight
    return weights


def own_weights(part: nn.Module) -> dict[str, DenseWeight]:
    """Return the dense weights that one module stores itself, by their names in it.

    Parameters
    ----------
    part : nn.Module
        Module of a model; weights of its submodules are left out.
    """
    return dict(_own(part))


def _own(part: nn.Module) -> Iterator[tuple[str, DenseWeight]]:
    if isinstance(part, HeldTensor):
        return  # the module that it belongs to has the weight
    if (layer := _dynamic_layer(part)) is not None:
        weight, bias = layer.weight(), layer.bias()
        yield "weight", DenseWeight(tuple(weight.shape), True, False, part, weight.dequantize)
        if bias is not None:
            yield "bias", _of_tensor(bias, False)
        return
    if (layer := _packed_layer(part)) is not None:
        shape = layer.out_features, layer.in_features
        yield "weight", DenseWeight(shape, True, False, part, partial(_of_layer, layer))
    if isinstance(part, PackedOwner):
        for leaf in part.packed_leaves:
            held = part.held(leaf)
            yield leaf, DenseWeight(held.shape, True, False, held, held.tensor.unpacked)
    for leaf, x in part.named_parameters(recurse=False):
        if (layer is None or leaf == "bias") and not is_lazy(x):
            yield leaf, _of_tensor(x, False)
    for leaf, x in part.named_buffers(recurse=False):
        if layer is None and not is_lazy(x):
            yield leaf, _of_tensor(x, True)


def _of_tensor(x: Tensor, is_buffer: bool) -> DenseWeight:
    return DenseWeight(tuple(x.shape), not is_plain(x), is_buffer, x, partial(plain_tensor, x))


def _of_layer(layer: Any) -> Tensor:
    plain = layer.dequantise() if isinstance(layer, PackedWeight) else layer
    return plain.weight.detach()


def _packed_layer(part: nn.Module) -> Any:
    """Return a layer that stores its weight in another form, or None."""
    return part if isinstance(part, PackedWeight) or is_packed(part) else None


def _dynamic_layer(part: nn.Module) -> Any:
    """Return a layer of ``quantize_dynamic``, or None."""
    return part if type(part).__module__ == DYNAMIC else None
