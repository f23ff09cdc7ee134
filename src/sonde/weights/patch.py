"""``NEW.patch``: the data to undo an edit of a model's folder.

``patch.json`` says what was done, with a hash of every file before and after, and of each changed
tensor. ``patch.safetensors`` holds what the change is made of and the original bytes: of tensors,
of headers of weight files, of small files. ``files/`` holds copies of the weights in other forms,
``earlier/`` the patch of the edit before this one.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from shutil import copytree
from typing import Any

import torch

from sonde.core.errors import StateError, StoreError
from sonde.files.durable import make_directory
from sonde.weights._told import TOLD, read_told, write_told
from sonde.weights._weight_file import (
    TensorEntry,
    WeightFile,
    file_hash,
    file_pieces,
    pieces_of,
    tensor_bytes,
    write_hashed,
)
from sonde.weights.change import Change
from sonde.weights.folder import ModelFolder, patch_of
from sonde.weights.live import tensor_hash

KEPT, FILES, EARLIER = "patch.safetensors", "files", "earlier"


@dataclass(frozen=True)
class Step:
    """Record of a change of a model.

    Parameters
    ----------
    model : str
        What was changed, as it was named.
    method : str
    figures : mapping of str to float
    config : mapping
        What changed in the configuration.
    """

    model: str
    method: str
    figures: Mapping[str, float] = field(default_factory=dict[str, float])
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class Patch:
    """A patch on disk.

    Parameters
    ----------
    path : Path
    told : mapping
        ``patch.json``.
    """

    path: Path
    told: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> "Patch":
        """Return the patch in a folder.

        Raises
        ------
        StoreError
            If there is none, or it is not whole.
        """
        facts = read_told(path)
        kept = path / KEPT
        if "kept" in facts and (not kept.is_file() or file_hash(kept) != facts["kept"]):
            raise StoreError(f"{kept} is missing or damaged. Take it from a backup.")
        return cls(path, facts)

    @staticmethod
    def write(
        path: Path,
        old: ModelFolder,
        step: Step,
        changes: Mapping[str, Change | None],
        after: Mapping[str, str],
        small: Mapping[str, bytes],
    ) -> None:
        """Write the patch from ``old`` to a folder whose files have the hashes ``after``."""
        make_directory(path)
        touched = {old.places[n] for n in changes if n in old.places}
        touched |= {file for file in old.weights if after[file] != file_hash(old.path / file)}
        entries: dict[str, TensorEntry] = {}
        tensors: dict[str, dict[str, Any]] = {}
        for name, change in changes.items():
            before = None
            if name in old.places:
                one = old.weights[old.places[name]]
                entries[f"{name}|original"] = one.entries[name]
                before = tensor_hash(one.tensor(name))
            factors = {} if change is None else change.factors()
            entries |= {f"{name}|{key}": TensorEntry.of(x) for key, x in factors.items()}
            kind = "copy" if change is None else type(change).__name__
            tensors[name] = {"before": before, "change": kind}
        for file in touched:
            entries[f"header|{file}"] = _entry(old.weights[file].header)
        for file in small:
            entries[f"file|{file}"] = _entry((old.path / file).read_bytes())
        others = [file for file in old.files if old.is_other_copy(file)]
        for file in others:
            (path / FILES / file).parent.mkdir(parents=True, exist_ok=True)
            write_hashed(path / FILES / file, pieces_of(old.path / file))
        facts = {
            **asdict(step),
            "tensors": tensors,
            "before": {file: file_hash(old.path / file) for file in old.files},
            "after": dict(after),
            "kept": write_hashed(path / KEPT, file_pieces(entries)),
        }
        write_told(path, facts)

    @cached_property
    def kept(self) -> WeightFile:
        """The original bytes."""
        return WeightFile.open(self.path / KEPT)

    @property
    def earlier(self) -> "Patch | None":
        """Patch of the previous edit, or None for the first edit."""
        return Patch.open(self.path / EARLIER) if (self.path / EARLIER).is_dir() else None

    def copy_into(self, patch: Path) -> None:
        """Copy this patch into a later patch, as its predecessor."""
        copytree(self.path, patch / EARLIER)

    def check_applies(self, folder: Path) -> None:
        """Raise if the files of a folder do not match this patch.

        Raises
        ------
        StateError
            Naming the first file that differs.
        """
        after: Mapping[str, str] = self.told["after"]
        for file, digest in after.items():
            path = folder / file
            if not path.is_file() or file_hash(path) != digest:
                what = "was changed since" if path.is_file() else "is missing"
                raise StateError(
                    f"{self.path} is not a patch for {folder}: {file} {what}. Undo the later "
                    "changes first, or take the original model."
                )


def earlier_patch(folder: Path) -> Patch | None:
    """Return the patch beside an edited model, or None if there is no patch."""
    path = patch_of(folder)
    if not (path / TOLD).is_file():
        return None
    patch = Patch.open(path)
    patch.check_applies(folder)
    return patch


def _entry(content: bytes) -> TensorEntry:
    return TensorEntry.of(torch.frombuffer(bytearray(content), dtype=torch.uint8))


def kept_bytes(patch: Patch, name: str) -> bytes:
    """Return the bytes that a patch stores under a name.

    Raises
    ------
    StoreError
        If they are not bytes.
    """
    if patch.kept.entries[name].dtype != "U8":
        raise StoreError(f"{patch.path / KEPT} is damaged: {name} does not contain bytes.")
    return bytes(tensor_bytes(patch.kept.tensor(name)))
