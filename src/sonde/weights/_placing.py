"""Tensors to write to disk when the loaded model's tensors change, vanish, or are renamed."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import StateError
from sonde.data._checkpoint_model import skeleton
from sonde.data._stored_names import Joined, StoredNames
from sonde.weights._weight_file import DTYPES, TensorEntry
from sonde.weights.change import Change, written_type
from sonde.weights.folder import CONFIG, QUANTISED
from sonde.weights.forms import name_in, put_form
from sonde.weights.loaded_folder import LoadedFolder, empty


@dataclass(frozen=True)
class NewTensor:
    """A tensor of the new model, changed from the tensor ``source`` (None: a new tensor).

    If ``value`` is given, it is the tensor. ``gone`` says that no tensor has this name. ``beside``
    is the loaded tensor whose file and prefix are taken if there is no source.
    """

    source: str | None
    change: Change | None
    value: Tensor | None = None
    gone: bool = False
    beside: str | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor to write under its stored name; with None as entry, it is removed."""

    file: str
    entry: TensorEntry | None
    change: Change | None = None


def stored_changes(
    held: LoadedFolder, new: Mapping[str, NewTensor], config: Mapping[str, Any]
) -> dict[str, StoredTensor]:
    """Return the tensors to write, by their names on disk.

    Names are those that ``save_pretrained`` would write. If such a name would not be loaded into
    its place, the tensor gets the name that the model has for it.

    Parameters
    ----------
    held : LoadedFolder
    new : mapping of str to NewTensor
        By the names in the opened model.
    config : mapping
        What changes in the configuration.

    Raises
    ------
    StateError
        If a tensor would not be loaded under either name.
    """
    named, together = {**new}, set[str]()
    gone, written, owners = dict[str, StoredTensor](), dict[str, StoredTensor](), dict[str, str]()
    touched = {*new, *(one.source for one in new.values() if one.source is not None)}
    for one in dict.fromkeys(held.joined[n] for n in touched if n in held.joined):
        kept = _kept(one, new)
        gone |= {n: StoredTensor(held.folder.places[n], None) for n in one.stored}
        again = _stored_again(held, one, kept)
        if again is None:
            named |= kept
        else:
            written |= again
            together |= kept.keys()
            named = {n: w for n, w in named.items() if n not in kept}
    for name, one in named.items():
        if one.gone:
            if name in held.places:
                place = held.places[name]
                gone[place] = StoredTensor(held.folder.places[place], None)
            continue
        like = one.source or one.beside
        place = held.names.name_for(name, None if like in held.joined else like)
        place = name if place in owners else place
        owners[place] = name
        file = held.files[like] if like is not None else next(iter(held.folder.weights))
        written[place] = StoredTensor(file, _entry(held, one), one.change)
    stored = {**{n: w for n, w in gone.items() if n not in written}, **written}
    shell = _shell(held, config)
    return stored if shell is None else _checked(held, shell, stored, owners, together)


def _kept(one: Joined, new: Mapping[str, NewTensor]) -> dict[str, NewTensor]:
    """Return the tensors that loading computes jointly, including unchanged ones."""
    stay = {n: NewTensor(n, None) for n in one.loaded if n not in new}
    return stay | {n: w for n, w in new.items() if w.source in one.loaded and not w.gone}


def _stored_again(
    held: LoadedFolder, one: Joined, kept: Mapping[str, NewTensor]
) -> dict[str, StoredTensor] | None:
    """Return the joined or split tensors in stored form, or None if that is impossible."""
    renamed = {w.source: n for n, w in kept.items()}
    if renamed.keys() != one.loaded.keys() or len(renamed) != len(kept):
        return None
    try:
        before = held.names.store(one.loaded)
        after = held.names.store({renamed[n]: x for n, x in one.loaded.items()})
    except Exception:  # whatever an operation of transformers raises for what it cannot take back
        return None
    if before.keys() != set(one.stored) or len(before) != len(after):
        return None
    changed = any(w.change is not None for w in kept.values())
    values: list[dict[str, Tensor]] = []

    def value(place: str, dtype: torch.dtype) -> Tensor:
        if not values:
            values.append(held.names.store({n: _value(held, w) for n, w in kept.items()}))
        x = values[0].pop(place).to(dtype)
        if not values[0]:
            values.clear()
        return x

    again = dict[str, StoredTensor]()
    for old, place in zip(before, after, strict=True):
        entry = held.stored_entry(old)
        if changed:
            dtype = written_type(DTYPES[entry.dtype])
            entry = TensorEntry.later(
                dtype, after[place].shape, lambda p=place, d=dtype: value(p, d)
            )
        again[place] = StoredTensor(held.folder.places[old], entry)
    return again


def _value(held: LoadedFolder, one: NewTensor) -> Tensor:
    assert one.source is not None  # what has no source is not stored together with others
    x = held.tensor(one.source)
    return x if one.change is None else one.change.of(x)


def _entry(held: LoadedFolder, one: NewTensor) -> TensorEntry:
    if one.value is not None:
        return TensorEntry.of(one.value)
    if one.source is None:
        assert one.change is not None  # what has no source is made by a change
        return TensorEntry.of(one.change.of(None))
    stored = held.entry(one.source)
    if one.change is None:
        return stored
    dtype = written_type(DTYPES[stored.dtype])
    return TensorEntry.later(dtype, stored.shape, lambda: _value(held, one))


def _checked(
    held: LoadedFolder,
    shell: nn.Module,
    stored: dict[str, StoredTensor],
    owners: Mapping[str, str],
    together: Set[str],
) -> dict[str, StoredTensor]:
    """Return the tensors to write, under names that load into the new model.

    Raises
    ------
    StateError
        Naming a tensor that would be lost.
    """
    wanted = {*owners.values(), *together}
    lost = _lost(held, shell, stored, wanted)
    inner = {place: name for place, name in owners.items() if name in lost}
    if inner:
        moved = {name: stored[place] for place, name in inner.items()}
        left = {n: StoredTensor(held.folder.places[n], None)
                for n in inner if n in held.folder.places}  # fmt: skip
        stored = {**{n: w for n, w in stored.items() if n not in inner}, **left, **moved}
        lost = _lost(held, shell, stored, wanted)
    if lost:
        raise StateError(
            f"save_edited: transformers would not load the tensor {min(lost)} of the new "
            "model under any name. Fold the plan in Python, and save the new model with "
            "save_pretrained."
        )
    return stored


def _shell(held: LoadedFolder, config: Mapping[str, Any]) -> nn.Module | None:
    """Return the new model without weights, as its folder would load it."""
    path = held.folder.path
    options = {name: value for name, value in config.items() if name != QUANTISED}
    shell = skeleton(path, options) if (path / CONFIG).is_file() else None
    if shell is not None:
        for name, form in config.get(QUANTISED, {}).get("layers", {}).items():
            put_form(shell, name_in(shell, name) or name, form)
    return shell


def _lost(
    held: LoadedFolder, shell: nn.Module, found: Mapping[str, StoredTensor], wanted: Set[str]
) -> set[str]:
    """Return the wanted tensors that would not be loaded into their positions in the new model."""
    stay = {n: held.stored_entry(n) for n in held.folder.places if n not in found}
    entries = {**stay, **{n: w.entry for n, w in found.items() if w.entry is not None}}
    names = StoredNames(shell, {n: empty(entry) for n, entry in entries.items()})
    own = shell.state_dict()
    fits = {loaded for n, loaded in names.loaded.items()
            if loaded in own and own[loaded].shape == entries[n].shape}  # fmt: skip
    fits |= {n for one in names.joined for n, x in one.loaded.items()
             if n in own and own[n].shape == x.shape}  # fmt: skip
    return {name for name in wanted if name in own and name not in fits}
