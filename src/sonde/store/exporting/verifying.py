"""Checks of exported files: every byte against the file's own hash."""

import json
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.core.wording import plural
from sonde.files.seal import is_sealed
from sonde.store.exporting.describe import describe_export
from sonde.store.exporting.to_lance import FILES, file_hash, files_in
from sonde.store.soundness import Fault, Soundness

KIND = "export"
_HINT = "_versions/latest_version_hint.json"
"""A file of Lance that is another one once a data set has grown."""
_OTHER = "its bytes differ from those that were written"
_UNSEALED = "contains no hash of its bytes: it is damaged, or an earlier version of sonde wrote it"


def verify_export(path: str | Path) -> Soundness:
    """Read every byte of a Parquet, ``.npz``, ``.safetensors`` or Lance file that sonde wrote.

    Raises
    ------
    InputError
        If another program wrote it.
    StoreError
        If it cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        return _lance(path)
    sealed = is_sealed(path)
    checked = {"n_files": 1, "n_bytes": path.stat().st_size}
    if sealed is False:
        return Soundness(KIND, checked, (Fault(path, _OTHER),))
    try:
        facts = describe_export(path)
    except InputError as error:
        return Soundness(KIND, checked, (Fault(path, str(error).removeprefix("info: ")),))
    if sealed is None:
        return Soundness(KIND, checked, (_unsealed(path, facts),))
    return Soundness(KIND, checked | _counts(facts))


def _counts(facts: dict[str, Any]) -> dict[str, int]:
    counts = {"n_rows": facts.get("n_rows"), "n_arrays": len(facts.get("arrays", ()))}
    return {name: n for name, n in counts.items() if n}


def _unsealed(path: Path, facts: dict[str, Any]) -> Fault:
    """Return the fault of a file without a hash, if the file claims to be sonde's."""
    if "spec" not in facts:
        raise InputError(
            f"verify: {path} contains no hash of sonde: another program wrote it, or its end is "
            "damaged. Export it again to add a hash."
        )
    return Fault(path, _UNSEALED)


def _lance(folder: Path) -> Soundness:
    """Compare the files of a data set with the list of hashes beside them."""
    there = {p.relative_to(folder).as_posix(): p for p in files_in(folder)}
    checked = {"n_files": len(there), "n_bytes": sum(p.stat().st_size for p in there.values())}
    listed = _listed(folder)
    if isinstance(listed, Fault):
        return Soundness(KIND, checked, (listed,))
    n_more = len(there.keys() - listed.keys())
    if n_more:
        listed.pop(_HINT, None)
    lost = [Fault(folder / name, "the file is missing") for name in listed.keys() - there.keys()]
    other = [
        Fault(path, _OTHER)
        for name, path in there.items()
        if name in listed and file_hash(path) != listed[name]
    ]
    notes = (
        f"{plural(n_more, 'file was', 'files were')} added by another program and not checked",
    )
    faults = sorted([*lost, *other], key=lambda fault: fault.path)
    return Soundness(KIND, checked, tuple(faults), notes=notes if n_more else ())


def _listed(folder: Path) -> dict[str, str] | Fault:
    """Return the hashes of the files, or the fault of their list."""
    path = folder / FILES
    if not path.is_file():
        raise InputError(
            f"verify: {folder} holds no {FILES}: another program wrote it, or an earlier "
            "sonde. Export it again to add a hash."
        )
    if not is_sealed(path):
        return Fault(path, _OTHER)
    return json.loads(path.read_bytes())["files"]
