"""Single values that many entries of an input hold, although its other entries hardly repeat.

A missing number arrives as zero, as the mean, or as -999; an unknown word as one code. Such a value
stands out from the distribution of its tensor, column or channel, wherever in the range it lies.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sonde.findings.evidence.record import Evidence
from sonde.tap import LiveStream
from sonde.tap.model.input_tensors import InputTensor, input_tensors

ROWS, NUMBERS = 2_048, 8_000_000
LEAST_ROWS: Final = 40
MOST_CHANNELS: Final = 64
SHARE: Final = (0.05, 0.95)
"""Fraction of the entries that hold the value."""
ALONE: Final = 3.0
"""Ratio of this fraction to that of the next frequent value."""
DISTINCT: Final = 20
"""Least number of other values."""
BESIDE: Final = 0.05
"""Fraction of the other entries on either side of a value that lies inside the range."""
SCATTERED: Final = 0.2
"""Fraction of these entries that another value follows: padding stands in runs."""

Where = Literal["inside", "far", "end", "padding"]


@dataclass(frozen=True, eq=False)
class Repeated:
    """A value of a tensor, or of one of its columns or channels, that repeats.

    Parameters
    ----------
    tensor : str
    axis, index : int
        The column or channel; index -1 for the whole tensor.
    value : float
    share, next : float
        Fraction of the entries that hold the value, and that hold the next frequent one.
    where : {"inside", "far", "end", "padding"}
        Between the other numbers, further from them than they are from each other, at an end of
        their range; or the code of padding in entries that the mask calls real.
    counts : Int[Tensor, "row"]
        Entries of each row that hold the value.
    """

    tensor: str
    axis: int
    index: int
    value: float
    share: float
    next: float
    where: Where
    counts: Int[Tensor, "row"]


@dataclass(frozen=True, eq=False)
class RepeatedValues:
    """The values that repeat, and the examples of the rows that were read, by planned order."""

    found: tuple[Repeated, ...]
    order: Int[Tensor, "row"]


def find_repeated_values(stream: LiveStream, _: Evidence) -> RepeatedValues | str:
    """Return the values that repeat in the input tensors, of at most 2,048 rows."""
    rows: dict[str, list[InputTensor]] = {}
    orders: list[Tensor] = []
    left = NUMBERS
    for batch in stream.inputs.batches(0, min(ROWS, len(stream.inputs))):
        given = input_tensors(stream.model.module, batch)
        for name, one in given.items():
            rows.setdefault(name, []).append(one)
            left -= one.x.numel()
        orders.append(batch.order)
        if left < 0:
            break
    order = torch.cat(orders) if orders else torch.zeros(0, dtype=torch.int64)
    if len(order) < LEAST_ROWS:
        return f"needs {LEAST_ROWS} rows or more"
    wholes: dict[str, InputTensor] = {}
    for name, parts in rows.items():
        same = len({p.x.shape[1:] for p in parts}) == 1 and sum(len(p.x) for p in parts)
        if same == len(order):
            whole = torch.cat([p.x.detach().cpu() for p in parts])
            wholes[name] = InputTensor(name, parts[0].kind, whole)
    repeated: list[Repeated] = []
    for one in wholes.values():
        if one.kind != "mask":
            repeated += _of_tensor(one, _real(one, wholes))
    return RepeatedValues(tuple(repeated), order)


def _real(one: InputTensor, every: Mapping[str, InputTensor]) -> Bool[Tensor, "row *position"]:
    """Return which entries of a tensor a mask of its first axes calls real; all without a mask."""
    for mask in every.values():
        fits = mask.kind == "mask" and mask.x.ndim == 2 and one.x.shape[:2] == mask.x.shape
        if fits and one.name != mask.name:
            real = mask.x != 0
            return real.reshape(*real.shape, *[1] * (one.x.ndim - 2)).expand_as(one.x)
    return torch.ones_like(one.x, dtype=torch.bool)


def _of_tensor(one: InputTensor, real: Bool[Tensor, "row *position"]) -> Iterator[Repeated]:
    """Yield the value of a few columns or channels, or that of the whole tensor."""
    x, is_codes = one.x if one.x.ndim > 1 else one.x[:, None], one.kind == "codes"
    real = real.reshape(x.shape)
    if is_codes:
        if _is_sequence(x) and (of_padding := _padding_inside(one, x, real)) is not None:
            yield of_padding
        return
    best, of = list[Repeated](), 0
    for axis in {2: [1], 3: [1, 2], 4: [1]}.get(x.ndim, []):
        n = x.shape[axis] if 1 < x.shape[axis] <= MOST_CHANNELS else 0
        parts = [_of_part(one, x.select(axis, i)[:, None], real.select(axis, i)[:, None], axis, i)
                 for i in range(n)]  # fmt: skip
        repeated = [part for part in parts if part is not None]
        if max((k.share for k in repeated), default=0.0) > max(
            (k.share for k in best), default=0.0
        ):
            best, of = repeated, n
    whole = None if 0 < 2 * len(best) <= of else _of_part(one, x, real, 0, -1)
    yield from best if whole is None else [whole]


def _is_sequence(x: Int[Tensor, "row position"]) -> bool:
    """Return whether columns of codes share one range, as the tokens of a text do."""
    top = x.flatten(1).amax(0)
    return len(top) > 2 and bool(top.max() <= 2 * top.median().clamp(min=1))


def _padding_inside(one: InputTensor, x: Tensor, real: Tensor) -> Repeated | None:
    """Return the code of padding if it stands in many entries that the mask calls real."""
    padding = torch.unique(x[~real])
    if len(padding) != 1 or not bool(real.any()):
        return None
    held = (x == padding) & real
    share = int(held.sum()) / int(real.sum())
    if share < SHARE[0] or int(held.sum()) < 2 * int(held.flatten(1).any(1).sum()):
        return None  # at most one end of the text in each row
    counts = held.flatten(1).sum(1)
    return Repeated(one.name, 0, -1, float(padding), share, 0.0, "padding", counts)


def _of_part(one: InputTensor, x: Tensor, real: Tensor, axis: int, i: int) -> Repeated | None:
    entries = x[real]
    values, counts = torch.unique(entries, return_counts=True)
    if len(values) <= DISTINCT:
        return None
    first, second = torch.topk(counts, 2).indices.tolist()
    value, n = values[first], len(entries)
    share, following = int(counts[first]) / n, int(counts[second]) / n
    if not SHARE[0] <= share <= SHARE[1] or share < ALONE * following:
        return None
    held = (x == value) & real
    if held.flatten(1).shape[1] > 1 and not _is_scattered(held, real):
        return None
    where = _where(values, counts, first)
    return Repeated(
        one.name, axis, i, float(value), share, following, where, held.flatten(1).sum(1)
    )


def _is_scattered(held: Tensor, real: Tensor) -> bool:
    """Return whether entries with the value are often followed by others, unlike padding."""
    axis = max(range(1, held.ndim), key=lambda a: held.shape[a])
    n = held.shape[axis]
    here, then = held.narrow(axis, 0, n - 1), held.narrow(axis, 1, n - 1)
    is_other = ~then & real.narrow(axis, 1, n - 1)
    return int((here & is_other).sum()) >= SCATTERED * int(here.sum())


def _where(values: Tensor, counts: Tensor, at: int) -> Where:
    others = counts.sum() - counts[at]
    below, above = counts[:at].sum() / others, counts[at + 1 :].sum() / others
    if float(below) >= BESIDE and float(above) >= BESIDE:
        return "inside"
    rest = torch.cat([values[:at], values[at + 1 :]]).double()
    span = float(rest[-1] - rest[0])
    gap = max(float(rest[0]) - float(values[at]), float(values[at]) - float(rest[-1]))
    return "far" if gap > span else "end"
