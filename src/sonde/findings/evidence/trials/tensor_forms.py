"""Other forms of each input tensor: units, signs, orders, shifts, sizes, masks and partners."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import torch
from jaxtyping import Int
from torch import Tensor

from sonde.findings.words.text import listed
from sonde.tap.model.input_tensors import InputTensor, Tensors

Change = Callable[[Tensors, Int[Tensor, "row"]], Tensors]
"""New values of some tensors, given all of them and the examples of the rows in planned order."""

MOST_COLUMNS: Final = 64
MOST_EXCHANGED: Final = 24
FACTORS: Final = (0.5, 2.0, 0.1, 10.0, 0.01, 100.0, 0.001, 1000.0)
OFFSETS: Final = (1.0, 4.0)
STEPS: Final = (1, 2, 3, 4, 8)
ZOOMS: Final = (0.5, 0.67, 0.8, 1.25, 1.5, 2.0)
SEQUENCE: Final = 8
"""Least entries of a vector that may be a signal, which can be shifted or resampled."""
MODE: Final = (0.05, 0.9)
"""Fraction of the rows in which a value occurs that may stand for a missing number."""


@dataclass(frozen=True, eq=False)
class TensorForm:
    """One change of the inputs.

    Parameters
    ----------
    words : str
        The change, in words that follow "with its inputs".
    line : str
        The change as Python code on tensors with the names of the arguments, rows first.
    change : callable
    affine : (str, int, int) or None
        Tensor, axis and index of a column or channel, if the form is a factor and an offset of it;
        index -1 means all of them.
    numbers : (float, float)
        This factor and this offset.
    tensors : tuple of str
        The tensors that it changes.
    columns : tuple of int
        Columns or channels of this tensor; empty for all of them.
    """

    words: str
    line: str
    change: Change
    affine: tuple[str, int, int] | None = None
    numbers: tuple[float, float] = (1.0, 0.0)
    tensors: tuple[str, ...] = ()
    columns: tuple[int, ...] = ()

    @property
    def n_numbers(self) -> int:
        """How many of factor and offset change anything."""
        return (self.numbers[0] != 1) + (self.numbers[1] != 0)


def tensor_forms(given: Mapping[str, InputTensor], names: Sequence[str] = ()) -> list[TensorForm]:
    """Return the changes to try on each tensor: parts of a tensor first, then whole tensors.

    Parameters
    ----------
    given : mapping of str to InputTensor
        Some rows, which say the range of each column.
    names : sequence of str, default=()
        Names of the columns, if the only tensor is a table.
    """
    forms: list[TensorForm] = []
    for one in given.values():
        for axis in channel_axes(one):
            forms += _of_channels(one, axis, names if len(given) == 1 else ())
    forms += _partners(given)
    for one in given.values():
        forms += _whole(one)
    return forms


def index_of(axis: int, i: int, name: str) -> str:
    """Return the code that selects a column or channel of a tensor; all entries if ``i`` is -1."""
    return name if i < 0 else f"{name}[{':, ' * axis}{i}]"


def place_of(one: InputTensor, axis: int, i: int, names: Sequence[str] = ()) -> str:
    """Describe a column or channel of a tensor; the whole tensor if ``i`` is -1."""
    if i < 0:
        return one.name
    if i < len(names) == one.x.shape[1] and axis == 1 and one.x.ndim == 2:
        return names[i]
    if one.x.ndim == 2:
        return f"column {i} of {one.name}"
    return (
        f"channel {i} (axis {axis}) of {one.name}"
        if one.x.ndim == 3
        else (f"channel {i} of {one.name}")
    )


def affine_form(
    one: InputTensor, axis: int, i: int, factor: float, offset: float, names: Sequence[str] = ()
) -> TensorForm:
    """Return the form in which a column or channel is multiplied and an offset is added."""
    where, code = place_of(one, axis, i, names), index_of(axis, i, one.name)
    times = f" multiplied by {factor:.4g}" if factor != 1 else ""
    plus = f"{' and' if times else ''} {'in' if offset > 0 else 'de'}creased by {abs(offset):.4g}"
    line = f"{code} = {code}" if factor == 1 else f"{code} = {factor:.6g} * {code}"
    line += f" {'-' if offset < 0 else '+'} {abs(offset):.6g}" if offset else ""

    def change(given: Tensors, _: Tensor) -> Tensors:
        x = given[one.name]
        if i < 0:
            return {one.name: factor * x + offset}
        changed = x.clone()
        changed.select(axis, i).mul_(factor).add_(offset)
        return {one.name: changed}

    words = f"with {where}{times}{plus if offset else ''}"
    columns = () if i < 0 else (i,)
    return TensorForm(
        words, line, change, (one.name, axis, i), (factor, offset), (one.name,), columns
    )


def held_form(
    places: Sequence[tuple[InputTensor, int, int]], names: Sequence[str] = ()
) -> TensorForm:
    """Return the form in which columns or channels hold their medians in every row.

    Parameters
    ----------
    places : sequence of (InputTensor, int, int)
        Tensor, axis and index of each.
    names : sequence of str, default=()
        Names of the columns, if the only tensor is a table.
    """
    held = [(*place, float(place[0].x.select(*place[1:]).double().nanmedian())) for place in places]

    def change(given: Tensors, _: Tensor) -> Tensors:
        changed: Tensors = {}
        for one, axis, i, median in held:
            x = changed.get(one.name, given[one.name]).clone()
            x.select(axis, i).fill_(median)
            changed = {**changed, one.name: x}
        return changed

    where = listed([place_of(*place, names) for place in places], len(places))
    tensors = tuple(dict.fromkeys(one.name for one, _, _ in places))
    return TensorForm(
        f"with {where} held at {'its median' if len(places) == 1 else 'their medians'}",
        "; ".join(f"{index_of(axis, i, one.name)} = {v:.6g}" for one, axis, i, v in held),
        change,
        tensors=tensors,
        columns=tuple(i for _, _, i in places) if len(tensors) == 1 else (),
    )


def on_tensor(
    name: str,
    words: str,
    line: str,
    change: Callable[[Tensor], Tensor],
    columns: tuple[int, ...] = (),
) -> TensorForm:
    """Return the form in which one tensor, or some of its columns, is changed by itself."""
    return TensorForm(
        words, line, lambda given, _: {name: change(given[name])}, tensors=(name,), columns=columns
    )


def channel_axes(one: InputTensor) -> list[int]:
    """Return the axes along which a tensor may have columns or channels, each with its meaning."""
    if one.kind == "mask" or one.x.ndim < 2:
        return []
    if one.x.ndim == 3 and 1 in one.x.shape[1:]:
        return []  # a series of one channel: the other axis is time
    axes = {2: [1], 3: [1, 2], 4: [1]}.get(one.x.ndim, [])
    return [axis for axis in axes if 1 < one.x.shape[axis] <= MOST_COLUMNS]


def _whole(one: InputTensor) -> Iterator[TensorForm]:
    name, x = one.name, one.x
    if one.kind == "mask":
        yield on_tensor(name, f"with {name} inverted", f"{name} = ~{name}" if x.dtype == torch.bool
                        else f"{name} = 1 - {name}", _inverted)  # fmt: skip
        return
    if one.kind == "numbers":
        for factor in (-1.0, 1 / 255, 255.0, *FACTORS):
            yield affine_form(one, 1, -1, factor, 0.0)
        mean, spread = float(x.mean()), float(x.std()) or 1.0
        for offset in (sign * s * spread for s in OFFSETS for sign in (1, -1)):
            yield affine_form(one, 1, -1, 1.0, offset)
        low, span = float(x.min()), float(x.max() - x.min()) or 1.0
        for factor, offset in ((1 / spread, -mean / spread), (1 / span, -low / span),
                               (2 / span, -2 * low / span - 1)):  # fmt: skip
            yield affine_form(one, 1, -1, factor, offset)
    else:
        top = int(x.max())
        for step in (1, -1):
            yield on_tensor(
                name, f"with the codes of {name} {'in' if step > 0 else 'de'}creased by 1",
                f"{name} = ({name} + {step}) % {top + 1}",
                lambda x, s=step, t=top: (x + s) % (t + 1),
            )  # fmt: skip
    if x.ndim == 2 and x.shape[1] < SEQUENCE and one.kind == "numbers":
        return
    for axis in range(1, x.ndim):
        if x.shape[axis] > 1:
            yield from _of_order(one, axis)
    for a, b in combinations(range(1, x.ndim), 2):
        if x.shape[a] == x.shape[b] > 1:
            yield on_tensor(name, f"with axes {a} and {b} of {name} exchanged",
                            f"{name} = {name}.transpose({a}, {b})",
                            lambda x, a=a, b=b: x.transpose(a, b))  # fmt: skip


def _of_order(one: InputTensor, axis: int) -> Iterator[TensorForm]:
    name, n = one.name, one.x.shape[axis]
    where = f" along axis {axis}" if one.x.ndim > 2 else ""
    yield on_tensor(name, f"with the order of {name} reversed{where}",
                    f"{name} = {name}.flip({axis})", lambda x: x.flip(axis))  # fmt: skip
    for step in (sign * s for s in STEPS if s <= n // 3 for sign in (1, -1)):
        yield on_tensor(
            name, f"with {name} moved by {step:+d}{where}", f"{name} = {name}.roll({step}, {axis})",
            lambda x, s=step: x.roll(s, axis),
        )  # fmt: skip
    if one.kind == "numbers" and n >= SEQUENCE and (axis > 1 or one.x.ndim < 4):
        yield from _of_size(one, axis)


def _of_size(one: InputTensor, axis: int) -> Iterator[TensorForm]:
    """Yield a sequence, or an image, that is larger or smaller about its centre."""
    name, axes = one.name, (2, 3) if one.x.ndim == 4 else (axis,)
    sizes = "height and width" if len(axes) > 1 else f"axis {axis}"
    for zoom in ZOOMS if axis == axes[0] else ():
        lines = [f"{name} = {name}.index_select({a}, {_nearest(one.x.shape[a], zoom)[0]})"
                 for a in axes]  # fmt: skip

        def change(x: Tensor, zoom: float = zoom) -> Tensor:
            for a in axes:
                x = x.index_select(a, _nearest(x.shape[a], zoom)[1])
            return x

        words = f"with {name} resized to {zoom:.3g} times its {sizes}"
        yield on_tensor(name, words, "; ".join(lines), change)


def _nearest(n: int, zoom: float) -> tuple[str, Int[Tensor, "position"]]:
    """Return code and index of the entries that a resized sequence takes, borders repeated."""
    centre = (n - 1) / 2
    at = ((torch.arange(n) - centre) / zoom + centre).round().long().clamp(0, n - 1)
    code = f"((torch.arange({n}) - {centre}) / {zoom:.6g} + {centre}).round().long()"
    return f"{code}.clamp(0, {n - 1})", at


def _inverted(x: Tensor) -> Tensor:
    return ~x if x.dtype == torch.bool else 1 - x


def _partners(given: Mapping[str, InputTensor]) -> Iterator[TensorForm]:
    """Yield exchanges of tensors of one shape, and masks made from the padding of a tensor."""
    for a, b in combinations(given.values(), 2):
        if a.x.shape == b.x.shape and a.kind == b.kind:
            yield TensorForm(
                f"with {a.name} and {b.name} exchanged", f"{a.name}, {b.name} = {b.name}, {a.name}",
                lambda x, _, a=a.name, b=b.name: {a: x[b], b: x[a]}, tensors=(a.name, b.name),
            )  # fmt: skip
    for mask in (one for one in given.values() if one.kind == "mask" and one.x.ndim == 2):
        for one in given.values():
            if one.kind == "mask" or one.x.shape[:2] != mask.x.shape or one.x.ndim > 3:
                continue
            code = f"{one.name} != 0" if one.x.ndim == 2 else f"({one.name} != 0).any(-1)"
            yield TensorForm(
                f"with {mask.name} made from the padding of {one.name}", f"{mask.name} = {code}",
                lambda x, _, m=mask.name, o=one.name: {m: _real(x[o]).to(x[m].dtype)},
                tensors=(mask.name,),
            )  # fmt: skip


def _real(x: Tensor) -> Tensor:
    return (x != 0).reshape(*x.shape[:2], -1).any(-1)


def _of_channels(one: InputTensor, axis: int, names: Sequence[str]) -> Iterator[TensorForm]:
    name, n = one.name, one.x.shape[axis]
    for i in range(n) if one.kind == "numbers" else ():
        values = one.x.select(axis, i)
        spread, mean = float(values.std()), float(values.mean())
        if not spread > 0:
            continue
        for factor in (-1.0, *FACTORS):
            yield affine_form(one, axis, i, factor, 0.0, names)
        for offset in (sign * s * spread for s in OFFSETS for sign in (1, -1)):
            yield affine_form(one, axis, i, 1.0, offset, names)
        yield affine_form(one, axis, i, 1.0, -mean, names)
        yield affine_form(one, axis, i, 1 / spread, -mean / spread, names)
        yield affine_form(one, axis, i, 5 / 9, -160 / 9, names)
        yield affine_form(one, axis, i, 9 / 5, 32.0, names)
        yield from _curves(one, axis, i, names)
        yield from _missing(one, axis, i, names)
    for i, j in combinations(range(n), 2) if n <= MOST_EXCHANGED else ():
        order = list(range(n))
        order[i], order[j] = j, i
        places = [place_of(one, axis, k, names) for k in (i, j)]
        index = f"[{':, ' * axis}[{i}, {j}]]"
        yield on_tensor(
            name, f"with {places[0]} and {places[1]} exchanged",
            f"{name}{index} = {name}[{':, ' * axis}[{j}, {i}]]",
            lambda x, o=tuple(order): x.index_select(axis, torch.tensor(o)), (i, j),
        )  # fmt: skip


def _on_channel(
    one: InputTensor, axis: int, i: int, of: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    def change(x: Tensor) -> Tensor:
        changed = x.clone()
        changed.select(axis, i).copy_(of(x.select(axis, i)))
        return changed

    return change


def _curves(one: InputTensor, axis: int, i: int, names: Sequence[str]) -> Iterator[TensorForm]:
    values, where = one.x.select(axis, i), place_of(one, axis, i, names)
    code = index_of(axis, i, one.name)
    low, high = float(values.min()), float(values.max())
    curves: list[tuple[str, str, Callable[[Tensor], Tensor], bool]] = [
        ("the logarithm of", "{}.log()", torch.log, low > 0),
        ("the logarithm of 1 plus", "{}.log1p()", torch.log1p, low >= 0),
        ("e to the power of", "{}.exp()", torch.exp, low > -30 and high < 30),
        ("the root of", "{}.sqrt()", torch.sqrt, low >= 0),
        ("the square of", "{}.square()", torch.square, True),
    ]
    for words, line, curve, is_able in curves:
        if is_able:
            yield on_tensor(one.name, f"with {words} {where}", f"{code} = {line.format(code)}",
                            _on_channel(one, axis, i, curve), (i,))  # fmt: skip


def _missing(one: InputTensor, axis: int, i: int, names: Sequence[str]) -> Iterator[TensorForm]:
    """Yield the column with the value that stands for missing numbers replaced by the mean."""
    values = one.x.select(axis, i).flatten()
    kinds, counts = torch.unique(values, return_counts=True)
    at = int(counts.argmax())
    share, value = int(counts[at]) / len(values), float(kinds[at])
    if not MODE[0] <= share <= MODE[1] or len(kinds) < SEQUENCE:
        return
    mean = float(values[values != value].mean())
    code = index_of(axis, i, one.name)
    yield on_tensor(
        one.name, f"with {value:.4g} in {place_of(one, axis, i, names)} replaced by the mean",
        f"{code}[{code} == {value:.9g}] = {mean:.6g}",
        _on_channel(one, axis, i, lambda x: torch.where(x == value, mean, x)), (i,),
    )  # fmt: skip
