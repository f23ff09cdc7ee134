"""Inserted layers on disk: without the model, or inside the model's folder."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as as_safetensors
from torch import nn

from sonde.core.errors import InputError, SiteError, StateError, StoreError
from sonde.core.inputs import Model
from sonde.core.renaming import current_names
from sonde.data._checkpoints import LAYERS_FOLDER, LAYERS_KEY, json_object
from sonde.data._model_kind import config_of
from sonde.files.durable import atomic_write, make_directory
from sonde.layers.inserting import insert_in_place, inserted_layers
from sonde.layers.layer import Layer
from sonde.layers.patterns import Pattern
from sonde.weights._weight_file import files_hash
from sonde.weights.folder import CONFIG
from sonde.weights.forms import name_in

ROOM = "sonde.layers"
SUFFIX, TOLD, WEIGHTS = ".layers", "layers.json", "layers.safetensors"
PLAIN = (bool, int, float, str, type(None))


def save_layers(model: Model | nn.Module, path: str | Path) -> Path:
    """Write the inserted layers of a model: ``layers.json`` and ``layers.safetensors``.

    Attributes that were changed after a layer was made, e.g. ``layer.strength = 0.5``, are written
    too.

    Parameters
    ----------
    model : Model or nn.Module
        A model with inserted layers.
    path : str or path
        A folder; ``.layers`` is added to its name if it is not there.

    Raises
    ------
    InputError
        If the model has no inserted layers, or a layer wraps a module or is not one of sonde.
    StoreError
        If the folder cannot be written.
    """
    files = layer_files(model)
    folder = Path(path)
    folder = folder if folder.suffix == SUFFIX else folder.with_name(folder.name + SUFFIX)
    make_directory(folder)
    for name, content in files.items():
        atomic_write(folder / name, content)
    return folder


def layer_files(model: Model | nn.Module) -> dict[str, bytes]:
    """Return the files that ``save_layers`` writes: content by name.

    Parameters
    ----------
    model : Model or nn.Module
        A model with inserted layers.

    Raises
    ------
    InputError
        If the model has no inserted layers, or a layer wraps a module or is not one of sonde.
    """
    layers = inserted_layers(model)
    if not layers:
        raise InputError(
            "save_layers: expected a model with inserted layers, got a model without "
            "inserted layers."
        )
    entries = {site: _told(site, layer) for site, layer in layers.items()}
    tensors = {
        f"{site}/{name}": x.detach().cpu().contiguous()
        for site, layer in layers.items()
        for name, x in layer.state_dict().items()
    }
    text = json.dumps({"version": 1, "layers": entries}, indent=2)
    return {WEIGHTS: as_safetensors(tensors), TOLD: text.encode()}


def load_layers(path: str | Path) -> dict[str, Layer]:
    """Return the layers in a folder by site, for use with ``sonde.inserted``.

    Parameters
    ----------
    path : str or Path
        Folder that ``save_layers`` wrote.

    Raises
    ------
    StoreError
        If the folder is not there.
    StateError
        If its files are damaged, or of another version.
    """
    folder = Path(path)
    try:
        document = json.loads((folder / TOLD).read_bytes())
        tensors = from_safetensors((folder / WEIGHTS).read_bytes())
        version, entries = document["version"], dict(document["layers"])
    except OSError as error:
        raise StoreError(f"load_layers: no layers in {folder}: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, SafetensorError) as error:
        raise StateError(f"load_layers: {folder} is damaged: {error}. Save it again.") from error
    if version != 1:
        raise StateError(f"load_layers: expected version 1 in {folder}, got {version}.")
    return {site: _made(folder, site, entry, tensors) for site, entry in entries.items()}


def insert_saved_layers(module: nn.Module, folder: Path) -> None:
    """Insert the layers of a folder into its model, unless they are already there.

    Raises
    ------
    StateError
        If the layers are missing, were changed since, or do not fit the model.
    """
    wanted = json_object(folder / CONFIG).get(LAYERS_KEY)
    if wanted is None or inserted_layers(module):
        return
    place = folder / LAYERS_FOLDER
    files = {name: _bytes(place / name) for name in (WEIGHTS, TOLD)}
    if files_hash(files) != wanted:
        raise StateError(
            f"load: the layers in {place} are not the layers that were saved with this model: "
            "a file was changed afterwards. Restore the folder from a backup, or train the "
            "layers again."
        )
    if (config := config_of(module)) is not None:
        vars(config).pop(LAYERS_KEY, None)  # a copy that transformers saves has no such folder
    layers = load_layers(place)
    try:
        insert_in_place(
            module, {name_in(module, site) or site: one for site, one in layers.items()}
        )
    except (SiteError, InputError) as error:
        raise StateError(f"load: the layers in {place} do not fit this model. {error}") from error


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise StateError(
            f"load: {file} cannot be read ({error.strerror}), and config.json says that the model "
            "has inserted layers. Copy the whole folder."
        ) from error


def _told(site: str, layer: Layer) -> dict[str, Any]:
    name = type(layer).__name__
    if getattr(import_module(ROOM), name, None) is not type(layer):
        raise InputError(f"save_layers: expected layers of sonde, got {name} at {site}.")
    given = {key: _plain(value) for key, value in layer.given.items()}
    if strange := [key for key, value in given.items() if not _is_plain(value)]:
        raise InputError(
            f"save_layers: {name} at {site} has a constructor argument that cannot be written "
            f"to JSON ({strange[0]}: {type(given[strange[0]]).__name__}). Save the state dict "
            "of the whole model."
        )
    with torch.random.fork_rng(devices=()):
        first = _attributes(type(layer)(**given))
    changed = {k: v for k, v in _attributes(layer).items() if k in first and v != first[k]}
    return {"class": name, "parameters": given} | ({"changed": changed} if changed else {})


def _plain(value: Any) -> Any:
    """Return a parameter for JSON: a pattern as text, arrays of numbers as tuples."""
    if isinstance(value, Pattern):
        return str(value)
    if callable(getattr(value, "tolist", None)):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, tuple | list) else value


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, PLAIN)


def _attributes(layer: Layer) -> dict[str, Any]:
    """Return the plain attributes of a layer, which may have changed since its creation."""
    own = {k: v for k, v in vars(layer).items() if k != "training" and not k.startswith("_")}
    return {k: v for k, v in own.items() if _is_plain(v)}


def _made(folder: Path, site: str, entry: dict[str, Any], tensors: dict[str, Any]) -> Layer:
    state = {n.removeprefix(f"{site}/"): x for n, x in tensors.items() if n.startswith(f"{site}/")}
    try:
        kind = getattr(import_module(ROOM), entry["class"])
        if not issubclass(kind, Layer):
            raise TypeError(f"{entry['class']} is not a layer")
        given = {name: _tuples(value) for name, value in entry["parameters"].items()}
        layer = kind(**current_names(kind, given))
        layer.load_state_dict(state)
        for key, value in current_names(kind, entry.get("changed", {})).items():
            if key not in _attributes(layer):
                raise KeyError(f"{entry['class']} has no {key}")
            setattr(layer, key, _tuples(value))
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise StateError(f"load_layers: {folder} is damaged at {site}: {error}") from error
    kinds = [x.dtype for x in state.values() if x.is_floating_point()]  # the rest are places
    return layer.to(kinds[0]) if kinds else layer


def _tuples(value: Any) -> Any:
    """Return the value with lists turned into tuples, since JSON stores tuples as lists."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
