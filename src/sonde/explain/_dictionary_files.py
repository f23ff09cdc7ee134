"""Files that dictionaries are read from: safetensors, and folders in the layout of SAELens."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as as_safetensors
from torch import Tensor

from sonde.core.errors import StateError, StoreError
from sonde.explain._codes import FEW, ungated
from sonde.files.durable import atomic_write, make_directory

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
ARCHITECTURES = {
    "relu": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
}
"""How SAELens calls the activations that it knows."""
ACTS = {
    "standard": "relu",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "gated": "jumprelu",
}
"""What its architectures are here."""


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors of a safetensors file, and what its header says.

    Raises
    ------
    StoreError
        If the file is missing.
    StateError
        If the file is no safetensors file.
    """
    if not path.is_file():
        raise StoreError(f"load_dictionary: no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            return {n: file.get_tensor(n) for n in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise StateError(f"load_dictionary: {path} is no safetensors file: {error}.") from error


def write_saelens(
    folder: Path, tensors: dict[str, Tensor], act: str, k: int, hook_name: str
) -> None:
    """Write ``cfg.json`` and ``sae_weights.safetensors``."""
    n, dim = tensors["W_dec"].shape
    config: dict[str, Any] = {
        "architecture": ARCHITECTURES[act],
        "d_in": dim,
        "d_sae": n,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {"hook_name": hook_name},
    }
    if act == "topk":
        config |= {"k": k, "rescale_acts_by_decoder_norm": False}
    make_directory(folder)
    plain = {n: t.detach().cpu().float().contiguous() for n, t in tensors.items()}
    atomic_write(folder / WEIGHTS, as_safetensors(plain))
    atomic_write(folder / CONFIG, json.dumps(config, indent=1).encode())


def read_saelens(folder: Path) -> dict[str, Any]:
    """Return the fields of the dictionary in a folder.

    Raises
    ------
    StoreError
        If the folder, its ``cfg.json`` or its weights are missing.
    StateError
        If the dictionary is of a kind that is not known here.
    """
    if not (folder / CONFIG).is_file():
        raise StoreError(f"load_dictionary: no {CONFIG} in {folder}.")
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    tensors, _ = read_tensors(folder / WEIGHTS)
    kind = config.get("architecture", "standard")
    # Older files name topk by its activation function.
    if kind == "standard" and config.get("activation_fn_str", "relu") == "topk":
        kind = "topk"
    scaled = config.get("normalize_activations", "none") not in ("none", None)
    if kind not in ACTS or scaled or config.get("reshape_activations", "none") != "none":
        raise StateError(
            f"load_dictionary: expected a folder of SAELens with architecture among "
            f"{', '.join(ACTS)}, activations that are neither normalised nor reshaped, got {kind}, "
            f"{config.get('normalize_activations')} and {config.get('reshape_activations')} in "
            f"{folder}. Fold the scale into the weights there first."
        )
    encoder, decoder = tensors["W_enc"].T.float(), tensors["W_dec"].float()
    offset, threshold = tensors["b_dec"].float(), tensors.get("threshold")
    if kind == "gated":
        gates = (tensors[n].float() for n in ("b_gate", "r_mag", "b_mag"))
        encoder, bias, threshold = ungated(encoder, *gates)
    else:
        bias = tensors["b_enc"].float()
    length = decoder.norm(dim=1).clamp(min=1e-12)
    if kind == "topk" and config.get("rescale_acts_by_decoder_norm", False):
        # Features are then chosen, and told, as if rows of the decoder had unit length.
        encoder, bias, decoder = encoder * length[:, None], bias * length, decoder / length[:, None]
    if "log_threshold" in tensors:
        threshold = tensors["log_threshold"].exp()
    about = config.get("metadata", config)
    return {
        "encoder": encoder,
        "bias": bias,
        "centre": offset if config.get("apply_b_dec_to_input", True) else torch.zeros_like(offset),
        "decoder": decoder,
        "offset": offset,
        "threshold": None if threshold is None else threshold.float().relu(),
        "act": ACTS[kind],
        "k": int(config.get("k") or config.get("activation_fn_kwargs", {}).get("k", 0)),
        "conventions": {
            "site": "",
            "hook_name": about.get("hook_name"),
            "model": about.get("model_name"),
        },
    }


def check_fields(fields: dict[str, Any], path: Path) -> None:
    """Refuse tensors that do not fit one another, or the activation.

    Raises
    ------
    StateError
        With the shapes.
    """
    encoder, decoder, act = fields["encoder"], fields["decoder"], fields["act"]
    fits = (decoder.shape, fields["bias"].shape, fields["centre"].shape) == (
        (len(encoder), len(fields["offset"])),
        encoder.shape[:1],
        encoder.shape[1:],
    )
    has_threshold = fields.get("threshold") is not None
    known = act == "batchtopk" or has_threshold == (act == "jumprelu")
    if not (fits and known) or (act in FEW and fields["k"] < 1):
        raise StateError(
            f"load_dictionary: the tensors of {path} do not fit one another: encoder "
            f"{tuple(encoder.shape)}, decoder {tuple(decoder.shape)}, {act}, k={fields['k']}."
        )
