"""Weights in one file, beside a factory that makes the module: ``package.module:factory@FILE``.

``.safetensors``, and state dictionaries of ``torch.save`` (``.pt``, ``.pth``, ``.bin``, ``.ckpt``,
``.pth.tar``), which are opened with ``weights_only=True``: tensors and plain containers, no code. A
programme (TorchScript, ONNX) is no state dictionary and is refused with a way out.
"""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from zipfile import BadZipFile, ZipFile

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sonde.core.errors import InputError, no_file, reason_of
from sonde.core.wording import plural

STATE_DICTS: Final = (".pt", ".pth", ".bin", ".ckpt", ".tar")
WEIGHT_FILES: Final = (".safetensors", *STATE_DICTS)
PREFIXES: Final = ("module.", "_orig_mod.", "model.", "net.")
"""What DataParallel, torch.compile and classes around a module put before every name."""
MOST_NAMES = 3


def fill_from_file(module: nn.Module, path: Path) -> None:
    """Load the tensors of a file into a module that its factory has just created.

    Every parameter and buffer must be in the file, and nothing else. A prefix that all names share,
    as DataParallel and torch.compile write it, is dropped if the module lacks it.

    Raises
    ------
    InputError
        If the file is no state dictionary, or not that of the module.
    """
    own = module.state_dict()
    given = _without_prefix(_tensors(path), own)
    missing, strange = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    if missing or strange:
        unlike = [f"{what} {_some(names)}" for what, names in _unequal(missing, strange)]
        raise InputError(
            f"load: {path} does not fit the module that the factory returns: {'; '.join(unlike)}. "
            "Pass the weights of this module, or the factory that belongs to the file."
        )
    shapes = [n for n in own if isinstance(own[n], Tensor) and own[n].shape != given[n].shape]
    if shapes:
        name = shapes[0]
        raise InputError(
            f"load: expected {name} of shape {tuple(own[name].shape)} as the factory makes it, got "
            f"{tuple(given[name].shape)} in {path}. Pass the weights of this module."
        )
    module.load_state_dict(given)


def about_programme(path: Path) -> str | None:
    """Return advice for a file that contains a program, or None for other files.

    Examples
    --------
    >>> (about_programme(Path("net.onnx")) or "").split(",")[0]
    'net.onnx is an ONNX graph'
    """
    kind = _programme(path)
    if kind is None:
        return None
    return (
        f"{path} is {kind}, which runs without modules that could be read. Name the factory of the "
        "Python module that it was made from, with its state dictionary or safetensors file: "
        f"package.module:factory@{path.stem}.safetensors.{_converted(path)}"
    )


def _converted(path: Path) -> str:
    """Return how modules are made of an ONNX graph: by a package that reads old operator sets."""
    if path.suffix != ".onnx":
        return ""
    return (
        f" Without that module, a factory may return onnx2torch.convert('{path}') (exported with "
        "opset_version=13; the package needs torchvision)."
    )


def _programme(path: Path) -> str | None:
    if path.suffix == ".onnx":
        return "an ONNX graph"
    if path.suffix not in (*STATE_DICTS, ".jit", ".ts") or not path.is_file():
        return None
    try:
        with ZipFile(path) as archive:
            names = archive.namelist()
    except (BadZipFile, OSError):
        return None
    return "a TorchScript programme" if any("/code/" in name for name in names) else None


def _tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name."""
    if not path.is_file():
        raise InputError(f"load: {no_file(path)}.")
    programme = about_programme(path)
    if programme is not None:
        raise InputError(f"load: {programme}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise InputError(f"load: {path} cannot be read: {error}.") from None
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"load: {path} cannot be read: {reason_of(error)}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"load: {path} contains more than tensors, or is damaged, so it is not opened "
            f"({str(error).strip().splitlines()[0].partition('. ')[0][:120]}). Save only "
            "model.state_dict()."
        ) from None
    tensors = _state_dict(held)
    if tensors is None:
        raise InputError(
            f"load: expected a state dictionary in {path}, got {type(held).__name__}. "
            "Save model.state_dict()."
        )
    return tensors


def _state_dict(held: Any) -> dict[str, Tensor] | None:
    """Return the dictionary of tensors in saved data: itself, or its largest member."""
    if not isinstance(held, Mapping):
        return None
    if held and all(isinstance(v, Tensor) for v in held.values()):
        return {str(name): value for name, value in held.items()}
    inner = [_state_dict(v) for v in held.values() if isinstance(v, Mapping)]
    return max((x for x in inner if x), key=len, default=None)


def _without_prefix(given: dict[str, Tensor], own: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors without a common name prefix that the module lacks."""
    for _ in PREFIXES:
        shared = [p for p in PREFIXES if given and all(name.startswith(p) for name in given)]
        if given.keys() == own.keys() or not shared:
            break
        given = {name.removeprefix(shared[0]): value for name, value in given.items()}
    return given


def _unequal(missing: list[str], strange: list[str]) -> list[tuple[str, list[str]]]:
    both = (("the file lacks", missing), ("the module lacks", strange))
    return [(what, names) for what, names in both if names]


def _some(names: list[str]) -> str:
    more = len(names) - MOST_NAMES
    rest = f" and {plural(more, 'other tensor')}" if more > 0 else ""
    return ", ".join(names[:MOST_NAMES]) + rest
