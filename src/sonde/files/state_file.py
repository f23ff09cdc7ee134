"""Codec of ``.sonde`` files: fitted states as safetensors with a canonical JSON header.

The layout is that of safetensors, so any reader of that format opens the tensors, but stricter:
equal content has exactly one text. Tensors are named ``t0, t1, ...`` in the order of their bytes,
there is one metadata key, and the header holds a hash of everything else. A file is untrusted until
that hash and every offset has been checked, and its fields are decoded by the types that the caller
expects: the file never names a class.
"""

import hashlib
import re
from collections.abc import Callable, Mapping
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import torch
from torch import Tensor

from sonde.core._kinds import is_dict, is_list
from sonde.core.errors import StateError, StoreError
from sonde.core.state import State, canonical_json
from sonde.core.statistic import Learner, Statistic
from sonde.files import _values
from sonde.files._layout import (
    CODES,
    DTYPES,
    FORMAT,
    HEADER_LIMIT,
    NUMBER,
    VERSION,
    Contents,
    damaged,
    hash_of,
    head_of,
    pieces_of,
    raw_bytes,
    read_contents,
    refuse_oversized,
    slots_of,
    verify,
)
from sonde.files.durable import atomic_file
from sonde.files.machine import whole_memory_bytes
from sonde.files.places import to_path

S = TypeVar("S", bound=State)
States = Mapping[str, State | None]
Types = Mapping[str, type[State]] | Callable[[str], type[State]]


OTHER_FORM = "An earlier version wrote it, or it is damaged: fit again."


def state_type(statistic: Statistic[Any]) -> type[State]:
    """Return the type of a statistic's state, from ``observe`` or a learner's ``start``."""
    cls = type(statistic)
    function: Any = cls.observe
    if isinstance(statistic, Learner):
        function = type(statistic).start
    hint = get_type_hints(function).get("return")
    if hint is None or not (isinstance(hint, type) and issubclass(hint, State)):
        name = f"{cls.__name__}.{function.__name__}"
        raise TypeError(f"{name}: expected a State class as return annotation, got {hint!r}.")
    return hint


def write_state(
    path: Path | str,
    header: dict[str, Any],
    states: States,
    durable: bool = True,
    once: bool = False,
) -> str:
    """Write states to a file and return its id, the SHA-256 of its bytes.

    The bytes depend on the arguments alone: no time, host, path or worker enters.

    Parameters
    ----------
    path : path
        Replaced if it exists; appears whole or not at all.
    header : dict
        JSON values that describe the states.
    states : mapping of id to State or None
        None stands for "no row".
    durable : bool, default=True
        Sync to disk before returning.
    once : bool, default=False
        In object storage, raise if another writer committed other bytes under this name.

    Raises
    ------
    StoreError
        If the file cannot be written.
    StateError
        If there are more values or tensors than a reader would accept.
    """
    shelf = _Shelf()
    trees = {
        name: None if state is None else _values.encode(state, shelf.put, name)
        for name, state in sorted(states.items())
    }
    tensors = shelf.tensors
    order = sorted(range(len(tensors)), key=lambda i: -tensors[i].element_size())
    new_name = {f"#{old}": f"t{new}" for new, old in enumerate(order)}
    ordered = [tensors[i] for i in order]
    slots = slots_of(ordered)
    table = "".join(slot.entry(i) for i, slot in enumerate(slots))
    envelope = {
        "format": FORMAT,
        "version": VERSION,
        "header": header,
        "states": {name: _renamed(tree, new_name) for name, tree in trees.items()},
    }
    payload = hash_of(envelope, table, (raw_bytes(t) for t in ordered))
    head = head_of({**envelope, "hash": payload}, table)
    refuse_oversized(head, slots, canonical_json(envelope))
    whole = hashlib.sha256()
    with atomic_file(path, durable, once) as file:
        for piece in pieces_of(head, ordered):
            whole.update(piece)
            file.write(piece)
    return whole.hexdigest()


def read_header(path: Path | str, limit: int = HEADER_LIMIT) -> dict[str, Any]:
    """Return the header of a file without reading its tensors.

    Raises
    ------
    StateError
        If the head is not that of a state file. Tensors are not looked at.
    """
    with _opened(path) as file:
        return read_contents(file, to_path(path), limit).envelope["header"]


def check_state(path: Path | str) -> dict[str, Any]:
    """Return the header of a file after a check of every byte against the stored hash.

    Raises
    ------
    StateError
        If any byte differs from what was written.
    """
    with _opened(path) as file:
        contents = read_contents(file, to_path(path))
        verify(file, contents, to_path(path))
        return contents.envelope["header"]


def read_state(
    path: Path | str, types: Types, limit_bytes: int | None = None, *, partial: bool = False
) -> tuple[dict[str, Any], dict[str, State | None]]:
    """Return the header and the states of a file.

    Parameters
    ----------
    path : path
    types : mapping of id to State class, or callable from id to State class
        What to build. With a mapping the file must hold exactly its ids.
    limit_bytes : int or None, default=None
        Largest payload that is accepted; None is the memory of this machine.
    partial : bool, default=False
        Read only the states that a mapping of ``types`` names.

    Raises
    ------
    StateError
        If the file is damaged, of another kind, or does not fit ``types``.
    StoreError
        If it cannot be opened.
    """
    path = to_path(path)
    with _opened(path) as file:
        contents = read_contents(file, path)
        _refuse_larger(contents, path, limit_bytes)
        verify(file, contents, path)
        trees: dict[str, Any] = contents.envelope["states"]
        named = cast("Mapping[str, Any]", types) if isinstance(types, Mapping) else None
        if partial and named is not None:
            trees = {name: tree for name, tree in trees.items() if name in named}
        if named is not None and named.keys() != trees.keys():
            lacking, extra = (
                sorted(named.keys() - trees.keys()),
                sorted(trees.keys() - named.keys()),
            )
            raise StateError(
                f"read_state: {path} holds other states: missing {lacking[:3]}, unknown "
                f"{extra[:3]}. Fit again with the same methods and sites."
            )
        load = _Loader(file, contents)
        find = named.__getitem__ if named is not None else cast("Callable[[str], Any]", types)
        states: dict[str, State | None] = {}
        for name, tree in trees.items():
            try:
                wanted = find(name)
            except LookupError as error:
                raise StateError(f"read_state: {path} holds an unknown state {name!r}.") from error
            where = f"read_state: {path}: {name}"
            try:
                states[name] = None if tree is None else _values.decode(tree, wanted, load, where)
            except StateError as error:
                raise StateError(f"{error} {OTHER_FORM}") from error
        if not partial:
            load.finish(path)
        return contents.envelope["header"], states


def write_one(path: Path | str, kind: str, state: State) -> str:
    """Write one state of a kind to a ``.sonde`` file and return its id."""
    return write_state(path, {"kind": kind}, {kind: state})


def read_one(path: Path | str, kind: str, state_type: type[S]) -> S:
    """Return the state that ``write_one`` wrote.

    Raises
    ------
    StateError
        If the file is damaged or holds a state of another kind.
    """
    state = read_state(path, {kind: state_type})[1][kind]
    assert isinstance(state, state_type)  # as the reader built it
    return state


def _refuse_larger(contents: Contents, path: Path, limit: int | None) -> None:
    """Raise before reading if a payload is larger than the limit."""
    most = whole_memory_bytes() if limit is None else limit
    n_bytes = contents.slots[-1].end if contents.slots else 0
    if n_bytes > most:
        kind, advice = (
            ("memory of this machine,", "Read it on a larger machine.")
            if limit is None
            else ("limit", "Raise limit_bytes if you trust the file.")
        )
        raise StateError(
            f"read_state: {path} holds {n_bytes} bytes, more than the {kind} {most}. {advice}"
        )


class _Shelf:
    """Collects tensors and returns their names."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def put(self, tensor: Tensor) -> str:
        if tensor.dtype not in CODES or tensor.layout != torch.strided:
            raise TypeError(
                f"write_state: cannot store a tensor of {tensor.dtype}, {tensor.layout}."
            )
        self.tensors.append(tensor.detach().cpu().contiguous())
        return f"#{len(self.tensors) - 1}"


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
    if isinstance(tree, str):
        return names[tree]
    if is_list(tree):
        return [_renamed(item, names) for item in tree]
    if is_dict(tree):
        tagged = len(tree) == 1 and next(iter(tree)).startswith("$")
        return tree if tagged else {k: _renamed(v, names) for k, v in tree.items()}
    return tree


class _opened:
    """A file opened for reading, which turns system errors into ``StoreError``."""

    def __init__(self, path: Path | str) -> None:
        self._path = to_path(path)

    def __enter__(self) -> BufferedReader:
        try:
            self._file = self._path.open("rb")
        except OSError as error:
            raise StoreError(
                f"could not read {self._path}: {error.strerror}. Check the path."
            ) from error
        return self._file

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._file.close()
        if isinstance(error, OSError) and not isinstance(error, StoreError):
            raise StoreError(f"could not read {self._path}: {error.strerror}.") from error


class _Loader:
    """Reads tensors by name, each tensor once."""

    def __init__(self, file: BufferedReader, contents: Contents) -> None:
        self._file, self._contents = file, contents
        self._seen: dict[str, Tensor] = {}

    def __call__(self, name: str) -> Tensor:
        if name in self._seen:
            return self._seen[name]
        index = int(name[1:]) if re.fullmatch(rf"t{NUMBER}", name) else -1
        if not 0 <= index < len(self._contents.slots):
            raise StateError(f"read_state: there is no tensor {name[:20]!r}.")
        slot = self._contents.slots[index]
        raw = torch.empty(slot.end - slot.begin, dtype=torch.uint8)
        if raw.numel():
            self._file.seek(self._contents.start + slot.begin)
            if self._file.readinto(raw.numpy().data) != raw.numel():
                raise StateError("read_state: the file became shorter while it was read.")
        if slot.code == "BOOL" and raw.numel() and int(raw.max()) > 1:
            raise StateError(
                f"read_state: tensor {name} is boolean, but contains bytes other than 0 and 1."
            )
        self._seen[name] = raw.view(DTYPES[slot.code][0]).reshape(slot.shape)
        return self._seen[name]

    def finish(self, path: Path) -> None:
        if len(self._seen) != len(self._contents.slots):
            raise damaged(path, "tensors that no state uses")
