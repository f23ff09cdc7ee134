"""Folders of models from a user's factory function: the weights, and the function's name.

``config.json`` names the factory, ``model.safetensors`` holds the state dict. Such a folder is
opened by the word ``package.module:factory@FOLDER``: sonde runs no function that a file names.
"""

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sonde.core.errors import InputError, StoreError
from sonde.core.inputs import Model
from sonde.core.repacking import in_own_form
from sonde.data._checkpoints import FACTORY_KEY, LAYERS_KEY, json_object
from sonde.data._model_kind import config_of
from sonde.data.gguf_model import gguf_file, save_unpacked
from sonde.data.loading import folder_of_factory, is_factory
from sonde.data.sentence_encoder import stored_part
from sonde.weights._weight_file import DTYPES
from sonde.weights.folder import (
    CONFIG,
    QUANTISED,
    WHOLE,
    ModelFolder,
    check_files,
    check_output,
    folder_of,
)
from sonde.weights.forms import finish_form, put_form
from sonde.weights.loaded_folder import LoadedFolder


@contextmanager
def source_folder(model: Model) -> Generator[Path, None, None]:
    """Yield the model's source folder, or a temporary one for a factory's model or a GGUF file.

    Raises
    ------
    InputError
        If the model came neither from a folder, from a factory, nor from a GGUF file.
    """
    from_file = gguf_file(Path(model.name).expanduser()) is not None
    if not from_file and not is_factory(model.name):
        yield folder_of(model)
        return
    with TemporaryDirectory(prefix="sonde-model-") as place:
        if from_file:
            save_unpacked(model, Path(place))
        else:
            write_folder(model.module, model.name.partition("@")[0], Path(place))
        yield Path(place)


def word_of_factory(name: str, folder: Path) -> str | None:
    """Return the word that opens a folder as a factory's model; None for other models.

    Parameters
    ----------
    name : str
        What the user typed for the model that the folder was written from.
    folder : Path
    """
    if not is_factory(name) and folder_of_factory(name) is None:
        return None
    return f"{name.partition('@')[0]}@{folder}"


def opening_notes(name: str, folder: Path) -> tuple[str, ...]:
    """Return a note on the word that opens a factory's model; none for other models."""
    word = word_of_factory(name, folder)
    return () if word is None else (f"note: open the new model as {word}.",)


def check_change(model: Model, output: Path, *, plain: bool = False) -> None:
    """Raise before any computation if a change of a model's weights cannot be written.

    Parameters
    ----------
    model : Model
    output : Path
    plain : bool, default=False
        Raise if the folder has inserted layers, which the change would not suit.

    Raises
    ------
    InputError
        If the model came from nowhere, its weights are quantised or are not those of its folder by
        name and shape, or something is at ``output``.
    """
    with source_folder(model) as source:
        folder = ModelFolder.open(source)
        check_output(output, (folder.plain() if plain else folder).path)
        _require_stored(stored_part(model.module), LoadedFolder(folder))


def _require_stored(module: nn.Module, held: LoadedFolder) -> None:
    """Raise unless the folder contains each parameter of a model, under one of its names."""
    names: dict[int, list[str]] = {}
    for name, x in module.named_parameters(remove_duplicate=False):
        if not re.search(r"(^|\.)inserted[._]", name):  # such layers have files of their own
            names.setdefault(id(x), []).append(name)
    own = dict(module.named_parameters(remove_duplicate=False))
    for tied in names.values():
        stored = [n for name in tied for n in held.named_like(name)]
        shapes = [tuple(held.entry(n).shape) for n in stored]
        if tuple(own[tied[0]].shape) not in shapes:
            there = f"{stored[0]} of shape {shapes[0]}" if stored else "none of that name"
            raise InputError(
                f"expected {tied[0]} of shape {tuple(own[tied[0]].shape)} in "
                f"{held.folder.path}, got {there}. Load the model from the folder that is changed."
            )
        if any(held.entry(n).dtype not in DTYPES for n in stored):
            raise InputError(
                f"{held.folder.path} holds {stored[0]} as {held.entry(stored[0]).dtype}: quantised "
                "weights cannot be changed. Take the model in float16, bfloat16 or float32."
            )


def write_folder(module: nn.Module, factory: str, folder: Path) -> None:
    """Write the state dict of a module from a factory, each tensor once."""
    (folder / CONFIG).write_text(json.dumps({FACTORY_KEY: factory}, indent=2) + "\n")
    save_file(_once(module), folder / WHOLE)


def fill(module: nn.Module, folder: Path) -> None:
    """Load the forms and tensors of a folder into a new module from its factory.

    Raises
    ------
    StoreError
        If the folder is not one of this factory's models.
    """
    config = json_object(folder / CONFIG)
    quantised = config.get(QUANTISED, {})
    check_files(folder, quantised.get("files", {}))
    forms = quantised.get("layers", {})
    for name, one in forms.items():
        put_form(module, name, one)
    tensors = load_file(folder / WHOLE)
    own = module.state_dict()
    wrong = sorted(name for name, x in tensors.items()
                   if name not in own or own[name].shape != x.shape)  # fmt: skip
    missing = sorted(_once(module).keys() - tensors.keys())
    if wrong or missing:
        raise StoreError(
            f"load: {folder} does not hold the weights of this factory's model: "
            f"{(wrong or missing)[0]} {'does not fit' if wrong else 'is missing'}. Name the "
            f"factory that the folder was written with, {config.get(FACTORY_KEY)}."
        )
    module.load_state_dict(tensors, strict=False)
    for name in forms:
        finish_form(module, name)
    for name, value in config.items():
        if name not in (FACTORY_KEY, LAYERS_KEY, QUANTISED) and config_of(module) is not None:
            setattr(config_of(module), name, value)


def _once(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state dict, each under its first name only."""
    in_own_form(module)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    saved = module.state_dict()
    return {name: saved[name].contiguous() for name in named if name in saved}
