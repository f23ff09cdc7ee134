"""Check that a live model is the one that a fitted file belongs to."""

import warnings
from pathlib import Path
from typing import Any

import torch

from sonde.core.errors import SondeWarning, StateError
from sonde.core.inputs import Model
from sonde.files.identity import CODE, PARTS, describe_difference
from sonde.run.fitting.same_behaviour import require_same_behaviour, warn_unknown
from sonde.tap import (
    check_readable,
    fingerprint,
    forward_code,
    known_config_hash,
    known_structure,
    parts,
    placement,
)


def require_live_model(
    header: dict[str, Any],
    live: Model,
    who: str = "Guard",
    *,
    what: str = "the probe",
    same_dtype: bool = False,
    same_kernel: bool = True,
) -> torch.device:
    """Raise if a live model is not the one of a fitted file; return the model's device.

    In another float type the hash of the weights cannot be compared: this is only a warning,
    unless the same type is asked for.

    Parameters
    ----------
    header : dict
        Header of the fitted file.
    live : Model
        Model that is compared with it.
    who : str, default="Guard"
        Caller, for messages.
    what : str, default="the probe"
        Name of the fitted thing in messages.
    same_dtype : bool, default=False
        Refuse a model in another float type.
    same_kernel : bool, default=True
        Refuse another attention kernel, whose rounding moves scores.

    Raises
    ------
    StateError
        If the bundle was fitted on arrays, or on another model.
    """
    fitted = header["model"]
    if fitted.get("model") is None:
        raise StateError(
            f"{who}: {what} was fitted on arrays, not on a model. Fit it on sonde.read(model, "
            f"data) to {who.lower()} that model."
        )
    check_readable(live.module, sharded=True)
    device, dtype = placement(live.module)
    here = {
        "config": known_config_hash(live.config, live.module, fitted.get("config")),
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
    }
    here["structure"] = known_structure(live.module, fitted.get("structure"))
    here[PARTS] = parts(live.module)
    warn_unknown(fitted, here, who)
    if same_kernel:
        here["attn"] = getattr(live.config, "_attn_implementation", None)
    if same_dtype or here["dtype"] == fitted.get("dtype"):
        here["model"] = fingerprint(live.module)
    else:
        warnings.warn(
            f"{who}: the model runs in {here.pop('dtype')}, but {what} was fitted in "
            f"{fitted.get('dtype')}: it cannot be checked whether the weights are the same, and "
            "rounding changes the states. Calibrate or fit again in this type.",
            SondeWarning,
            stacklevel=3,
        )
    apart = describe_difference(here, fitted, here)
    if apart is not None:
        raise StateError(
            f"{who}: {what} was fitted on another model: {apart}. Use the model that it was "
            "fitted on, or fit again."
        )
    require_same_behaviour(header, live.module, here | {CODE: forward_code(live.module)}, who)
    return device


def require_model_of(header: dict[str, Any] | None, live: Model, who: str, path: Path) -> None:
    """Raise if the results of a file act on another model than they were fitted on.

    Files that name no model, such as those fitted on arrays, pass, and so do other attention
    kernels: they change what a direction does by rounding alone.

    Raises
    ------
    StateError
        Naming the first difference.
    """
    if header is not None and header["model"].get("model") is not None:
        require_live_model(header, live, who, what=str(path), same_kernel=False)
