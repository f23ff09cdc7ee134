"""Merge model folders of the same shape, one tensor at a time."""

import math
import re
import warnings
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.errors import InputError, ShapeError, SondeWarning
from sonde.core.inputs import Model
from sonde.core.keywords import InitSignature, checked_new
from sonde.core.renaming import renamed
from sonde.data._checkpoints import FACTORY_KEY, config_dict, json_object
from sonde.files.durable import atomic_write, make_directory
from sonde.weights._told import write_told
from sonde.weights._weight_file import (
    DTYPES,
    TensorEntry,
    file_hash,
    file_pieces,
    pieces_of,
    type_notes,
    write_hashed,
)
from sonde.weights.factory_folder import opening_notes, source_folder
from sonde.weights.folder import (
    ModelFolder,
    check_output,
    folder_of,
    new_folders,
    patch_of,
)
from sonde.weights.loaded_folder import LoadedFolder

TRACKED = re.compile(r"(^|\.)(running_mean|running_var|num_batches_tracked)$")
NEUTRAL = re.compile(
    r"^_|version|dtype|cache|label|problem|token_id|drop|^output_|return_dict|initializer|init_std"
    r"|architectures|auto_map|checkpointing|finetuning|task_specific|^use_bfloat16|^max_position"
    rf"|loss|^router_aux|^summary|chunk_size|^prefix|^{FACTORY_KEY}$"
)
"""Options of a configuration that change no answer of given weights, or only how they train."""
TOKENIZER = "tokenizer.json"
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class MergeRule(ABC):
    """Rule that merges one tensor of several models. Subclasses are final frozen dataclasses."""

    call_form: ClassVar[str] = "sonde.merge_models(base, others, output)"
    __new__ = checked_new
    __signature__ = InitSignature()

    most: ClassVar[int | None] = None
    """The most models beside the base that the rule takes; None for any number."""

    @final
    def merge(
        self, name: str, base: Float[Tensor, "..."], others: Sequence[Float[Tensor, "..."]]
    ) -> Float[Tensor, "..."]:
        """Return the merged tensor.

        Parameters
        ----------
        name : str
            The tensor's name: what is random is seeded by it.
        base : Float[Tensor, "..."]
            Of the model that the others were trained from.
        others : sequence of Float[Tensor, "..."]

        Raises
        ------
        ShapeError
            If the tensors have several shapes.
        InputError
            If there are too few or too many, or one has an entry that is not finite.
        """
        check_count(self, len(others))
        for i, x in enumerate((base, *others)):
            whose = f"model {i} beside the base" if i else "the base"
            if x.shape != base.shape:
                raise ShapeError(
                    f"{type(self).__name__}.merge: expected {name} of shape {tuple(base.shape)}, "
                    f"that of the base, got {tuple(x.shape)} of {whose}."
                )
            if not bool(torch.isfinite(x).all()):
                raise InputError(
                    f"{type(self).__name__}.merge: expected finite weights, got "
                    f"{int((~torch.isfinite(x)).sum())} of {x.numel()} that are not in {name} of "
                    f"{whose}. Take another checkpoint, or keep this tensor of the base."
                )
        return self._merged(name, base, others)

    def check(self, shapes: Mapping[str, tuple[int, ...]]) -> None:  # noqa: B027 (most fit none)
        """Raise if a rule was fitted for tensors other than the merged ones.

        Parameters
        ----------
        shapes : mapping of str to tuple of int
            Shape of each tensor that is merged, by its name.
        """

    @abstractmethod
    def _merged(self, name: str, base: Tensor, others: Sequence[Tensor]) -> Tensor:
        """Return the merged tensor of finite tensors with equal shapes."""


@dataclass(frozen=True)
class Merged:
    """Result of ``merge_models``.

    Parameters
    ----------
    folder : Path
        Folder of the merged model.
    n_merged, n_kept : int
        Number of tensors that were merged, and that were kept from the base.
    sources : tuple of mappings
        Each model's name and the SHA-256 of each of its weight files.
    method : str
        How they were merged, with its parameters.
    notes : tuple of str
        Number types that differ from a source's, and the word that opens a factory's model.
    """

    folder: Path
    n_merged: int
    n_kept: int
    sources: Sequence[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    method: str = ""
    notes: tuple[str, ...] = ()


@renamed(progress="tick")
def merge_models(
    base: Model | str | Path,
    others: Sequence[Model | str | Path],
    rule: MergeRule,
    output: str | Path,
    keep: Iterable[str] = (),
    progress: Callable[[int], Any] = lambda _: None,
) -> Merged:
    """Merge several models by a rule, and write the base's files with new weights.

    Tensors are read, merged and written one after the other, in the base's type, so memory stays
    below one model. ``OUTPUT.patch`` names the sources with the hashes of their weights. Running
    statistics of batch norm are not averaged: the base's are kept, with a warning.

    Parameters
    ----------
    base : Model, str or path
        A folder, or a model loaded from one or made by a factory, from which the others were
        trained; for ``Slerp`` the first of two.
    others : sequence of Model, str or path
        Models that are merged into the base, as ``base``.
    rule : MergeRule
        Rule that merges each tensor.
    output : str or path
        A folder that does not exist, or is empty.
    keep : iterable of str, optional
        Patterns of tensors that stay the base's (``classifier.*``), by their names in the folder
        or in the opened model.
    progress : callable, optional
        Called with 1 for each merged tensor that is written.

    Raises
    ------
    InputError
        If the models have other tensors, shapes, vocabularies or options, a weight is not finite,
        the rule was fitted for other tensors, or something is at ``output``.
    """
    with ExitStack() as stack:
        paths = [
            stack.enter_context(source_folder(model))
            if isinstance(model, Model)
            else folder_of(model)
            for model in (base, *others)
        ]
        folders = [ModelFolder.open(path).plain() for path in paths]
        names = [_name(model) for model in (base, *others)]
        return _merge_folders(folders, names, rule, Path(output), tuple(keep), progress)


def _merge_folders(
    folders: Sequence[ModelFolder],
    names: Sequence[str],
    rule: MergeRule,
    output: Path,
    patterns: tuple[str, ...],
    progress: Callable[[int], Any],
) -> Merged:
    others = folders[1:]
    check_count(rule, len(others))
    check_output(output, *(folder.path for folder in folders))
    for folder, name in zip(folders, names, strict=True):
        if folder.forms:
            raise InputError(
                f"merge_models: expected models with the shapes that their code gives, got {name}, "
                f"whose {next(iter(folder.forms))} has another shape. Merge the original models, "
                "then change the merged model."
            )
    sources = _aligned(folders)
    chosen = _chosen(sources, names, patterns)
    rule.check({sources[0].said[n]: sources[0].entry(n).shape for n in chosen})
    with new_folders(output) as (new, patch), ThreadPoolExecutor(1) as beside:
        hashed, first = beside.map(_source, folders, names), folders[0]
        for file, one in first.weights.items():
            merged = {n: _entry(sources, n, rule, progress) for n in one.entries if n in chosen}
            atomic_write(new / file, file_pieces({**one.entries, **merged}, one.metadata))
        for file in first.files:
            if file not in first.weights and not first.is_other_copy(file):
                (new / file).parent.mkdir(parents=True, exist_ok=True)
                write_hashed(new / file, pieces_of(first.path / file))
        make_directory(patch)
        listed = list(hashed)
        write_told(patch, {"method": method_of(rule), "keep": list(patterns), "sources": listed})
    n_kept = len(first.places) - len(chosen)
    notes = (*_type_notes(sources, chosen), *opening_notes(names[0], output))
    return Merged(output, len(chosen), n_kept, listed, method_of(rule), notes)


@dataclass(frozen=True)
class _Aligned:
    """A folder whose tensors are found by the base's stored names.

    Parameters
    ----------
    folder : ModelFolder
    stored : mapping of str to str
        From a name in the base's folder to the name in this folder.
    said : mapping of str to str
        From a name in the base's folder to the name in the opened model, where it is stored alone.
    """

    folder: ModelFolder
    stored: Mapping[str, str]
    said: Mapping[str, str]

    def entry(self, name: str) -> TensorEntry:
        own = self.stored[name]
        return self.folder.weights[self.folder.places[own]].entries[own]

    def tensor(self, name: str) -> Tensor:
        own = self.stored[name]
        return self.folder.weights[self.folder.places[own]].tensor(own)


def _aligned(folders: Sequence[ModelFolder]) -> list[_Aligned]:
    """Return folders of one class, even if versions name their tensors differently."""
    base, *others = map(LoadedFolder, folders)
    own_names = {n: base.names.loaded.get(n, n) for n in base.folder.places}
    aligned = [_Aligned(base.folder, {n: n for n in base.folder.places}, own_names)]
    for one in others:
        loaded = one.names.loaded
        names = {n if n in own_names else base.places.get(loaded.get(n, n), n): n
                 for n in one.folder.places}  # fmt: skip
        aligned.append(_Aligned(one.folder, names, own_names))
    return aligned


def method_of(rule: Any) -> str:
    """Return the name and the plain parameters of a rule, as text for patches."""
    plain = {f.name: getattr(rule, f.name) for f in fields(rule)}
    shown = ", ".join(
        f"{name}={method_of(value) if isinstance(value, MergeRule) else repr(value)}"
        for name, value in plain.items()
        if isinstance(value, bool | int | float | str | MergeRule)
    )
    return f"{type(rule).__name__}({shown})"


def generator_for(name: str, seed: int, *numbers: int) -> torch.Generator:
    """Return a tensor's random generator, independent of order and of splitting into files."""
    word = blake2b(f"{name}|{seed}|{numbers}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(word, "little") >> 1)


def check_number(owner: str, name: str, value: float) -> None:
    """Raise an ``InputError`` unless a parameter is a finite number."""
    if not math.isfinite(value):
        raise InputError(f"{owner}: expected a finite {name}, got {value}.")


def _name(model: Model | str | Path) -> str:
    return model.name if isinstance(model, Model) else str(model)


def check_count(rule: MergeRule, n: int) -> None:
    """Raise an ``InputError`` if a rule does not support this number of models."""
    if not n or (rule.most is not None and n > rule.most):
        wanted = "at least one model" if rule.most is None else f"{rule.most} model"
        raise InputError(f"merge: {type(rule).__name__} takes {wanted} beside the base, got {n}.")


def _chosen(
    sources: Sequence[_Aligned], names: Sequence[str], keep: tuple[str, ...]
) -> frozenset[str]:
    """Return the tensors to merge, after a check that all models agree in tensors and options.

    Raises
    ------
    InputError
        Naming the first difference.
    """
    first, names_of = sources[0], sources[0].said

    def is_kept(name: str, patterns: Iterable[str] = keep) -> bool:
        return _matches(name, patterns) or _matches(names_of.get(name, name), patterns)

    kept = {n for n in first.stored if is_kept(n)}
    unused = [p for p in keep if not any(is_kept(n, [p]) for f in sources for n in f.stored)]
    if unused:
        raise InputError(f"merge_models: no tensor of {names[0]} matches {unused[0]!r}.")
    for other, name in zip(sources[1:], names[1:], strict=True):
        _check_vocabulary(first.folder, other.folder, names[0], name)
        own = {n for n in other.stored if not is_kept(n)}
        apart = sorted((first.stored.keys() - kept) ^ own)
        if apart:
            has, lacks = (name, names[0]) if apart[0] in own else (names[0], name)
            raise InputError(
                f"merge_models: {has} has {apart[0]}, but {lacks} does not: they were not made "
                f"from the same base. Give models with the same base, or list {apart[0]!r} among "
                "the tensors to keep."
            )
        for n in own:
            one, its = first.entry(n).shape, other.entry(n).shape
            if one != its:
                raise InputError(
                    f"merge_models: {n} is {tuple(one)} in {names[0]} and {tuple(its)} in "
                    f"{name}. Give models with the same base, or keep {n!r} from the base."
                )
        _check_config(first.folder, other.folder, names[0], name)
    tracked = [n for n in first.stored if TRACKED.search(n) and n not in kept]
    if any(n.endswith("running_mean") for n in tracked):
        warnings.warn(
            f"merge_models: {len(tracked)} statistics of batch norm are taken from the base, not "
            "averaged. Pass data through the merged model in training mode once to renew them.",
            SondeWarning,
            stacklevel=3,
        )
    floats = {n for n in first.stored if DTYPES.get(first.entry(n).dtype) in _FLOATS}
    return frozenset(floats - kept - set(tracked))


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_vocabulary(one: ModelFolder, other: ModelFolder, name: str, name2: str) -> None:
    vocabularies = []
    for folder in (one, other):
        path = folder.path / TOKENIZER
        model = json_object(path).get("model") if path.is_file() else None
        vocabularies.append(model.get("vocab") if isinstance(model, dict) else None)
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise InputError(
            f"merge_models: {name2} has another vocabulary than {name}, so their embeddings "
            "stand for different tokens. Give models with the same base."
        )


def _check_config(one: ModelFolder, other: ModelFolder, name: str, name2: str) -> None:
    """Raise if the models' configurations use equal weights in different ways."""
    first, second = (_meaning(config_dict(folder.path)) for folder in (one, other))
    apart = sorted(
        name
        for name in first.keys() | second.keys()
        if _set(first.get(name)) != _set(second.get(name))
    )
    if apart:
        key = apart[0]
        raise InputError(
            f"merge_models: {key} is {first.get(key)!r} in {name} and {second.get(key)!r} in "
            f"{name2}, so the same weights compute something different. Give models with the "
            "same base."
        )


def _set(option: Any) -> Any:
    """Return an option; None for False, which some versions of transformers leave out."""
    return None if option is False else option


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that affect the computation of a model, including defaults."""
    from transformers import CONFIG_MAPPING  # slow to import

    kind = CONFIG_MAPPING.get(config.get("model_type", ""), None)
    if kind is not None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = kind.from_dict(dict(config)).to_dict()
    return {name: value for name, value in config.items() if not NEUTRAL.search(name)}


def _type_notes(sources: Sequence[_Aligned], merged: Iterable[str]) -> tuple[str, ...]:
    """Return a note on the merged tensors that a source holds in another type than the base."""
    types = Counter[tuple[str, str]]()
    for name in merged:
        base, *others = (one.entry(name).dtype for one in sources)
        types.update({(other, base) for other in others})
    return type_notes(types)


def _entry(
    sources: Sequence[_Aligned], name: str, rule: MergeRule, tick: Callable[[int], Any]
) -> TensorEntry:
    first = sources[0].entry(name)
    dtype = DTYPES[first.dtype]

    def make() -> Tensor:
        base, *others = (one.tensor(name) for one in sources)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        merged = rule.merge(sources[0].said[name], base.to(wide), [x.to(wide) for x in others])
        tick(1)
        return merged.to(dtype)

    return TensorEntry.later(dtype, first.shape, make)


def _source(folder: ModelFolder, name: str) -> dict[str, Any]:
    files = {file: file_hash(folder.path / file) for file in folder.weights}
    return {"model": name, "files": files, "patch": patch_of(folder.path).is_dir()}
