"""Load a model from a directory, after checking that configuration, class and weights match."""

import importlib.util
import json
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from inspect import signature
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from sonde.core.errors import InputError, SondeError, SondeWarning, near
from sonde.core.inputs import Model
from sonde.core.wording import install_extra
from sonde.data._checkpoints import FACTORY_KEY, LIVE, config_dict, stages_of
from sonde.data._model_kind import config_of, task_of
from sonde.data._quiet import quiet
from sonde.data._stored_names import StoredNames
from sonde.data.processors import load_processor
from sonde.data.sentence_encoder import SentenceEncoder
from sonde.data.sentence_folder import SentenceFolder

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HALF = (torch.bfloat16, torch.float16)
_LATER_INPUTS = {"pixel_values_videos": "video"}


def from_directory(
    directory: Path, device: str, dtype: str, trust_remote_code: bool, processor: Any
) -> Model:
    """Return the model of a checkpoint, every parameter filled from it.

    Raises
    ------
    InputError
        If the checkpoint needs code that is not allowed, takes inputs that sonde does not read, or
        is not whole.
    """
    stages = SentenceFolder.find(directory)
    embeds, weights = stages is not None, directory if stages is None else stages.transformer
    with quiet():
        config = _config(weights, trust_remote_code)
        kind = model_class(config, weights, trust_remote_code, embeds)
        module = _weights(kind, config, weights, device, dtype, trust_remote_code, embeds)
        _refuse_modality(module, config, weights)
        if processor is None:
            processor = load_processor(weights, module, config, trust_remote_code)
    if stages is not None:
        stages.apply_to(processor)
        return sentence_model(stages.encoder(module), processor, str(directory))
    # The module's own configuration says how attention is computed, as that of a live one does.
    return Model(module, processor, config_of(module) or config, str(directory), task_of(module))


def skeleton(directory: Path, options: Mapping[str, Any] | None = None) -> nn.Module | None:
    """Return the model class of a folder on the meta device, without weights.

    Parameters
    ----------
    directory : Path
    options : mapping, optional
        Options of the configuration that differ from ``config.json``.

    Returns
    -------
    nn.Module or None
        None if a function or code of the folder makes the model.
    """
    from transformers import CONFIG_MAPPING

    written = config_dict(directory)
    if FACTORY_KEY in written or written.get("model_type") not in CONFIG_MAPPING:
        return None
    with quiet():
        config = _config(directory, False)
        embeds = bool(stages_of(directory))
        kind = model_class(config, directory, False, embeds)
        try:
            config = with_options(config, options) if options else config
        except Exception as error:
            raise InputError(
                f"load: transformers rejects the configuration of {directory} with {options}: "
                f"{error}"
            ) from error
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return kind(config, **_without_pooler(kind, embeds))


def with_options(config: Any, options: Mapping[str, Any]) -> Any:
    """Return a configuration with changed options, built from its file content.

    A class may refuse in a file what it lets a caller set.
    """
    fields = json.loads(config.to_json_string())
    new = type(config).from_dict({**fields, **options})
    new._attn_implementation = config._attn_implementation
    return new


def sentence_model(encoder: SentenceEncoder, processor: Any, name: str) -> Model:
    """Return a sentence encoder as a model whose rows use its own pooling."""
    config = config_of(encoder)
    return Model(encoder, processor, config, name, "encoder", encoder.reducer, (encoder.last,))


def _config(directory: Path, trust_remote_code: bool) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    written = config_dict(directory)
    if (factory := written.get(FACTORY_KEY)) is not None:
        raise InputError(
            f"load: {directory} holds the weights of a model that the function {factory} makes. "
            f"sonde does not run a function that a file names: pass {factory}@{directory} if you "
            "trust this function."
        )
    remote = written.get("auto_map")
    is_known = written.get("model_type") in CONFIG_MAPPING
    if remote and not is_known and not trust_remote_code:
        raise InputError(
            f"load: {directory} contains Python code that must run to build the model (model "
            f"type {written.get('model_type')!r}). Read that code, then pass "
            "trust_remote_code=True (--trust-remote-code)."
        )
    if not remote and not is_known:
        names = near(str(written.get("model_type")), CONFIG_MAPPING)
        raise InputError(
            f"load: transformers does not know the model type {written.get('model_type')!r} in "
            f"{directory / 'config.json'}.{names} {LIVE}"
        )
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(f"load: cannot read {directory / 'config.json'}: {error}") from error


def model_class(config: Any, directory: Path, trust_remote_code: bool, embeds: bool = False) -> Any:
    """Return the class named by the configuration, without a head if further stages follow."""
    import transformers
    from transformers.models.auto import modeling_auto as auto

    _refuse_config(config, directory)
    if embeds and not (trust_remote_code and getattr(config, "auto_map", None)):
        for mapping in (auto.MODEL_FOR_TEXT_ENCODING_MAPPING, auto.MODEL_MAPPING):
            if type(config) in mapping:
                return mapping[type(config)]
    named: Sequence[str] = getattr(config, "architectures", None) or ()
    if trust_remote_code and getattr(config, "auto_map", None):
        return _remote_class(config.auto_map, transformers)
    named_class = getattr(transformers, named[0], None) if named else None
    if isinstance(named_class, type) and issubclass(named_class, transformers.PreTrainedModel):
        return named_class
    for mapping in (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        auto.MODEL_MAPPING,
    ):
        if type(config) in mapping:
            kind = mapping[type(config)]
            return kind[0] if isinstance(kind, tuple | list) else kind
    raise InputError(
        f"load: no language model, classifier or base model for {type(config).__name__} "
        f"({directory}). {LIVE}"
    )


def _remote_class(auto_map: dict[str, str], transformers: Any) -> Any:
    for name in (
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
        "AutoModelForImageClassification",
        "AutoModel",
    ):
        if name in auto_map:
            return getattr(transformers, name)
    raise InputError(
        f"load: the checkpoint's code has no model class, only {sorted(auto_map)}. {LIVE}"
    )


def _refuse_config(config: Any, directory: Path) -> None:
    if hasattr(config, "audio_config"):
        raise InputError(f"load: {directory} reads audio. {LIVE}")


def _refuse_modality(module: nn.Module, config: Any, directory: Path) -> None:
    wanted = getattr(module, "main_input_name", "input_ids")
    video = "Video" in type(module).__name__ or hasattr(config, "tubelet_size")
    kind = "video" if video else _LATER_INPUTS.get(wanted)
    if kind is not None:
        raise InputError(f"load: {directory} ({type(module).__name__}) reads {kind}. {LIVE}")


def _weights(
    kind: Any,
    config: Any,
    directory: Path,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    embeds: bool,
) -> nn.Module:
    options: dict[str, Any] = {
        "config": config,
        "use_safetensors": any(directory.glob("*.safetensors")),
        "weights_only": True,  # pickles of tensors alone
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "dtype": "auto" if dtype == "auto" else DTYPES[dtype],
    }
    if trust_remote_code:
        options["trust_remote_code"] = True
    options |= _without_pooler(kind, embeds)
    if device == "map":
        _need_accelerate()
        options["device_map"] = "auto"
    target = None if device == "map" else usable_device(device)
    try:
        module, report = kind.from_pretrained(directory, **options)
    except SondeError:
        raise
    except UnpicklingError as error:
        raise InputError(
            f"load: {directory} holds pickled weights that contain more than tensors, and opening "
            "them could run any code; they are not loaded. Save the model with save_pretrained "
            "(safetensors), or pass a live module."
        ) from error
    except Exception as error:
        raise InputError(
            f"load: {directory} does not load as {kind.__name__}: {type(error).__name__}: {error}"
        ) from error
    check_whole(report, kind.__name__, directory)
    if dtype == "auto":
        _tell_rounded(module, directory)
    return module.eval() if target is None else module.to(target).eval()


def _without_pooler(kind: Any, embeds: bool) -> dict[str, bool]:
    """Return the option that omits a pooler, which may lack weights and is replaced by stages."""
    can = embeds and "add_pooling_layer" in signature(kind.__init__).parameters
    return {"add_pooling_layer": False} if can else {}


def check_whole(report: dict[str, Any], kind: str, directory: Path) -> None:
    missing = sorted(map(str, report.get("missing_keys") or ()))
    uneven = sorted(str(m[0]) for m in report.get("mismatched_keys") or ())
    others = sorted(map(str, report.get("unexpected_keys") or ()))
    if layers := [name for name in others if re.search(r"(^|\.)inserted[._]", name)]:
        raise InputError(
            f"load: {directory} holds {layers[0]} of a layer that sonde inserted, but no "
            "description of the layer. Save the layers by sonde.layers.save_layers, and the "
            "model without them (sonde.removed)."
        )
    if missing or uneven:
        what = "without" if missing else "with other shapes for"
        names = missing or uneven
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise InputError(
            f"load: {directory} is a {kind} {what} {', '.join(names[:5])}{more}; these weights "
            "would be random. In config.json (architectures), name the class that the "
            "checkpoint was saved from, or pass a live module."
        )


def _tell_rounded(module: nn.Module, directory: Path) -> None:
    """Warn if tensors, for instance of a saved edit, lose precision on loading."""
    wide, own = _wide_tensors(directory), module.state_dict()
    if not wide:
        return
    names = StoredNames(module, {name: x for name, (x, _) in wide.items()})
    places = {stored: [loaded] for stored, loaded in names.loaded.items()}
    places |= {stored: list(one.loaded) for one in names.joined for stored in one.stored}
    types = {name: next((own[n].dtype for n in places[name] if n in own), None) for name in wide}
    rounded = [
        n for n, (_, read) in wide.items() if types[n] in HALF and _is_lost(read(), types[n])
    ]
    if rounded:
        more = f" and {len(rounded) - 1} more" if rounded[1:] else ""
        half = str(types[rounded[0]]).removeprefix("torch.")
        warnings.warn(
            f"load: {directory} holds {rounded[0]}{more} in float32, but loads as {half}: a "
            "small edit is partly lost by rounding. Load it with dtype='float32' (--dtype "
            "float32) to keep the whole edit.",
            SondeWarning,
            stacklevel=2,
        )


def _wide_tensors(
    directory: Path,
) -> dict[str, tuple[torch.Tensor, Callable[[], torch.Tensor]]]:
    """Return a folder's float32 tensors if it also holds half-precision tensors.

    Each is an empty tensor of its shape, and a function that reads it.
    """
    from safetensors import safe_open

    def read(path: Path, name: str) -> torch.Tensor:
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)

    by_dtype: dict[str, dict[str, tuple[torch.Tensor, Callable[[], torch.Tensor]]]] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (a file of safetensors is no mapping)
                part = file.get_slice(name)
                shape = torch.empty(part.get_shape(), device="meta")
                by_dtype.setdefault(part.get_dtype(), {})[name] = shape, partial(read, path, name)
    return by_dtype.get("F32", {}) if by_dtype.keys() & {"F16", "BF16"} else {}


def _is_lost(x: torch.Tensor, dtype: torch.dtype | None) -> bool:
    """Return whether rounding to half precision changes values."""
    return not torch.equal(x, x.to(dtype).float())


def _need_accelerate() -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise InputError(f"load: device 'map' needs accelerate. Run: {install_extra('hf')}")


def usable_device(name: str) -> torch.device:
    """Return the named device after a test; ``auto`` is a GPU if one is available."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        if name == "gpu":
            reason = "a GPU of NVIDIA or AMD is called cuda, one of Apple mps"
        raise InputError(
            f"load: expected a device like auto, cpu, cuda, cuda:1, mps or map, got {name!r} "
            f"({reason})."
        ) from None
    return device
