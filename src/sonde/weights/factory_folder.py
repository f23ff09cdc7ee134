"""Folders of models that a user's own function makes: the weights, and the function's name.

``config.json`` names the factory, ``model.safetensors`` holds the state dict. Such a folder is
opened by the word ``package.module:factory@FOLDER``: sonde runs no function that a file names.
"""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sonde.core.errors import StoreError
from sonde.core.inputs import Model
from sonde.core.repacking import in_own_form
from sonde.data._checkpoints import FACTORY_KEY, LAYERS_KEY, json_object
from sonde.data._model_kind import config_of
from sonde.data.loading import is_factory
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


@contextmanager
def source_folder(model: Model) -> Generator[Path, None, None]:
    """Yield the folder that a model came from, or a temporary folder if a factory made it.

    Raises
    ------
    InputError
        If the model came neither from a folder nor from a factory.
    """
    if not is_factory(model.name):
        yield folder_of(model)
        return
    with TemporaryDirectory(prefix="sonde-factory-") as place:
        write_folder(model.module, model.name, Path(place))
        yield Path(place)


def check_change(model: Model, output: Path) -> None:
    """Refuse a change of a model's weights that could not be written, before anything runs.

    Raises
    ------
    InputError
        If the model came from nowhere, its weights are quantised, or something is at ``output``.
    """
    with source_folder(model) as source:
        check_output(output, ModelFolder.open(source).path)


def write_folder(module: nn.Module, factory: str, folder: Path) -> None:
    """Write the state dict of a module that a factory made, each tensor once."""
    (folder / CONFIG).write_text(json.dumps({FACTORY_KEY: factory}, indent=2) + "\n")
    save_file(_once(module), folder / WHOLE)


def fill(module: nn.Module, folder: Path) -> None:
    """Put the forms and the tensors of a folder into a module that its factory has just made.

    Raises
    ------
    StoreError
        If the folder is not one of this factory's models.
    """
    config = json_object(folder / CONFIG)
    quantised = config.get(QUANTISED, {})
    check_files(folder, quantised.get("files", {}))
    told = quantised.get("layers", {})
    for name, one in told.items():
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
            f"factory that it was made with, {config.get(FACTORY_KEY)}."
        )
    module.load_state_dict(tensors, strict=False)
    for name in told:
        finish_form(module, name)
    for name, value in config.items():
        if name not in (FACTORY_KEY, LAYERS_KEY, QUANTISED) and config_of(module) is not None:
            setattr(config_of(module), name, value)


def _once(module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a state dict, each under its first name alone."""
    in_own_form(module)
    named = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    saved = module.state_dict()
    return {name: saved[name].contiguous() for name in named if name in saved}
