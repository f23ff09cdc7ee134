"""From a user's word for a model to a ``Model``: directory, hub name, factory, shipped, or live.

Only safetensors are opened, code that comes with a checkpoint runs only where the user allows it
for this call, and a checkpoint that does not fill every parameter is an error.
"""

import importlib
import importlib.util
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sonde.core.errors import InputError, near
from sonde.core.inputs import Model
from sonde.data._checkpoints import LIVE, checkpoint_directory, config_dict
from sonde.data._quiet import quiet
from sonde.data.processors import load_processor
from sonde.data.shipped import is_shipped, model_directory

_log = logging.getLogger("sonde")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
_CODE_FILE = re.compile(r"^(?P<folder>.*/)?(?P<stem>[A-Za-z_]\w*)\.py:(?P<factory>[A-Za-z_]\w*)$")
_LATER_INPUTS = {
    "input_values": "audio",
    "input_features": "audio",
    "pixel_values_videos": "video",
}


def load(
    model: Any,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    processor: Any = None,
) -> Model:
    """Return the model that the user means, with what turns items into its inputs.

    Parameters
    ----------
    model : str, path, nn.Module or Model
        A Hugging Face directory or name, ``package.module:factory``, ``sonde:digits``,
        ``sonde:stdlib``, or a live module, which stays where it is.
    device : str, default="auto"
        ``auto`` is cuda, mps or cpu for models that are loaded here; ``map`` spreads a checkpoint
        over the devices; else a torch device.
    dtype : {"auto", "float32", "bfloat16", "float16"}, default="auto"
        ``auto`` is what the configuration says.
    trust_remote_code : bool, default=False
        Run Python code that comes with the checkpoint.
    processor : object, optional
        Tokenizer, image processor, or callable that turns one item into a tensor.

    Raises
    ------
    InputError
        If there is no such model, or it cannot be loaded safely and whole.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(
            f"load: expected a dtype among auto, {', '.join(DTYPES)}, got "
            f"{dtype!r}.{near(dtype, DTYPES)}"
        )
    if isinstance(model, Model | nn.Module):
        return _live(model, device, dtype, processor)
    found = _named(str(model), device, dtype, trust_remote_code, processor)
    _log.info("model %s: %s", found.name, _described(found.module))
    return found


def _named(name: str, device: str, dtype: str, trust_remote_code: bool, processor: Any) -> Model:
    if is_shipped(name):
        directory = model_directory(name)
        return replace(_from_directory(directory, device, dtype, False, processor), name=name)
    if not Path(name).exists():
        _refuse_file_of_code(name)
        if _FACTORY.match(name):
            return _from_factory(name, device, dtype, processor)
    with quiet():
        directory = checkpoint_directory(name, trust_remote_code)
    return replace(
        _from_directory(directory, device, dtype, trust_remote_code, processor), name=name
    )


def _described(module: nn.Module) -> str:
    """Return class, number of parameters, type and place of a module."""
    first = next(module.parameters(), None)
    where = "" if first is None else f", {str(first.dtype)[6:]} on {first.device}"
    size = sum(p.numel() for p in module.parameters())
    return f"{type(module).__name__}, {size:,} parameters{where}"


def _refuse_file_of_code(name: str) -> None:
    """Refuse ``nets.py:make`` with the word that means it."""
    found = _CODE_FILE.match(name)
    if found is not None:
        folder = f"in {found['folder']} " if found["folder"] else ""
        raise InputError(
            f"load: expected package.module:factory, got the file {name}. Start {folder}with "
            f"{found['stem']}:{found['factory']}."
        )


def task_of(module: nn.Module) -> str:
    """Return what a module's outputs mean: see ``Model.task``."""
    config = config_of(module)
    if config is None:
        return "tensor"
    name = type(module).__name__
    if "ForSequenceClassification" in name:
        return "classifier"
    if "ForImageClassification" in name:
        return "image_classifier"
    if getattr(config, "is_encoder_decoder", False):
        return "encoder" if name.endswith("EncoderModel") else "seq2seq"
    from transformers.models.auto import modeling_auto as auto

    kind, causal = getattr(config, "model_type", ""), auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if name in causal.values() or name.endswith(("ForCausalLM", "LMHeadModel")):
        return "causal"
    if kind in causal and kind not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and "For" not in name:
        return "causal"
    return "encoder"


def config_of(module: nn.Module) -> Any:
    """Return the Hugging Face configuration of a module, or None."""
    transformers = sys.modules.get("transformers")
    if transformers is None:
        return None
    config = getattr(module, "config", None)
    return config if isinstance(config, transformers.PretrainedConfig) else None


def _live(model: Any, device: str, dtype: str, processor: Any) -> Model:
    if device != "auto" or dtype != "auto":
        raise InputError(
            f"load: a live module stays where it is, got device={device!r}, dtype={dtype!r}. "
            "Call .to(...) on it before you pass it."
        )
    if isinstance(model, Model):
        return model if processor is None else replace(model, processor=processor)
    inner = getattr(model, "_orig_mod", model)
    return Model(model, processor, config_of(inner), type(inner).__name__, task_of(inner))


def _from_factory(name: str, device: str, dtype: str, processor: Any) -> Model:
    if device == "map":
        raise InputError(
            "load: device 'map' spreads checkpoints; a factory places its module itself."
        )
    path, attribute = name.split(":")
    made = _factory(path, attribute, name)()
    if isinstance(made, tuple) and len(made) == 2:
        made, given = made
        processor = given if processor is None else processor
    if not isinstance(made, Model | nn.Module):
        raise InputError(
            f"load: expected {name}() to return an nn.Module (or a pair of module and processor), "
            f"got {type(made).__name__}."
        )
    found = _live(made, "auto", "auto", processor)
    if dtype != "auto":
        found.module.to(DTYPES[dtype])
    if device != "auto" or not _has_meta(found.module):
        found.module.to(_device(device))
    return replace(found, name=name)


def _factory(path: str, attribute: str, name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise InputError(
            f"load: no module {error.name!r} for {name}. Start from the directory that holds it, "
            "or install it."
        ) from None
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not callable(getattr(module, attribute, None)):
        known = [n for n in vars(module) if callable(vars(module)[n])]
        raise InputError(f"load: {path} has no function {attribute!r}.{near(attribute, known)}")
    return getattr(module, attribute)


def _from_directory(
    directory: Path, device: str, dtype: str, trust_remote_code: bool, processor: Any
) -> Model:
    with quiet():
        config = _config(directory, trust_remote_code)
        kind = _model_class(config, directory, trust_remote_code)
        module = _weights(kind, config, directory, device, dtype, trust_remote_code)
        _refuse_modality(module, config, directory)
        if processor is None:
            processor = load_processor(directory, module, config, trust_remote_code)
    # The module's own configuration says how attention is computed, as that of a live one does.
    return Model(module, processor, config_of(module) or config, str(directory), task_of(module))


def _config(directory: Path, trust_remote_code: bool) -> Any:
    from transformers import CONFIG_MAPPING, AutoConfig

    written = config_dict(directory)
    remote = written.get("auto_map")
    known = written.get("model_type") in CONFIG_MAPPING
    if remote and not known and not trust_remote_code:
        raise InputError(
            f"load: {directory} wants to run Python code that comes with it "
            f"(model type {written.get('model_type')!r}). Read that code, then pass "
            "trust_remote_code=True (--trust-remote-code)."
        )
    if not remote and not known:
        names = near(str(written.get("model_type")), CONFIG_MAPPING)
        raise InputError(
            f"load: transformers does not know the model type {written.get('model_type')!r} in "
            f"{directory / 'config.json'}.{names} {LIVE}"
        )
    try:
        return AutoConfig.from_pretrained(directory, trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(f"load: cannot read {directory / 'config.json'}: {error}") from error


def _model_class(config: Any, directory: Path, trust_remote_code: bool) -> Any:
    import transformers
    from transformers.models.auto import modeling_auto as auto

    _refuse_config(config, directory)
    named: Sequence[str] = getattr(config, "architectures", None) or ()
    if trust_remote_code and getattr(config, "auto_map", None):
        return _remote_class(config.auto_map, transformers)
    known = getattr(transformers, named[0], None) if named else None
    if isinstance(known, type) and issubclass(known, transformers.PreTrainedModel):
        return known
    for mapping in (
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        auto.MODEL_MAPPING,
    ):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple | list) else found
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
    if hasattr(config, "vision_config") and hasattr(config, "text_config"):
        raise InputError(f"load: {directory} reads images and text together. {LIVE}")
    if hasattr(config, "audio_config"):
        raise InputError(f"load: {directory} reads audio. {LIVE}")


def _refuse_modality(module: nn.Module, config: Any, directory: Path) -> None:
    wanted = getattr(module, "main_input_name", "input_ids")
    video = "Video" in type(module).__name__ or hasattr(config, "tubelet_size")
    kind = "video" if video else _LATER_INPUTS.get(wanted)
    if kind is not None:
        raise InputError(f"load: {directory} ({type(module).__name__}) reads {kind}. {LIVE}")


def _weights(
    kind: Any, config: Any, directory: Path, device: str, dtype: str, trust_remote_code: bool
) -> nn.Module:
    options: dict[str, Any] = {
        "config": config,
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
        "dtype": "auto" if dtype == "auto" else DTYPES[dtype],
    }
    if trust_remote_code:
        options["trust_remote_code"] = True
    if device == "map":
        _need_accelerate()
        options["device_map"] = "auto"
    target = None if device == "map" else _device(device)
    try:
        module, report = kind.from_pretrained(directory, **options)
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"load: {directory} does not load as {kind.__name__}: {type(error).__name__}: {error}"
        ) from error
    _check_whole(report, kind.__name__, directory)
    return module.eval() if target is None else module.to(target).eval()


def _check_whole(report: dict[str, Any], kind: str, directory: Path) -> None:
    missing = sorted(map(str, report.get("missing_keys") or ()))
    uneven = sorted(str(m[0]) for m in report.get("mismatched_keys") or ())
    if missing or uneven:
        what = "without" if missing else "with other shapes for"
        names = missing or uneven
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise InputError(
            f"load: {directory} is a {kind} {what} {', '.join(names[:5])}{more}; these would be "
            "random. "
            "Name the class that the checkpoint was saved from in config.json (architectures), "
            "or pass a live module."
        )


def _need_accelerate() -> None:
    if importlib.util.find_spec("accelerate") is None:
        raise InputError("load: device 'map' needs accelerate. Run: pip install 'accelerate>=1.10'")


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"load: expected a device like auto, cpu, cuda, cuda:1, mps or map, got {name!r} "
            f"({reason})."
        ) from None
    return found


def _has_meta(module: nn.Module) -> bool:
    return any(p.is_meta for p in module.parameters())
