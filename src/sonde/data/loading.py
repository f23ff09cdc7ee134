"""Load a model from a user's word: directory, hub name, factory, shipped or live model.

Only safetensors are opened, code that comes with a checkpoint runs only where the user allows it
for this call, and a checkpoint that does not fill every parameter is an error.
"""

import copy
import importlib
import logging
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sonde.core.errors import InputError, near
from sonde.core.inputs import Model
from sonde.core.repacking import count_weights
from sonde.data._checkpoint_model import (
    DTYPES,
    from_directory,
    sentence_model,
    usable_device,
)
from sonde.data._checkpoints import checkpoint_directory
from sonde.data._model_kind import config_of, task_of
from sonde.data._quiet import quiet
from sonde.data.gguf_model import from_gguf, gguf_file
from sonde.data.sentence_encoder import Pooling, SentenceEncoder
from sonde.data.sentence_folder import (
    check_kinds,
    lower,
    named_stages,
    pooling_modes,
    tell_prompt,
)
from sonde.data.shipped import is_shipped, model_directory
from sonde.data.weight_files import WEIGHT_FILES, fill_from_file

LIBRARY = "sentence_transformers"


_log = logging.getLogger("sonde")

_FACTORY = re.compile(r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
_FILLED = re.compile(r"^(?P<factory>[A-Za-z_][\w.]*:[A-Za-z_]\w*)@(?P<folder>.+)$")
_CODE_FILE = re.compile(r"^(?P<folder>.*/)?(?P<stem>[A-Za-z_]\w*)\.py:(?P<factory>[A-Za-z_]\w*)$")
TIMM, SENTENCES = "timm:", "sentence-transformers:"
FromFolder = Callable[[nn.Module, Path], None]


def _leave(module: nn.Module, folder: Path) -> None:
    """Do nothing to a module that transformers created."""


def _refuse(module: nn.Module, folder: Path) -> None:
    raise InputError(f"load: expected a file of weights, got the folder {folder}. Use sonde.load.")


@dataclass(frozen=True)
class _How:
    """Options for opening a model, as given to ``load``."""

    device: str
    dtype: str
    trust_remote_code: bool
    processor: Any
    fill: FromFolder
    insert: FromFolder


def load(
    model: Any,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    processor: Any = None,
    *,
    fill: FromFolder = _refuse,
    insert: FromFolder = _leave,
) -> Model:
    """Return the model that the user names, with its processor.

    Call ``sonde.load``, which passes ``fill`` and ``insert``.

    Parameters
    ----------
    model : object
        Folder, name, factory (``package.module:factory``) or live module.
    device : str | torch.device, default="auto"
        Device of the model: ``auto`` takes cuda, mps or cpu, and ``cpu`` or ``cuda:1`` name one.
    dtype : str | torch.dtype, default="auto"
        Type of the weights; ``auto`` takes the type that the configuration names.
    trust_remote_code : bool, default=False
        Whether Python code that comes with the checkpoint may run.
    processor : object, optional
        Tokenizer, image processor, or function that turns an item into a tensor; by default the
        model's own.
    fill : callable
        Function that puts the weights of a folder into the module that its factory returns.
    insert : callable
        Function that inserts the layers that a folder holds into the model.

    Raises
    ------
    InputError
        If there is no such model, or it cannot be loaded safely and whole.
    """
    device, dtype = str(device), str(dtype).removeprefix("torch.")
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(
            f"load: expected a dtype among auto, {', '.join(DTYPES)}, got "
            f"{dtype!r}.{near(dtype, DTYPES)}"
        )
    if isinstance(model, Model | nn.Module):
        return _live(model, device, dtype, processor)
    if not isinstance(model, str | Path):
        raise InputError(
            f"load: expected a name, a folder or a module, got {type(model).__name__}. Pass the "
            "module itself; of a stage of a pipeline, which holds some of the blocks, stage.submod."
        )
    loaded = _named(str(model), _How(device, dtype, trust_remote_code, processor, fill, insert))
    _log.info("model %s: %s", loaded.name, _described(loaded.module))
    return loaded


def _named(name: str, how: _How) -> Model:
    device, dtype, processor = how.device, how.dtype, how.processor
    if is_shipped(name):
        directory = model_directory(name)
        return replace(from_directory(directory, device, dtype, False, processor), name=name)
    if not Path(name).exists():
        _refuse_file_of_code(name)
        if name.startswith(TIMM):
            return _from_timm(name, device, dtype, processor)
        if filled := _FILLED.match(name):
            return _filled(filled, how)
        if is_factory(name):
            return _from_factory(name, device, dtype, processor)
        name = _hub_name(name)
    if file := gguf_file(Path(name).expanduser()):
        return replace(from_gguf(file, device, dtype, processor), name=name)
    with quiet():
        directory = checkpoint_directory(name, how.trust_remote_code)
    loaded = from_directory(directory, device, dtype, how.trust_remote_code, processor)
    if (directory / "config.json").is_file():
        how.insert(loaded.module, directory)
    return replace(loaded, name=name)


def _described(module: nn.Module) -> str:
    """Return class, number of parameters, number type and device of a module."""
    first = next(module.parameters(), None)
    where = "" if first is None else f", {str(first.dtype)[6:]} on {first.device}"
    size = count_weights(module)
    return f"{type(module).__name__}, {size:,} parameters{where}"


def _refuse_file_of_code(name: str) -> None:
    """Raise for ``nets.py:make``, with the word to type instead."""
    match = _CODE_FILE.match(name)
    if match is not None:
        folder = f"in {match['folder']} " if match["folder"] else ""
        raise InputError(
            f"load: expected package.module:factory, got the file {name}. Run sonde {folder}with "
            f"{match['stem']}:{match['factory']}."
        )


def _live(model: Any, device: str, dtype: str, processor: Any) -> Model:
    if device != "auto" or dtype != "auto":
        raise InputError(
            f"load: a live module keeps its device and dtype, got device={device!r}, "
            f"dtype={dtype!r}. Call .to(...) on it before you pass it."
        )
    if isinstance(model, Model):
        return model if processor is None else replace(model, processor=processor)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # it sends buffers in every call, which ranks do not make in step
    inner = getattr(model, "_orig_mod", model)
    if isinstance(inner, torch.jit.ScriptModule):
        raise InputError(
            f"load: {type(inner).__name__} is scripted or traced (TorchScript): its inner "
            "modules run without hooks. Pass the Python module from which it was made."
        )
    if is_live_sentences(inner):
        processor = live_tokenizer(inner) if processor is None else processor
        return sentence_model(live_encoder(inner), processor, type(inner).__name__)
    if isinstance(inner, SentenceEncoder):
        return replace(sentence_model(inner, processor, type(inner).__name__), module=model)
    return Model(model, processor, config_of(inner), type(inner).__name__, task_of(inner))


def _from_factory(name: str, device: str, dtype: str, processor: Any) -> Model:
    if device == "map":
        raise InputError(
            "load: device 'map' works for checkpoints; a factory chooses the device of its "
            "module itself."
        )
    path, attribute = name.split(":")
    returned = _factory(path, attribute, name)()
    if isinstance(returned, tuple) and len(returned) == 2:
        returned, given = returned
        processor = given if processor is None else processor
    if not isinstance(returned, Model | nn.Module):
        raise InputError(
            f"load: expected {name}() to return an nn.Module (or a pair of module and processor), "
            f"got {type(returned).__name__}."
        )
    loaded = _live(returned, "auto", "auto", processor)
    if dtype != "auto":
        loaded.module.to(DTYPES[dtype])
    if device != "auto" or not _has_meta(loaded.module):
        loaded.module.to(usable_device(device))
    return replace(loaded, name=name)


def is_factory(name: str) -> bool:
    """Return whether a word names a model factory, alone or with a weights file."""
    if Path(name).exists() or is_shipped(name):
        return False
    filled = _FILLED.match(name)
    if filled is not None:
        return Path(filled["folder"]).suffix in WEIGHT_FILES
    return _FACTORY.match(name) is not None and not name.startswith((TIMM, SENTENCES))


def folder_of_factory(name: str) -> Path | None:
    """Return the folder in ``package.module:factory@FOLDER``, or None for another word."""
    match = None if Path(name).exists() or is_factory(name) else _FILLED.match(name)
    return Path(match["folder"]).expanduser() if match else None


def _filled(word: re.Match[str], how: _How) -> Model:
    """Return a factory's module with weights from a file, or with a folder's weights and layers."""
    given = Path(word["folder"]).expanduser()
    is_file = given.is_file() or given.suffix in WEIGHT_FILES
    if not is_file and not (given / "config.json").is_file():
        raise InputError(
            f"load: expected the folder of a model of {word['factory']} after @, or a file of "
            f"weights ({', '.join(WEIGHT_FILES)}), got {given}."
        )
    loaded = _from_factory(word["factory"], "cpu", "auto", how.processor)
    (fill_from_file if is_file else how.fill)(loaded.module, given)
    if how.dtype != "auto":
        loaded.module.to(DTYPES[how.dtype])
    loaded.module.to(usable_device(how.device))
    return replace(loaded, name=word[0])


def _hub_name(name: str) -> str:
    """Return the hub name for ``sentence-transformers:NAME``; other words are unchanged."""
    rest = name.removeprefix(SENTENCES)
    return name if rest == name else f"{SENTENCES[:-1]}/{rest.removeprefix(f'{SENTENCES[:-1]}/')}"


def _from_timm(name: str, device: str, dtype: str, processor: Any) -> Model:
    """Return a model of timm by its name there, with pretrained weights."""
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise InputError(
            f"load: {name} needs timm, but there is no module {error.name!r}. Run `pip install "
            "timm`, or name a factory that makes the module: package.module:factory@FILE."
        ) from None
    try:
        net = timm.create_model(name.removeprefix(TIMM), pretrained=True).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise InputError(f"load: timm cannot make {name.removeprefix(TIMM)}: {error}.") from None
    loaded = _live(net, "auto", "auto", processor)
    if dtype != "auto":
        loaded.module.to(DTYPES[dtype])
    loaded.module.to(usable_device(device))
    return replace(loaded, name=name)


def _factory(path: str, attribute: str, name: str) -> Any:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        raise InputError(
            f"load: no module {error.name!r} for {name}. Run sonde in the directory that holds "
            "this module, or install the module."
        ) from None
    finally:
        if added and here in sys.path:
            sys.path.remove(here)
    if not callable(getattr(module, attribute, None)):
        functions = [n for n in vars(module) if callable(vars(module)[n])]
        raise InputError(f"load: {path} has no function {attribute!r}.{near(attribute, functions)}")
    return getattr(module, attribute)


def _has_meta(module: nn.Module) -> bool:
    return any(p.is_meta for p in module.parameters())


# Transformer and further stages keep the memory of the live model; its tokenizer is copied.
def is_live_sentences(module: nn.Module) -> bool:
    """Return whether a module is a live sentence-transformers model."""
    library = sys.modules.get(LIBRARY)
    kind = getattr(library, "SentenceTransformer", None)
    return isinstance(kind, type) and isinstance(module, kind)


def live_encoder(module: Any) -> SentenceEncoder:
    """Return the transformer of a live model with the stages after it.

    Raises
    ------
    InputError
        If there are stages that are not read here.
    """
    stages = [*module]
    where = type(module).__name__
    check_kinds([type(stage).__name__ for stage in stages], where)
    after = named_stages(
        (type(stage).__name__, stage.get_config_dict(), stage.state_dict, where)
        for stage in stages[2:]
    )
    pooling = Pooling(pooling_modes(stages[1].get_config_dict(), where))
    encoder = SentenceEncoder(stages[0].auto_model, pooling, after)
    return encoder.train(module.training)


def live_tokenizer(module: Any) -> Any:
    """Return a copy of a live model's tokenizer that reads texts as that model does."""
    tokenizer = copy.deepcopy(module.tokenizer)
    if isinstance(module.max_seq_length, int):
        tokenizer.model_max_length = module.max_seq_length
    if getattr(module[0], "do_lower_case", False):
        lower(tokenizer)
    tell_prompt((module.prompts or {}).get(module.default_prompt_name), type(module).__name__)
    return tokenizer
