"""What can be done to the numbers, codes and masks of some features of some rows."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tools.faultgen.tasks import Spec
from torch import Tensor

Change = Callable[[Tensor, torch.Generator], Tensor]
"""Change of values (row, ...): it gives values of the same shape, by its own random numbers."""
Maker = Callable[[random.Random, Tensor, Spec], Change]


@dataclass(frozen=True)
class Operator:
    """A change with drawn strength.

    Parameters
    ----------
    name : str
    role : str
        Of the tensors that it acts on.
    make : callable
        Draws the strength, given the healthy values at the place.
    needs : str
        An axis that the tensor must have, or "several" features; "" for neither.
    parts : tuple of str
        Parts of the features on which it is another fault than on the rest.
    """

    name: str
    role: str
    make: Maker
    needs: str = ""
    parts: tuple[str, ...] = ("whole", "one", "some")


def axis_of(spec: Spec, name: str) -> int:
    """Return the position of an axis, the row being 0."""
    return spec.axes.index(name) + 1


def _scale(draw: random.Random, _: Tensor, __: Spec) -> Change:
    factor = draw.choice((0.01, 0.0393701, 0.1, 0.4536, 1.8, 2.54, 10, 60, 100, 255, 1000))
    return lambda x, _: x * factor


def _offset(draw: random.Random, x: Tensor, _: Spec) -> Change:
    more = draw.choice((-1, 1)) * draw.uniform(1, 5) * float(x.std().clamp(min=1e-6))
    return lambda x, _: x + more


def _clip(draw: random.Random, x: Tensor, _: Spec) -> Change:
    low, high = draw.choice(((0.0, 0.4), (0.6, 1.0), (0.3, 0.7)))
    flat = x.flatten()[:100_000].float()
    bounds = [float(flat.quantile(q)) for q in (low, high)]
    return lambda x, _: x.clamp(*bounds)


def _quantise(draw: random.Random, x: Tensor, _: Spec) -> Change:
    step = draw.choice((2.0, 4.0, 8.0)) * float(x.std().clamp(min=1e-6)) / 2
    return lambda x, _: (x / step).round() * step


def _missing(value: Callable[[Tensor], float]) -> Maker:
    def make(draw: random.Random, x: Tensor, _: Spec) -> Change:
        share, filled = draw.uniform(0.15, 0.6), value(x)

        def change(x: Tensor, g: torch.Generator) -> Tensor:
            return torch.where(torch.rand(x.shape, generator=g) < share, filled, x)

        return change

    return make


def _constant(draw: random.Random, x: Tensor, _: Spec) -> Change:
    value = float(x.flatten()[draw.randrange(x.numel())]) if draw.random() < 0.5 else 0.0
    return lambda x, _: torch.full_like(x, value)


def _noise(draw: random.Random, x: Tensor, _: Spec) -> Change:
    size = draw.uniform(1, 3) * float(x.std().clamp(min=1e-6))
    return lambda x, g: x + size * torch.randn(x.shape, generator=g)


def _logarithm(_: random.Random, x: Tensor, __: Spec) -> Change:
    if float(x.min()) < 0:
        return lambda x, _: x.sign() * x.abs().log1p()
    return lambda x, _: x.log1p()


def _rolled(axis: str) -> Maker:
    def make(draw: random.Random, x: Tensor, spec: Spec) -> Change:
        at = axis_of(spec, axis)
        by = draw.choice([k for k in (-3, -2, -1, 1, 2, 3) if abs(k) < x.shape[at]])
        return lambda x, _: x.roll(by, at)

    return make


def _reversed(axis: str) -> Maker:
    def make(_: random.Random, __: Tensor, spec: Spec) -> Change:
        at = axis_of(spec, axis)
        return lambda x, _: x.flip(at)

    return make


def _exchanged(draw: random.Random, x: Tensor, spec: Spec) -> Change:
    at = spec.feature_axis or 1
    i, j = draw.sample(range(x.shape[at]), 2)
    order = list(range(x.shape[at]))
    order[i], order[j] = j, i
    return lambda x, _: x.index_select(at, torch.tensor(order))


def _permuted(draw: random.Random, x: Tensor, spec: Spec) -> Change:
    at = spec.feature_axis or 1
    order = list(range(x.shape[at]))
    kind = draw.choice(("drawn", "reversed", "rolled"))
    if kind == "drawn":
        draw.shuffle(order)
    elif kind == "reversed":
        order.reverse()
    else:
        order = order[1:] + order[:1]
    return lambda x, _: x.index_select(at, torch.tensor(order))


def _resampled(draw: random.Random, x: Tensor, spec: Spec) -> Change:
    at = axis_of(spec, "time")
    rate, n = draw.choice((0.5, 0.67, 1.5, 2.0)), x.shape[at]
    where = (torch.arange(n) * rate).long().clamp(max=n - 1)
    return lambda x, _: x.index_select(at, where)


def _zoomed(draw: random.Random, x: Tensor, _: Spec) -> Change:
    n, m = x.shape[-2:]
    rate = draw.choice((0.6, 0.75, 1.35, 1.6))
    rows = ((torch.arange(n) - n / 2) / rate + n / 2).long().clamp(0, n - 1)
    columns = ((torch.arange(m) - m / 2) / rate + m / 2).long().clamp(0, m - 1)
    return lambda x, _: x.index_select(-2, rows).index_select(-1, columns)


def _cropped(draw: random.Random, x: Tensor, _: Spec) -> Change:
    by = draw.choice((1, 2, 3))

    def change(x: Tensor, _: torch.Generator) -> Tensor:
        return torch.nn.functional.pad(x[..., by:, by:], (0, by, 0, by))

    return change


def _turned(draw: random.Random, _: Tensor, __: Spec) -> Change:
    return draw.choice(
        (
            lambda x, _: x.flip(-1),
            lambda x, _: x.flip(-2),
            lambda x, _: x.transpose(-1, -2),
            lambda x, _: x.rot90(1, (-2, -1)),
            lambda x, _: x.rot90(-1, (-2, -1)),
        )
    )


def _negative(_: random.Random, x: Tensor, __: Spec) -> Change:
    top = float(x.max() + x.min())
    return lambda x, _: top - x


def _stale(draw: random.Random, x: Tensor, spec: Spec) -> Change:
    """Return codes of an encoder that was fitted on other data, with another order."""
    by_column = spec.axes == ("column",)
    tops = x.flatten(1).amax(0).tolist() if by_column else [int(x.max())]
    is_drawn, orders = draw.random() < 0.5, []
    for top in tops:
        order = list(range(int(top) + 1))
        if is_drawn:
            draw.shuffle(order)
        else:
            order = order[1:] + order[:1]
        orders.append(torch.tensor(order))

    def change(x: Tensor, _: torch.Generator) -> Tensor:
        columns = x.unbind(1) if by_column else [x]
        new = [
            torch.where(c < len(o), o[c.clamp(max=len(o) - 1)], c)
            for c, o in zip(columns, orders, strict=True)
        ]
        return torch.stack(new, 1) if by_column else new[0]

    return change


def _unknown(draw: random.Random, _: Tensor, __: Spec) -> Change:
    share = draw.uniform(0.3, 0.7)

    def change(x: Tensor, g: torch.Generator) -> Tensor:
        return torch.where(torch.rand(x.shape, generator=g) < share, 0, x)

    return change


def _sentinel(x: Tensor) -> float:
    return -999.0 if float(x.min()) > -900 else -9999.0


NUMBERS = (
    Operator("scale", "numbers", _scale),
    Operator("offset", "numbers", _offset),
    Operator("sign", "numbers", lambda *_: lambda x, _: -x),
    Operator("clip", "numbers", _clip),
    Operator("quantise", "numbers", _quantise),
    Operator("sentinel", "numbers", _missing(_sentinel)),
    Operator("missing as zero", "numbers", _missing(lambda _: 0.0)),
    Operator("constant", "numbers", _constant, parts=("one", "some")),
    Operator("noise", "numbers", _noise),
    Operator("logarithm", "numbers", _logarithm),
    Operator("exchange", "numbers", _exchanged, "several", ("whole",)),
    Operator("order", "numbers", _permuted, "several", ("whole",)),
    Operator("shift in time", "numbers", _rolled("time"), "time"),
    Operator("reversed time", "numbers", _reversed("time"), "time"),
    Operator("resampled", "numbers", _resampled, "time", ("whole",)),
    Operator("zoom", "numbers", _zoomed, "height", ("whole",)),
    Operator("crop", "numbers", _cropped, "height", ("whole",)),
    Operator("turned", "numbers", _turned, "height", ("whole",)),
    Operator("negative", "numbers", _negative, "height", ("whole",)),
)
CODES = (
    Operator("stale encoder", "codes", _stale),
    Operator("unknown", "codes", _unknown),
    Operator("exchange", "codes", _exchanged, "several", ("whole",)),
    Operator("shift of tokens", "codes", _rolled("token"), "token", ("whole",)),
    Operator("reversed tokens", "codes", _reversed("token"), "token", ("whole",)),
)
MASKS = (
    Operator("all ones", "mask", lambda *_: lambda x, _: torch.ones_like(x), parts=("whole",)),
    Operator("inverted", "mask", lambda *_: lambda x, _: 1 - x if x.dtype != torch.bool else ~x,
             parts=("whole",)),
    Operator("first alone", "mask", lambda *_: lambda x, _: _first(x), parts=("whole",)),
    Operator("transposed halves", "bonds", lambda *_: lambda x, _: x.tril(), parts=("whole",)),
    Operator("complement", "bonds", lambda *_: lambda x, _: 1 - x, parts=("whole",)),
    Operator("zero", "bonds", lambda *_: lambda x, _: torch.zeros_like(x), parts=("whole",)),
)  # fmt: skip


def _first(x: Tensor) -> Tensor:
    kept = torch.zeros_like(x)
    kept[:, :1] = x[:, :1]
    return kept


OPERATORS = (*NUMBERS, *CODES, *MASKS)
