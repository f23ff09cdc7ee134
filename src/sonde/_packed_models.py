"""How transformers opens a packed model: its layers are exchanged before weights are loaded.

``sonde._opening`` imports this as soon as somebody has imported transformers; nobody calls it.
"""

from typing import Any

from torch import nn
from transformers.quantizers.auto import (  # pyright: ignore[reportPrivateImportUsage]
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

METHOD = "sonde"


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What ``config.json`` says of packed layers.

    Parameters
    ----------
    layers : dict of str to dict
        Bits and group of each layer, or its rank, or how many entries are not 0, by its name.
    """

    def __init__(self, layers: dict[str, dict[str, Any]], **_: Any) -> None:
        self.quant_method = METHOD  # pyright: ignore[reportAttributeAccessIssue]
        self.layers = layers


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts a ``QuantLinear`` or ``ThinLinear`` in the place of each layer that was packed.

    Layers with many zeros get their weight back after loading, and stay what they are.
    """

    requires_calibration = True

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        from sonde.weights import QuantLinear, ThinLinear
        from sonde.weights.pruned import PackedZeros

        config: Any = self.quantization_config
        for name, told in config.layers.items():
            above, _, own = name.rpartition(".")
            layer = _layer(model, name)
            if "kept" in told:
                new = PackedZeros(layer, int(told["kept"]), list(told["shape"]))
                setattr(model.get_submodule(above), own, new.to(layer.weight.device))
                continue
            sizes, bias = (layer.in_features, layer.out_features), layer.bias is not None
            if "rank" in told:
                new = ThinLinear(*sizes, int(told["rank"]), bias)
            else:
                new = QuantLinear(*sizes, int(told["bits"]), int(told["group"]), bias)
            setattr(model.get_submodule(above), own, new.to(layer.weight.device))

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from sonde.weights.pruned import PackedZeros

        config: Any = self.quantization_config
        for name, told in list(config.layers.items()):
            if "kept" not in told:
                continue
            above, _, own = name.rpartition(".")
            parent = model.get_submodule(above)
            holder = getattr(parent, own)
            assert isinstance(holder, PackedZeros)
            setattr(parent, own, holder.opened())
            del config.layers[name]  # a copy that is saved holds the plain weight
        if not config.layers:
            self.remove_quantization_config(model)
        return model

    def is_serializable(self) -> Any:
        """Return that the model can be saved: packed tensors are ordinary ones."""
        return True

    @property
    def is_trainable(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return that no gradient flows through packed layers."""
        return False


def _layer(model: nn.Module, name: str) -> Any:
    from sonde.core.errors import StoreError
    from sonde.weights.pruned import LAYERS

    try:
        layer = model.get_submodule(name)
    except AttributeError:
        layer = None
    if not isinstance(layer, LAYERS):
        raise StoreError(
            f"{type(model).__name__}: the configuration names {name} as a packed layer, and the "
            "model has no such layer. Open it by the class that it was saved from."
        )
    return layer
