"""Whether a live model is the one that a bundle was fitted on."""

import warnings
from typing import Any

import torch

from sonde.core.errors import SondeWarning, StateError
from sonde.core.inputs import Model
from sonde.files.identity import agree, difference
from sonde.run.bundles.header import warn_other_code, warn_unknown_structure
from sonde.tap import fingerprint, forward_code, known_config_hash, known_structure, placement


def require_live_model(header: dict[str, Any], live: Model) -> torch.device:
    """Refuse a model with other weights or another configuration; return where it runs.

    In another float type the hash of the weights cannot be compared: this is only a warning.

    Raises
    ------
    StateError
        If the bundle was fitted on arrays, or on another model.
    """
    fitted = header["model"]
    if fitted.get("model") is None:
        raise StateError(
            "Guard: the probe was fitted on arrays, not on a model. Fit it on sonde.read(model, "
            "data) to guard that model."
        )
    device, dtype = placement(live.module)
    here = {
        "config": known_config_hash(live.config, live.module, fitted.get("config")),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
    }
    here["structure"] = known_structure(live.module, fitted.get("structure"))
    warn_unknown_structure(header, here["structure"], "Guard")
    here["attn"] = getattr(live.config, "_attn_implementation", None)
    if here["dtype"] == fitted.get("dtype"):
        here["model"] = fingerprint(live.module)
    else:
        warnings.warn(
            f"Guard: the model runs in {here.pop('dtype')}, the probe was fitted in "
            f"{fitted.get('dtype')}: that the weights are the same cannot be checked, and scores "
            "shift by the rounding of the states. Calibrate the probe on this model.",
            SondeWarning,
            stacklevel=3,
        )
    for name, value in here.items():
        if not agree(name, fitted.get(name), value):
            raise StateError(
                "Guard: the probe was fitted on another model: "
                f"{difference(name, value, fitted.get(name))}. Guard the model that it was fitted "
                "on, or fit again."
            )
    warn_other_code(header, forward_code(live.module), "Guard")
    return device
