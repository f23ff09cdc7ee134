"""A file of a stacked model that opens cut anywhere: the blocks that matter most come first."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, final

import torch
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from torch import Tensor, nn

from sonde.core.errors import InputError, StoreError
from sonde.core.inputs import Model
from sonde.files.durable import atomic_file
from sonde.weights import StackLinear

MAGIC, DIGITS, MOST_HEAD = b"SONDE-STACK-1\n", 16, 2**26
PARTS = ("signs", "left", "right")


@final
@dataclass(frozen=True)
class OpenedStack:
    """A model that was read from a stack file, and how much of the file it took.

    Parameters
    ----------
    module : nn.Module
        Model with the stored weights.
    levels : dict of str to int
        Number of blocks of each stacked layer.
    read, whole : int
        Bytes that were used, and bytes of the whole file.
    """

    module: nn.Module
    levels: dict[str, int]
    read: int
    whole: int


def save_stack(model: Model | nn.Module, path: Path | str) -> None:
    """Write a model of ``StackLinear`` layers as one file, the blocks that matter most first.

    First comes all that is not a block, then the first block of every layer, the second, and so on.
    Within a level blocks stand by the fraction of their layer's weight that they add, measured in
    the inputs for which ``BitStack`` scaled it. A file that is cut off keeps its first blocks.

    Differs      from the paper, which orders the blocks of a level by the loss of the model with
                 each of them.

    Parameters
    ----------
    model : Model or nn.Module
        From ``BitStack(...).plan(...).fold(model)``.
    path : path
        File to write.

    References
    ----------
    wang2025bitstack
    """
    module = model.module if isinstance(model, Model) else model
    layers = _stacks(module)
    if not layers:
        raise InputError(
            "save_stack: expected a model with StackLinear layers, got none. BitStack makes them."
        )
    own = {f"{name}.{part}" for name in layers for part in PARTS}
    rest = bytes_of({k: v.detach().cpu().contiguous().clone()
                     for k, v in module.state_dict().items() if k not in own})  # fmt: skip
    blocks = [(name, _block(layers[name], level)) for name, level in _order(layers)]
    head = {
        "layers": {name: [layer.left.shape[2], layer.bias is not None]
                   for name, layer in layers.items()},
        "rest": [len(rest), _digest(rest)],
        "blocks": [[name, len(block), _digest(block)] for name, block in blocks],
    }  # fmt: skip
    text = json.dumps(head).encode()
    with atomic_file(Path(path)) as file:
        file.write(MAGIC + struct.pack("<Q", len(text)) + _digest(text).encode() + text + rest)
        for _, block in blocks:
            file.write(block)


def open_stack(module: nn.Module, path: Path | str, n_bytes: int | None = None) -> OpenedStack:
    """Read a stack file, or as much of it as there is, into a model of the same architecture.

    Layers become ``StackLinear`` with the blocks that were read; memory for the others is never
    taken. A block that the file holds in part is left out.

    Parameters
    ----------
    module : nn.Module
        With plain linear layers, whose values do not matter; it is changed.
    path : path
        File of ``save_stack``; it may have been cut off at any byte behind its first blocks.
    n_bytes : int, optional
        Read at most this number of bytes of the file.

    Raises
    ------
    InputError
        If the bytes do not hold a first block for each layer, or the model has other layers.
    StoreError
        If the file is no stack file, or a part that was read whole is damaged.
    """
    with Path(path).open("rb") as file:
        size = Path(path).stat().st_size
        room = size if n_bytes is None else min(size, n_bytes)
        head, start = _head(file.read(min(room, MOST_HEAD)), Path(path))
        ends = _ends(head, start)
        least = ends[len(head["layers"])]
        if room < least:
            raise InputError(
                f"open_stack: expected at least {least} bytes, one block for each layer, got "
                f"{room}. Read more of {path}."
            )
        file.seek(start)
        rest = _checked(file.read(head["rest"][0]), head["rest"][1], path)
        n = sum(end <= room for end in ends) - 1
        blocks: dict[str, list[bytes]] = {name: [] for name in head["layers"]}
        for name, length, digest in head["blocks"][:n]:
            blocks[name].append(_checked(file.read(length), digest, path))
    for name, (rank, bias) in head["layers"].items():
        _replace(module, name, rank, bias, blocks[name])
    missing = module.load_state_dict(tensors_of(rest), strict=False)
    own = {f"{name}.{part}" for name in blocks for part in PARTS}
    if missing.unexpected_keys or set(missing.missing_keys) - own:
        raise InputError(
            "open_stack: expected a model with the weights that the file names, got others: "
            f"{[*missing.unexpected_keys, *sorted(set(missing.missing_keys) - own)][:5]}."
        )
    levels = {name: len(own_blocks) for name, own_blocks in blocks.items()}
    return OpenedStack(module, levels, ends[n], ends[-1])


def _stacks(module: nn.Module) -> dict[str, StackLinear]:
    return {name: m for name, m in module.named_modules() if isinstance(m, StackLinear)}


def _order(layers: Mapping[str, StackLinear]) -> Iterator[tuple[str, int]]:
    """Yield blocks by level, and within a level by their fraction of their layer's energy."""
    added = dict[str, list[float]]()
    for name, layer in layers.items():
        left, right = (x.view(torch.float16).double() for x in (layer.left, layer.right))
        energy = (left @ right).square().sum((1, 2))
        added[name] = (energy / energy.sum().clamp(min=1e-300)).tolist()
    for level, each in enumerate(zip_longest(*added.values())):
        pairs = [(v, name) for v, name in zip(each, added, strict=True) if v is not None]
        yield from ((name, level) for _, name in sorted(pairs, key=lambda pair: -pair[0]))


def _block(layer: StackLinear, level: int) -> bytes:
    parts = (getattr(layer, part)[level] for part in PARTS)
    return b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)


def _head(content: bytes, path: Path) -> tuple[dict[str, Any], int]:
    begin = len(MAGIC) + 8 + 2 * DIGITS
    if not content.startswith(MAGIC) or len(content) < begin:
        raise StoreError(f"{path}: expected a file of save_stack, got another file or less of it.")
    (length,) = struct.unpack("<Q", content[len(MAGIC) : len(MAGIC) + 8])
    if length > MOST_HEAD or len(content) < begin + length:
        raise InputError(f"open_stack: expected at least {begin + length} bytes of {path}.")
    text, digest = content[begin : begin + length], content[begin - 2 * DIGITS : begin]
    return json.loads(_checked(text, digest.decode("ascii", "replace"), path)), begin + length


def _ends(head: Mapping[str, Any], start: int) -> list[int]:
    """Return where the rest ends, and each block."""
    ends = [start + head["rest"][0]]
    for _, length, _ in head["blocks"]:
        ends.append(ends[-1] + length)
    return ends


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=DIGITS).hexdigest()


def _checked(content: bytes, digest: str, path: Path | str) -> bytes:
    if _digest(content) != digest:
        raise StoreError(
            f"{path}: expected the bytes that were written, got others: it is damaged."
        )
    return content


def _replace(module: nn.Module, name: str, rank: int, bias: bool, blocks: list[bytes]) -> None:
    """Put a stack with these blocks in the place of a linear layer."""
    try:
        layer: Any = module.get_submodule(name)
        n_in, n_out = int(layer.in_features), int(layer.out_features)
    except AttributeError:
        raise InputError(
            f"open_stack: expected a linear layer {name!r} as in the file, got a "
            f"{type(module).__name__} without."
        ) from None
    stack = StackLinear(n_in, n_out, len(blocks), rank, bias)
    sizes = [getattr(stack, part)[0].numel() * getattr(stack, part).element_size()
             for part in PARTS]  # fmt: skip
    if sum(sizes) != len(blocks[0]):
        raise InputError(
            f"open_stack: expected a layer {name!r} of the size in the file, got {n_in} inputs and "
            f"{n_out} outputs."
        )
    for level, content in enumerate(blocks):
        for part, piece in zip(PARTS, _pieces(content, sizes), strict=True):
            into: Tensor = getattr(stack, part)
            into[level] = torch.frombuffer(piece, dtype=into.dtype).reshape(into[level].shape)
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, stack)


def _pieces(content: bytes, sizes: list[int]) -> Iterator[bytearray]:
    at = 0
    for size in sizes:
        yield bytearray(content[at : at + size])
        at += size
