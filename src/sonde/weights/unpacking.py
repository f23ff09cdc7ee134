"""Models with plain layers in place of packed layers, so that weights can be trained."""

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import nn

from sonde.core.inputs import Model
from sonde.core.repacking import packed_weights
from sonde.data._model_kind import config_of
from sonde.weights.forms import put_part
from sonde.weights.live import module_of, with_tensors
from sonde.weights.quant_tensor import HeldTensor, open_packed

Some = TypeVar("Some", Model, nn.Module)


def unpacked(model: Some) -> Some:
    """Return a model with plain layers of equal weights in place of packed layers.

    Gradients flow through the new model, its weights can be trained and edited, and
    ``save_pretrained`` writes an ordinary folder of it. All other tensors are shared with the old
    model, which stays as it is. A model without packed layers is returned itself.

    Parameters
    ----------
    model : Model or nn.Module
        Model that may contain packed layers; it is not changed.

    Examples
    --------
    >>> from sonde.compress import RTN
    >>> plain = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
    >>> small = RTN(bits=4).plan(plain).fold(plain)
    >>> [type(layer).__name__ for layer in unpacked(small)]
    ['Linear', 'Linear']
    """
    module = module_of(model)
    has_tensors = any(isinstance(part, HeldTensor) for part in module.modules())
    if not packed_weights(module) and not has_tensors:
        return model
    new: Any = with_tensors(module, {})
    unpack_layers(new)
    if vars(new).get("hf_quantizer") is not None:
        new.hf_quantizer.remove_quantization_config(new)
    if isinstance(model, Model):
        return replace(model, module=new, config=config_of(new) or model.config)
    return new


def unpack_layers(module: nn.Module) -> None:
    """Replace packed layers by plain layers, in the dtype of the module's parameters."""
    floats = (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = next(floats, torch.float32)
    open_packed(module)
    for part in packed_weights(module):
        assert isinstance(part, nn.Module)  # a part of a module
        put_part(module, part, part.dequantise().to(dtype).train(part.training))
