"""The plain tensors inside a tensor of any kind: subclasses, sparse, quantised, nested."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from sonde.tap.hooks.sharding import whole_tensor

PLAIN = (Tensor, nn.Parameter, nn.Buffer)
COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def is_plain(x: Tensor) -> bool:
    """Return whether a tensor is a dense one of torch, with numbers of its own.

    Parameters
    ----------
    x : Tensor
        Tensor to ask about.

    Examples
    --------
    >>> is_plain(torch.ones(2)), is_plain(torch.eye(2).to_sparse())
    (True, False)
    """
    dense = x.layout is torch.strided and not x.is_quantized and not x.is_nested
    return type(x) in PLAIN and dense and not x.is_meta and not is_lazy(x)


def on_host(x: Tensor) -> Tensor:
    """Return a tensor that is not plain on the CPU: a device may wrap its tensors in a kind.

    A tensor that is sharded over ranks is gathered, for which every rank has to call.

    Parameters
    ----------
    x : Tensor
        Tensor of any kind and device.
    """
    x = x if is_plain(x) else whole_tensor(x.detach())
    return x if is_plain(x) or is_lazy(x) or x.is_cpu or x.is_meta else x.detach().cpu()


def kind_of(x: Tensor) -> str:
    """Return the kind of a tensor that is not plain, such as "Int8Tensor" or "sparse_csr".

    Parameters
    ----------
    x : Tensor
        Tensor that is not plain.
    """
    if is_lazy(x):
        return "lazy"
    if type(x) not in PLAIN:
        return type(x).__name__
    if x.is_meta:
        return "meta"
    if x.is_quantized:
        return str(x.dtype).removeprefix("torch.")
    return "nested" if x.is_nested else str(x.layout).removeprefix("torch.")


def pieces(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the plain tensors that a tensor consists of, by name; none of a lazy one.

    Examples
    --------
    >>> [name for name, _ in pieces(torch.eye(2).to_sparse())]
    ['indices', 'values']
    """
    if is_lazy(x):
        return
    x = x.detach()
    flatten: Any = getattr(x, "__tensor_flatten__", None)
    if type(x) not in PLAIN and flatten is not None:
        names, context = flatten()
        for name in names:
            yield from _below(name, getattr(x, name))
        yield from _of_settings("settings", context)
    elif type(x) not in PLAIN:
        if x.untyped_storage().nbytes():
            yield "values", x.as_subclass(Tensor)
        yield from _of_settings("settings", vars(x))
    elif x.layout is torch.sparse_coo:
        both = x.coalesce()
        yield from (("indices", both.indices()), ("values", both.values()))
    elif x.layout in COMPRESSED:
        by_row = x.layout in (torch.sparse_csr, torch.sparse_bsr)
        ends, which = (
            (x.crow_indices(), x.col_indices()) if by_row else (x.ccol_indices(), x.row_indices())
        )
        yield from (("ends", ends), ("indices", which), ("values", x.values()))
    elif x.is_quantized:
        yield "values", x.int_repr()
        yield from _of_settings("scheme", _scheme(x))
    elif x.is_nested:
        for i, part in enumerate(x.unbind()):
            yield f"row {i}", part
    elif x.layout is not torch.strided:
        yield "values", x.to_dense()
    else:
        yield "", x


def tensor_hash(x: Tensor) -> str:
    """Return a hash of every byte of a tensor of any kind, and of its shape and type.

    Parameters
    ----------
    x : Tensor
        Tensor to hash.
    """
    digest = hashlib.sha256()
    for name, part in pieces(x):
        digest.update(f"{name}|{tuple(part.shape)}|{part.dtype}\n".encode())
        if not part.is_meta and part.numel():
            digest.update(words(part).cpu().numpy().tobytes())
    return digest.hexdigest()


def words(x: Tensor) -> Tensor:
    """Return the bytes of a plain tensor, as a vector."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def _below(name: str, x: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(x, Tensor):
        yield from ((f"{name}.{inner}" if inner else name, part) for inner, part in pieces(x))


def _scheme(x: Tensor) -> dict[str, Any]:
    if x.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return {"scale": x.q_scale(), "zero": x.q_zero_point()}
    return {"scale": x.q_per_channel_scales(), "zero": x.q_per_channel_zero_points()}


def _of_settings(name: str, held: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors among settings, and the plain numbers and words as bytes."""
    if isinstance(held, Tensor):
        yield from _below(name, held)
    elif isinstance(held, bool | int | float | str | torch.dtype):
        yield name, torch.tensor([*repr(held).encode()], dtype=torch.uint8)
    elif isinstance(held, dict):
        for key, value in held.items():
            yield from _of_settings(f"{name}.{key}", value, depth)
    elif isinstance(held, list | tuple):
        for i, value in enumerate(held):
            yield from _of_settings(f"{name}.{i}", value, depth)
    elif depth < 2:
        yield from _of_settings(name, getattr(held, "__dict__", None), depth + 1)
