"""Restoring an edited model's folder to its original files, checked by hash."""

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree
from typing import Any

from sonde.core.errors import InputError, StateError, StoreError
from sonde.files.durable import Bytes
from sonde.weights._weight_file import WeightFile, pieces_of, write_hashed
from sonde.weights.folder import check_output, new_folders, patch_of
from sonde.weights.patch import EARLIER, FILES, Patch, kept_bytes


def undo(model: str | Path, output: str | Path) -> Path:
    """Write the original of an edited model; every file has its original hash.

    The patch is taken from beside the edited model. Of a model that was edited several times, the
    last edit is taken back, and the patch of the one before is put beside ``output``.

    Parameters
    ----------
    model : str or path
        The folder of an edited model.
    output : str or path
        A folder that does not exist, or is empty.

    Returns
    -------
    Path
        ``output``.

    Raises
    ------
    InputError
        If ``model`` is no folder or has no patch beside it, or something is at ``output``.
    StateError
        If the model or the patch was changed since.
    StoreError
        If a patch is not whole, or names a file outside the folder.
    """
    folder, output = Path(model), Path(output)
    patch = _patch(folder)
    check_output(output, folder, patch.path)
    patch.check_applies(folder)
    before = patch
    while (before := before.earlier) is not None:
        pass  # each is checked where it is opened
    with new_folders(output) as (new, earlier):
        for file, digest in patch.told["before"].items():
            (new / file).parent.mkdir(parents=True, exist_ok=True)
            if write_hashed(new / file, _original(patch, folder, file)) != digest:
                raise StateError(
                    f"undo: restoring {file} from {patch.path} does not give the original "
                    "bytes: the patch was changed. Use the original model."
                )
        if (patch.path / EARLIER).is_dir():
            copytree(patch.path / EARLIER, earlier)
    return output


def _patch(folder: Path) -> Patch:
    if not folder.is_dir():
        raise InputError(f"undo: expected the folder of an edited model, got {folder}.")
    path = patch_of(folder)
    if not path.is_dir():
        raise InputError(
            f"undo: there is no patch {path}. Only a model that sonde edited can be "
            "restored, and its patch must lie beside it under the model's name."
        )
    patch = Patch.open(path)
    if "sources" in patch.told:
        sources: list[dict[str, Any]] = patch.told["sources"]
        named = ", ".join(str(source["model"]) for source in sources)
        raise InputError(
            f"undo: {folder} was merged from {named}: no model was overwritten. Open "
            f"the original that you want; {path / 'patch.json'} has their hashes."
        )
    return patch


def _original(patch: Patch, folder: Path, file: str) -> Iterator[Bytes]:
    """Yield the bytes of a file before the edit."""
    kept = patch.kept.entries
    if f"file|{file}" in kept:
        yield kept_bytes(patch, f"file|{file}")
    elif f"header|{file}" in kept:
        header = kept_bytes(patch, f"header|{file}")
        yield header
        now = WeightFile.open(folder / file).entries
        for name in _names(header, patch):
            entry = kept.get(f"{name}|original", now.get(name))
            if entry is None:
                raise StateError(f"undo: {patch.path} has no original of {name}.")
            yield from entry.content()
    else:
        at = folder if (folder / file).is_file() else patch.path / FILES
        yield from pieces_of(at / file)


def _names(header: bytes, patch: Patch) -> list[str]:
    """Return the tensors in a weight file's header, in the order of their bytes."""
    try:
        header_json: dict[str, Any] = json.loads(header[8:])
        header_json.pop("__metadata__", None)
        return sorted(
            header_json, key=lambda name: tuple(map(int, header_json[name]["data_offsets"]))
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise StoreError(f"{patch.path} is damaged: it keeps no header of weights.") from None
