"""The final linear layer of a model, which maps its last hidden state to logits."""

from typing import Any

from torch import nn

from sonde.core.batch import Head
from sonde.core.repacking import PackedWeight, is_linear
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.sharding import whole_tensor
from sonde.tap.model.probe import Probe

NAMES = frozenset({"lm_head", "classifier", "score", "head", "fc", "embed_out", "output", "logits"})


def find_head(module: nn.Module) -> Head | None:
    """Return weight and bias of a model's final linear layer, or None.

    Output embeddings of a transformer, else the last registered linear layer if it, or what holds
    it, has a name that heads have. Names can err: a stream takes a head only if its output in the
    probe forward is the logits.

    Parameters
    ----------
    module : Module
        Module whose final linear layer is looked for.

    Examples
    --------
    >>> class Net(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.body, self.fc = nn.Linear(4, 3), nn.Linear(3, 2)
    >>> find_head(Net())[0].shape
    torch.Size([2, 3])
    """
    names = ModuleNames(module)
    inner = names.modules[""]
    get = getattr(inner, "get_output_embeddings", None)
    module_given = get() if callable(get) else None
    if is_linear(module_given):
        return _head(module_given)
    linear = [(n, m) for n, m in names.primary() if is_linear(m)]
    if not linear:
        return None
    path, last = linear[-1]
    return _head(last) if path.split(".")[0] in NAMES else None


def layer_of(probe: Probe, key: str) -> Head | None:
    """Return the linear layer that computed the logits ``key`` in a probe pass, or None."""
    if key not in probe.heads:
        return None
    layer = probe.names.modules[probe.heads[key]]
    return _head(layer) if is_linear(layer) else None


def _head(layer: Any) -> Head | None:
    layer = layer.dequantise() if isinstance(layer, PackedWeight) else layer
    if layer.weight.device.type == "meta":
        return None
    weight, bias = whole_tensor(layer.weight.detach()), layer.bias
    return weight, None if bias is None else whole_tensor(bias.detach())
