"""Inputs of a probe forward pass: repeats of a batch's rows, cut or extended."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sonde.core.inputs import InputBatch
from sonde.core.token_masks import NAMES, REAL, value_of_real

LENGTHS = (5, 7)
LENGTHS2 = (3, 4)
MOST_CHANNELS = 4
LINE = 2
"""Axes of inputs whose examples are a line of numbers: features, or steps (ids, a sound)."""
MAP = 4
"""Least number of axes of images: example, channel, height and width."""
IDS = ("input_ids", "inputs_embeds", "input_values", "input_features")


@dataclass(frozen=True)
class SizeChange:
    """Size that is changed in a probe forward pass.

    Parameters
    ----------
    kind : {"tokens", "space", "none"}
        Lengths of token axes, the size of some axes of float inputs, or nothing.
    axes : tuple of int
        The axes of float inputs that are resized.
    pos, pos2 : (int, int) or None
        Sizes of the token axis and of the decoder's at the first and at the other size.
    as_pairs : bool, default=False
        Whether float inputs with two axes as long as the token axis are resized along both.
    """

    kind: Literal["tokens", "space", "none"]
    axes: tuple[int, ...] = ()
    pos: tuple[int, int] | None = None
    pos2: tuple[int, int] | None = None
    as_pairs: bool = False


def source_length(batch: InputBatch) -> int | None:
    """Return the size of the token axis of a batch, or None if its inputs are no tokens."""
    if batch.mask is not None:
        return batch.mask.shape[1]
    for name in IDS[:2]:
        value = batch.kwargs.get(name)
        if isinstance(value, Tensor) and value.ndim >= 2:
            return value.shape[1]
    first = batch.args[0] if batch.args else None
    if isinstance(first, Tensor) and first.ndim == 2 and not first.is_floating_point():
        return first.shape[1]
    return None


def target_length(batch: InputBatch) -> int | None:
    """Return the size of the decoder's token axis, or None."""
    if batch.decoder_mask is not None:
        return batch.decoder_mask.shape[1]
    for name in ("decoder_input_ids", "decoder_inputs_embeds", "labels"):
        value = batch.kwargs.get(name)
        if isinstance(value, Tensor) and value.ndim >= 2 and name != "labels":
            return value.shape[1]
    return None


def token_ids(batch: InputBatch, axis: str = "pos") -> Tensor | None:
    """Return the ids of the tokens on an axis, (example, pos), or None."""
    name = "decoder_input_ids" if axis == "pos2" else "input_ids"
    first = batch.args[0] if batch.args and axis == "pos" else None
    ids = batch.kwargs.get(name, first)
    is_ids = isinstance(ids, Tensor) and ids.ndim == 2 and not ids.is_floating_point()
    return ids if is_ids else None


def token_axes(
    name: str, x: Tensor, length: int, batch: InputBatch, as_pairs: bool = False
) -> tuple[int, ...]:
    """Return the axes of an argument that hold the tokens, which are ``length`` many.

    Whole numbers hold tokens on every axis of this length, other numbers on the first axis after
    that of the examples: the next one holds features. Pairs of tokens have several such axes.
    Pixels beside token ids have none.

    Parameters
    ----------
    name : str
    x : Tensor
    length : int
    batch : InputBatch
        The batch of the argument, which knows the axes of some arguments.
    as_pairs : bool, default=False
        Take unknown arguments for pairs if they have several axes of this length.
    """
    axes = tuple(axis for axis in range(1, x.ndim) if x.shape[axis] == length)
    if name in batch.token_axes:
        return tuple(axis for axis in axes if axis in batch.token_axes[name])
    if len(axes) > 1 and (as_pairs or not x.is_floating_point()):
        return axes
    is_map = x.is_floating_point() and x.ndim >= MAP
    return axes[:1] if axes[:1] == (1,) and not (is_map and token_ids(batch) is not None) else ()


def changes(batch: InputBatch) -> list[SizeChange]:
    """Return the changes to try, best first; the last one keeps every size."""
    length, length2 = source_length(batch), target_length(batch)
    same = SizeChange(
        "none",
        pos=None if length is None else (length, length),
        pos2=None if length2 is None else (length2, length2),
    )
    if length is not None:
        pos2 = None if length2 is None else LENGTHS2
        changes_of = [SizeChange("tokens", pos=LENGTHS, pos2=pos2)]
        if _may_hold_pairs(batch, length):
            changes_of.append(SizeChange("tokens", pos=LENGTHS, pos2=pos2, as_pairs=True))
        if batch.placeholder is not None:  # none of them may be cut off
            changes_of.append(SizeChange("tokens", pos=(length, length + 2), pos2=pos2))
        return [*changes_of, same]
    if length2 is not None:
        return [same]
    ndim = max((x.ndim for x in _floats(batch)), default=0)
    axes = {4: [(2, 3)], 5: [(2, 3, 4)]}.get(ndim, [])
    if ndim >= 4 and any(x.ndim == ndim and x.shape[-1] <= MOST_CHANNELS for x in _floats(batch)):
        axes = [*axes, tuple(range(1, ndim - 1))]
    if ndim == 3:
        size = next(x for x in _floats(batch) if x.ndim == 3).shape[1]
        steps = SizeChange("space", (1,), pos=(size, 2 * size))
        return [steps, SizeChange("space", (2,)), SizeChange("none", pos=None)]
    if ndim == LINE:
        axes = [(1,)]
    return [*(SizeChange("space", a) for a in axes), same]


def _may_hold_pairs(batch: InputBatch, length: int) -> bool:
    named = {str(i): x for i, x in enumerate(batch.args)} | batch.kwargs
    return any(
        name not in batch.token_axes and x.is_floating_point() and x.shape[1:].count(length) > 1
        for name, x in named.items()
        if isinstance(x, Tensor)
    )


def _floats(batch: InputBatch) -> list[Tensor]:
    values = [*batch.args, *batch.kwargs.values()]
    return [x for x in values if isinstance(x, Tensor) and x.is_floating_point()]


def sized(
    batch: InputBatch, change: SizeChange, n_rows: int, which: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments of a probe forward pass on ``n_rows`` rows.

    NaN and infinity are replaced by random numbers: they reach all that follows, whatever changes.
    """
    n = len(batch)
    length, length2 = source_length(batch), target_length(batch)
    resized = change.kind == "tokens"
    to = change.pos[which] if resized and change.pos else None
    to2 = change.pos2[which] if resized and change.pos2 else None

    repeated = _repeated(batch, length)
    doubled = change.axes if change.kind == "space" and which == 1 else ()

    def fit(name: str, x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        if name in batch.packed:
            return _finite(name, _of_packed(x, batch.packed[name], n_rows))
        own, new, again = length, to, repeated
        if name.startswith("decoder_") or name == "labels":
            own, new, again = length2, to2, None
        axes = () if own is None else token_axes(name, x, own, batch, change.as_pairs)
        x = _as_rows(x, n, n_rows)
        for axis in doubled if x.is_floating_point() else ():
            x = _along(x, axis, 2 * x.shape[axis]) if axis < x.ndim else x
        return _finite(name, _lengthened(x, axes, own, new, again))

    args = tuple(fit(str(i), x) for i, x in enumerate(batch.args))
    kwargs = {name: fit(name, x) for name, x in batch.kwargs.items()}
    kwargs = {n: _unpadded(n, x, batch.kwargs[n], batch.mask) for n, x in kwargs.items()}
    return args, kwargs


def _repeated(batch: InputBatch, length: int | None) -> int | None:
    """Return the index of the last non-placeholder token, or None without placeholders."""
    if batch.placeholder is None or length is None:
        return None
    return int((~batch.placeholder).all(dim=0).nonzero().max())


def _finite(name: str, x: Any) -> Any:
    """Return an argument without NaN or infinity, except in additive attention masks."""
    if not isinstance(x, Tensor) or not x.is_floating_point() or "mask" in name.lower():
        return x
    is_number = x.isfinite()
    numbers, others = x[is_number], x[~is_number]
    is_mask = len(numbers) > 0 and not bool(numbers.any()) and bool((others == -torch.inf).all())
    if not len(others) or is_mask:
        return x
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    return torch.where(is_number, x, noise.to(x))


def _unpadded(name: str, x: Any, given: Any, mask: Tensor | None) -> Any:
    """Return an argument; in a padding mask every token becomes real."""
    if not isinstance(x, Tensor):
        return x
    if name in NAMES and mask is not None and given.shape == mask.shape:
        return torch.full_like(x, value_of_real(given, mask.to(given.device)))
    if name.endswith(REAL):
        return torch.ones_like(x)
    if mask is None or given.dtype != torch.bool:
        return x
    if given.shape == mask.shape and torch.equal(given.to(mask.device), ~mask):
        return torch.zeros_like(x)
    return x


def _as_rows(x: Tensor, n: int, n_rows: int) -> Tensor:
    axis = next((a for a in range(min(x.ndim, 2)) if x.shape[a] == n), None)
    if axis is None:
        return x
    return x.index_select(axis, (torch.arange(n_rows) % n).to(x.device))


def _of_packed(x: Tensor, counts: Tensor, n_rows: int) -> Tensor:
    """Return ``n_rows`` examples of an argument that concatenates all examples."""
    parts = x.split(counts.tolist())
    return torch.cat([parts[i % len(parts)] for i in range(n_rows)])


def _lengthened(
    x: Tensor, axes: tuple[int, ...], length: int | None, to: int | None, repeated: int | None
) -> Tensor:
    """Return a tensor with ``to`` tokens on these axes; more than there are repeat a token."""
    if length is None or to is None:
        return x
    index = torch.arange(to) % length
    if repeated is not None:
        index[length:] = repeated
    for axis in axes:
        x = x.index_select(axis, index.to(x.device))
    return x


def _along(x: Tensor, axis: int, size: int) -> Tensor:
    return x.index_select(axis, (torch.arange(size) % x.shape[axis]).to(x.device))
