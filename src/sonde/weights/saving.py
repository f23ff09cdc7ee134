"""Edited models on disk: the folder is copied, and changed tensors are rewritten."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import torch

from sonde.core.errors import InputError, StateError
from sonde.core.inputs import Model
from sonde.core.wording import plural
from sonde.data._checkpoints import (
    FACTORY_KEY,
    GUARD_KEY,
    LAYERS_FOLDER,
    LAYERS_KEY,
    NEEDS_SONDE,
    stages_of,
)
from sonde.data.sentence_encoder import TRANSFORMER, stored_part
from sonde.weights._placing import NewTensor, StoredTensor, stored_changes
from sonde.weights._weight_file import (
    file_pieces,
    files_hash,
    pieces_of,
    type_notes,
    write_hashed,
)
from sonde.weights.factory_folder import fill, opening_notes, source_folder, word_of_factory
from sonde.weights.folder import (
    CONFIG,
    INDEX,
    OPENED_BY_SONDE,
    QUANTISED,
    ModelFolder,
    as_json,
    check_output,
    folder_of,
    new_folders,
)
from sonde.weights.forms import joined_forms
from sonde.weights.live import TIED, tensor_hash
from sonde.weights.loaded_folder import LoadedFolder
from sonde.weights.model_card import CARD, ORIGINAL_CARD, changed_card, shown_figures
from sonde.weights.patch import Patch, Step, earlier_patch

if TYPE_CHECKING:
    from sonde.weights.rewrite import RewritePlan

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@final
@dataclass(frozen=True)
class Saved:
    """Result of ``save_edited``.

    Parameters
    ----------
    folder : Path
        The edited model: ``from_pretrained`` loads it.
    patch : Path
        The patch that undoes the edit, beside the folder.
    tensors : tuple of str
        The tensors that were rewritten or added, without biases that hold only zeros.
    notes : tuple of str
        Number types that differ from the original's, how many biases of zeros were added, and the
        word that opens a factory's model.
    """

    folder: Path
    patch: Path
    tensors: tuple[str, ...]
    notes: tuple[str, ...] = ()


def save_edited(
    model: Model | str | Path,
    plan: "RewritePlan",
    output: str | Path,
    name: str = "",
    layers: Mapping[str, bytes] | None = None,
    figures: Mapping[str, str] | None = None,
) -> Saved:
    """Write a model with a plan folded in, and beside it the patch that undoes the plan.

    The model's folder is copied byte for byte. Only the changed tensors are rewritten, as float32
    where they were of a half type. A ``README.md`` becomes the card of the changed model, and the
    original's is kept as ``README.original.md``. ``OUTPUT.patch`` holds the original bytes of all
    that differs; copies of the weights in other forms (``*.bin``, ``*.gguf``) are kept there alone.

    Parameters
    ----------
    model : Model, str or path
        A folder, ``sonde:digits``, ``sonde:stdlib``, or a model that was loaded from one or made by
        a factory; what a factory made is opened by ``package.module:factory@OUTPUT``.
    plan : RewritePlan
        Plan of the changes of weights.
    output : str or path
        A folder that does not exist, or is empty.
    name : str, optional
        What the patch calls the model; by default its path.
    layers : mapping of str to bytes, optional
        Files of the layers that ``load`` puts into the model, ``sonde.layers.layer_files``. By
        default those that the folder has.
    figures : mapping of str to str, optional
        Measured facts by name, for the card of the changed model; by default the plan's figures.

    Raises
    ------
    InputError
        If the model has no folder, its weights are quantised, or something is at ``output``.
    StateError
        If the weights in the folder are not those that the plan was made for.
    """
    called = name or (model.name if isinstance(model, Model) else str(model))
    if not isinstance(model, Model):
        return _saved(folder_of(model), plan, Path(output), called, layers, figures)
    with source_folder(model) as source:
        return _saved(source, plan, Path(output), called, layers, figures)


def _saved(
    source: Path,
    plan: "RewritePlan",
    output: Path,
    called: str,
    layers: Mapping[str, bytes] | None,
    figures: Mapping[str, str] | None,
) -> Saved:
    old = ModelFolder.open(source)
    plan = _of_transformer(plan, source) if stages_of(source) else plan
    check_output(output, old.path)
    held = LoadedFolder(old)
    planned, config = _planned(held, plan)
    written = stored_changes(held, planned, config)
    moves = bool(config.keys() - {QUANTISED}) or bool(plan.changes.keys() - plan.made_for.keys())
    added = {f"{LAYERS_FOLDER}/{file}": content for file, content in (layers or {}).items()}
    if layers:
        config[LAYERS_KEY] = files_hash(layers)
        config.setdefault(QUANTISED, dict(OPENED_BY_SONDE))
    with new_folders(output) as (new, patch):
        after, small = _write(old, new, written, config, added)
        facts = shown_figures(plan.figures) if figures is None else figures
        _write_card(old, new, called, plan.method, facts, after, small)
        step = Step(called, plan.method, dict(plan.figures), config)
        Patch.write(patch, old, step, {n: w.change for n, w in written.items()}, after, small)
        earlier = earlier_patch(old.path)
        if earlier is not None:
            earlier.copy_into(patch)
        if moves and not plan.forms and not plan.blocks:
            _check_loads(word_of_factory(called, new) or str(new), held, plan)
    types = Counter[tuple[str, str]]()
    for name, one in written.items():
        stored = old.places.get(name)
        if stored is not None and one.entry is not None:
            types[old.weights[stored].entries[name].dtype, one.entry.dtype] += 1
    blank = {_added_name(held, name)[0] for name in plan.blank}
    notes = (*type_notes(types), *_blank_notes(len(blank)), *opening_notes(called, output))
    tensors = tuple(name for name in written if name not in blank)
    return Saved(output, output.with_name(output.name + ".patch"), tensors, notes)


def _blank_notes(n: int) -> tuple[str, ...]:
    """Return a note on biases of zeros that were added."""
    if not n:
        return ()
    return (
        f"note: {plural(n, 'bias', 'biases')} of zeros had to be added, which change no answer: "
        "the class of the model has biases in all layers or in none.",
    )


def _of_transformer(plan: "RewritePlan", source: Path) -> "RewritePlan":
    """Return a plan for a sentence encoder, with the names in its transformer only.

    Raises
    ------
    InputError
        If the plan changes a stage after the transformer.
    """
    stages = [n for n in plan.changes if not n.startswith(f"{TRANSFORMER}.")]
    if stages and len(stages) < len(plan.changes):
        raise InputError(
            f"save_edited: {stages[0]} belongs to a stage after the transformer of {source}, which "
            "has a file of its own. Leave that stage out of the plan."
        )
    return plan if stages else plan.inside(TRANSFORMER)


def _planned(
    held: LoadedFolder, plan: "RewritePlan"
) -> tuple[dict[str, NewTensor], dict[str, Any]]:
    """Return the new version of each loaded tensor, and the new configuration entries."""
    new: dict[str, NewTensor] = {}
    config = dict(plan.config)
    if FACTORY_KEY in held.folder.config():
        forms = _forms_after(held.folder, plan)
    else:
        forms = plan.told_on_disk()
    if forms:
        config[QUANTISED] = {**OPENED_BY_SONDE, "layers": forms}
    for name, change in plan.changes.items():
        leaf = name.rpartition(".")[2]
        if name not in plan.made_for:
            own, sibling = _added_name(held, name)
            new[own] = NewTensor(None, change, beside=sibling)
            continue
        stored_name = _found(held, name, plan)
        group = (name, *plan.parted.get(name, ()))
        if plan.parted.get(name):
            _check_tie(held.folder, group)
            config[TIED] = False
        own = _own_name(held, name, stored_name) or (name if plan.ties.get(name) else stored_name)
        if name in plan.reshaped:
            also = {*plan.ties.get(name, ())} - {*group}  # tied still, to the packed tensor
            for old in (own, *(n for n in also if n in held.files)):
                if old in held.files:
                    new.setdefault(old, NewTensor(old, change, gone=True))
            path = own.removesuffix(leaf)
            for part, value in change.replaced().items():
                one = None if part else change
                new[path + (part or leaf)] = NewTensor(None, one, value, beside=stored_name)
        else:
            new[own] = NewTensor(stored_name, change)
        for other in set(group[1:]) - plan.changes.keys():
            if _own_name(held, other, stored_name) is None:
                new[other] = NewTensor(stored_name, None)
    for above, kept in plan.blocks.items():
        new = _renumbered(held, new, above, kept)
    return new, config


def _added_name(held: LoadedFolder, name: str) -> tuple[str, str | None]:
    """Return the name in the folder of a tensor that it lacks, and the weight beside it."""
    path, leaf = name.rpartition(".")[::2]
    sibling = held.named_like(f"{path}.weight" if path else "weight")
    return (sibling[0].removesuffix("weight") + leaf, sibling[0]) if sibling else (name, None)


def _forms_after(folder: ModelFolder, plan: "RewritePlan") -> Mapping[str, Mapping[str, Any]]:
    """Return the forms that a factory's folder has after a plan.

    Raises
    ------
    InputError
        If the plan removes blocks of a folder whose parts have other forms.
    """
    if folder.forms and plan.blocks:
        raise InputError(
            f"save_edited: {folder.path} describes the shape of {next(iter(folder.forms))}, and "
            f"removing blocks from {next(iter(plan.blocks))} would rename the parts that it "
            "describes. Remove the blocks from the original model, then make the other changes."
        )
    return joined_forms(folder.forms, joined_forms(_new_biases(plan), plan.told()))


def _new_biases(plan: "RewritePlan") -> dict[str, Mapping[str, Any]]:
    """Return the forms of layers that get a bias, which no option of a factory's code adds."""
    added = {n: x for n, x in plan.changes.items() if n not in plan.made_for}
    return {
        name.removesuffix(".bias"): {"shapes": {"bias": list(change.of(None).shape)}}
        for name, change in added.items()
        if name.endswith(".bias")
    }


def _renumbered(
    held: LoadedFolder, new: Mapping[str, NewTensor], above: str, kept: Sequence[int]
) -> dict[str, NewTensor]:
    """Return the new tensors after blocks are removed, with later blocks renamed.

    Raises
    ------
    StateError
        If the folder has no such blocks.
    """
    path = above
    while path and not any(f".{path}.0." in f".{name}" for name in held.files):
        path = path.partition(".")[2]
    inside = re.compile(rf"((?:.*\.)?{re.escape(path)})\.(-?\d+)\.(.*)")
    every = (*held.files, *(n for n in new if n not in held.files))
    parts = {name: match for name in every if path and (match := inside.fullmatch(name))}
    if not parts:
        raise StateError(
            f"save_edited: {held.folder.path} has no blocks called {above}.0, {above}.1."
        )
    prefix = next(iter(parts.values()))[1]
    moved, left = dict[str, NewTensor](), dict(new)
    for name, match in parts.items():
        own = left.pop(name, None) or NewTensor(name, None)
        if int(match[2]) in kept and not own.gone:
            beside = own.beside or own.source or next(iter(parts))
            moved[f"{prefix}.{kept.index(int(match[2]))}.{match[3]}"] = replace(own, beside=beside)
    gone = {n: NewTensor(n, None, gone=True) for n in parts if n in held.files and n not in moved}
    stays = {n for n, w in moved.items() if w.source == n and w.change is None}
    return {**left, **gone, **{n: w for n, w in moved.items() if n not in stays}}


def _own_name(held: LoadedFolder, name: str, found: str) -> str | None:
    """Return the loaded tensor with this name, not a tied one."""
    names = held.named_like(name)
    return found if found in names else names[0] if names else None


def _found(held: LoadedFolder, name: str, plan: "RewritePlan") -> str:
    """Return the loaded tensor of a plan's tensor, identified by its hash.

    Raises
    ------
    StateError
        If there is none.
    """
    wanted = plan.made_for[name]
    for candidate_name in (name, *plan.ties.get(name, ())):
        for candidate in held.named_like(candidate_name):
            x = held.tensor(candidate)
            if wanted in (tensor_hash(x.to(dtype)) for dtype in (x.dtype, *FLOATS)):
                return candidate
    raise StateError(
        f"save_edited: {held.folder.path} has no {name} with the weights that this plan was "
        "made for. Make a new plan for this model."
    )


def _check_tie(old: ModelFolder, group: tuple[str, ...]) -> None:
    if len(group) > 2:
        raise StateError(
            f"save_edited: {', '.join(group)} are a single tensor in {old.path}, and its "
            "configuration cannot store them separately. Give all of them the same change, or "
            "edit another tensor."
        )


def _write(
    old: ModelFolder,
    new: Path,
    written: Mapping[str, StoredTensor],
    config: Mapping[str, Any],
    added: Mapping[str, bytes],
) -> tuple[dict[str, str], dict[str, bytes]]:
    """Write the new folder; return each file's hash, and the small files that differ."""
    touched = {w.file for w in written.values()}
    touched |= {old.places[n] for n in written if n in old.places}
    after: dict[str, str] = {}
    small: dict[str, bytes] = {}
    for file, one in old.weights.items():
        if file in touched:
            in_file = {n: w for n, w in written.items() if w.file == file}
            stays = {n: e for n, e in one.entries.items() if n in in_file or n not in written}
            entries = {**stays, **{n: w.entry for n, w in in_file.items() if w.entry is not None}}
            entries = {n: e for n, e in entries.items() if n not in in_file or in_file[n].entry}
            after[file] = write_hashed(new / file, file_pieces(entries, one.metadata))
    if packed := config.get(QUANTISED, {}).get("layers"):
        config = {
            **config,
            QUANTISED: {**OPENED_BY_SONDE, "layers": packed, "files": dict(after)},
        }
    if QUANTISED in config and FACTORY_KEY not in old.config():
        fusions = old.config().get(GUARD_KEY) or {}
        config = {**config, GUARD_KEY: {**fusions, NEEDS_SONDE: True}}
    if config:
        small[CONFIG] = as_json({**old.config(), **config})
    if INDEX in old.files:
        small[INDEX] = as_json(_index(old, written))
    small |= {file: content for file, content in added.items() if file in old.files}
    for file in added.keys() - small.keys():
        (new / file).parent.mkdir(parents=True, exist_ok=True)
        write_hashed(new / file, [added[file]])  # undo gives files that were there before
    for file in old.files:
        if file in after or old.is_other_copy(file):
            continue
        (new / file).parent.mkdir(parents=True, exist_ok=True)
        pieces = [small[file]] if file in small else pieces_of(old.path / file)
        after[file] = write_hashed(new / file, pieces)
    return after, small


def _write_card(
    old: ModelFolder,
    new: Path,
    called: str,
    method: str,
    figures: Mapping[str, str],
    after: dict[str, str],
    small: dict[str, bytes],
) -> None:
    """Put the card of the changed model in the place of the original's, if there is one."""
    if CARD not in old.files:
        return
    before = (old.path / CARD).read_bytes()
    sizes = tuple(sum((at / file).stat().st_size for file in old.weights) for at in (old.path, new))
    card = changed_card(
        before.decode(errors="replace"), called, method, (sizes[0], sizes[1]), figures
    )
    small[CARD] = card.encode()
    after[CARD] = write_hashed(new / CARD, [small[CARD]])
    if ORIGINAL_CARD not in old.files:
        write_hashed(new / ORIGINAL_CARD, [before])


def _index(old: ModelFolder, written: Mapping[str, StoredTensor]) -> dict[str, Any]:
    """Return the index of the shards, with added tensors and the new size."""
    index = json.loads((old.path / INDEX).read_bytes())
    gone = {n for n, w in written.items() if w.entry is None}
    places = {**index["weight_map"], **{n: w.file for n, w in written.items()}}
    index["weight_map"] = {n: file for n, file in places.items() if n not in gone}
    sizes = {n: e.n_bytes for one in old.weights.values() for n, e in one.entries.items()}
    sizes |= {n: w.entry.n_bytes for n, w in written.items() if w.entry is not None}
    sizes = {n: size for n, size in sizes.items() if n not in gone}
    index["metadata"] = {**index.get("metadata", {}), "total_size": sum(sizes.values())}
    return index


def _check_loads(word: str, held: LoadedFolder, plan: "RewritePlan") -> None:
    """Raise unless the new model loads every changed tensor with its changed configuration.

    Raises
    ------
    InputError
        If the model's class ties a changed tensor or has no place for it.
    """
    from sonde.data import load

    loaded = dict(stored_part(load(word, "cpu", "float32", fill=fill).module).state_dict())
    for name, change in plan.changes.items():
        source = _found(held, name, plan) if name in plan.made_for else None
        expected = change.of(None if source is None else held.tensor(source)).to(torch.float32)
        got = loaded.get(name)
        if got is None or prod(got.shape) == 0 or not torch.equal(got.cpu(), expected):
            raise InputError(
                f"save_edited: {name} does not load from the new folder: the model's class "
                "ties this tensor to another one, or has no parameter of this name. Nothing "
                "was written; fold the plan in Python instead."
            )
