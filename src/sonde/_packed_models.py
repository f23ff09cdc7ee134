"""Let transformers open packed models, by replacing layers before weights are loaded.

``sonde._opening`` imports this as soon as somebody has imported transformers; nobody calls it.
"""

from pathlib import Path
from typing import Any

import torch
from transformers.quantizers.auto import (  # pyright: ignore[reportPrivateImportUsage]
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from sonde.data._checkpoints import GUARD_KEY, NEEDS_SONDE

METHOD = "sonde"


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """Entry for packed layers in ``config.json``.

    Parameters
    ----------
    layers : dict of str to dict
        What each part that has another form is told, by its name: ``sonde.weights.forms``.
    files : dict of str to str, optional
        SHA-256 of each file of packed weights.
    """

    def __init__(
        self, layers: dict[str, dict[str, Any]], files: dict[str, str] | None = None, **_: Any
    ) -> None:
        self.quant_method = METHOD  # pyright: ignore[reportAttributeAccessIssue]
        self.layers, self.files = layers, files or {}


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Replaces layers by the packed layers that ``config.json`` describes.

    Layers with many zeros get their weight back after loading, and stay what they are.
    """

    requires_calibration = True

    def update_attn_implementation(self, config: Any) -> Any:
        """Remove the guard that stops transformers from opening the folder without this quantizer.

        transformers calls this before it reads that option.
        """
        _set_guard(config, False)
        return config

    def update_tp_plan(self, config: Any) -> Any:
        """Remove the guard; older versions call this and not the method above."""
        return self.update_attn_implementation(config)

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> None:
        from sonde.weights.folder import check_files
        from sonde.weights.forms import name_in, put_form

        files = kwargs.get("checkpoint_files")
        self.folder = Path(files[0]).parent if files else None
        config: Any = self.quantization_config
        hashes = vars(config).pop("files", {})  # a copy that is saved has other files
        if self.folder is not None:
            check_files(self.folder, hashes)
        is_body = model.base_model is model  # which has no head, packed or not
        by_name = {name_in(model, name) or name * (not is_body): form
                 for name, form in config.layers.items()}  # fmt: skip
        config.layers = {name: form for name, form in by_name.items() if name}
        for name, form in config.layers.items():
            put_form(model, name, form)
        _leave_packed_ties(model)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        from sonde.layers.saving import insert_saved_layers
        from sonde.weights.forms import finish_form

        config: Any = self.quantization_config
        for name in list(config.layers):
            if finish_form(model, name):
                del config.layers[name]  # a copy that is saved holds the plain weight
        _in_one_type(model, tuple(config.layers))
        if self.folder is not None:
            insert_saved_layers(model, self.folder)
        if config.layers:
            _set_guard(model.config, True)  # a copy that is saved is guarded too
        else:
            self.remove_quantization_config(model)
        _leave_file(model)
        return model

    def remove_quantization_config(self, model: Any) -> Any:
        """Restore the configuration of an ordinary model."""
        _set_guard(model.config, False)
        return super().remove_quantization_config(model)

    def _dequantize(self, model: Any, *_: Any, **__: Any) -> Any:
        from sonde.weights.unpacking import unpack_layers

        unpack_layers(model)
        return model

    def is_serializable(self) -> Any:
        """Return True, because packed tensors can be saved as ordinary tensors."""
        return True

    @property
    def is_trainable(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return False, because no gradient flows through packed layers."""
        return False


def _in_one_type(model: Any, packed: tuple[str, ...]) -> None:
    """Give plain weights that were stored in a narrower type the type of the model.

    transformers 5.16 leaves weights as they are stored if a quantizer opens the model.
    """
    wanted = model.config.dtype
    for name, module in model.named_modules():
        if not isinstance(wanted, torch.dtype) or name in packed:
            continue
        for parameter in module.parameters(recurse=False):
            stored = parameter.dtype
            if stored.is_floating_point and stored.itemsize <= wanted.itemsize != 1:
                parameter.data = parameter.data.to(wanted)


def _set_guard(config: Any, on: bool) -> None:
    """Make transformers reject a saved configuration unless sonde is imported, or undo this."""
    fusions = dict(vars(config).pop(GUARD_KEY, None) or {})
    fusions.pop(NEEDS_SONDE, None)
    fusions |= {NEEDS_SONDE: True} if on else {}
    if fusions:
        setattr(config, GUARD_KEY, fusions)


def _leave_packed_ties(model: Any) -> None:
    """Remove packed tensors from the tied weights of transformers."""
    ties = model.__dict__.get("all_tied_weights_keys", {})
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for target, source in list(ties.items()):
        if target not in names or source not in names:
            del ties[target]


def _leave_file(model: Any) -> None:
    """Copy all tensors except codes from the memory-mapped file.

    Codes leave it when a kernel takes them. One tensor that stayed would hold the whole file, and
    codes would be in memory twice.
    """
    for x in model.parameters():
        x.data = x.data.clone()
    for part in model.modules():
        for name, x in part._buffers.items():
            if x is not None and name != "codes":  # in place, ``_base`` would hold the file
                part._buffers[name] = x.clone()
