"""Other forms of numeric inputs: scales, rotations, orders and units."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from sonde.findings.evidence.trials.simplest_factor import factor_words

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

Inputs = Float[Tensor, "row *rest"]
Change = Callable[[Inputs], Inputs]
GAMMAS = (1 / 3, 1 / 2.2, 2.2, 3.0)
BLURS: Final = (3, 5)
LARGE: Final = 10.0
"""Range of numbers from which inputs are pixels in 0..255 rather than fractions."""
FACTORS = (
    10.0,
    100.0,
    1000.0,
    2.54,
    3.28084,
    2.20462,
    1.60934,
    39.37008,
    60.0,
    3600.0,
    57.29578,
)
MOST_COLUMNS = 40
MOST_CHANNELS: Final = 12
NEVER, OF_EXPONENTS = -math.inf, 60.0


@dataclass(frozen=True)
class CodedChange:
    """A change of the inputs, and the code that makes it.

    Parameters
    ----------
    change : callable
    line : str
        Python that changes a batch ``x`` in this way.
    columns : tuple of int
        Columns of a table that change; empty for all.
    """

    change: Change
    line: str
    columns: tuple[int, ...] = ()

    def __call__(self, x: Inputs) -> Inputs:
        """Return the inputs in this form."""
        return self.change(x)


def line_of(change: Change) -> str:
    """Return the code of a change; empty if it has none."""
    return getattr(change, "line", "")


def columns_of(change: Change) -> tuple[int, ...]:
    """Return the columns of a table that a change is made for; empty for all."""
    return getattr(change, "columns", ())


COLUMN_CURVES: Final[Mapping[str, tuple[Change, float, float]]] = {
    "the logarithm of {}": (CodedChange(torch.log, "{}.log()"), 0.0, math.inf),
    "the logarithm of 1 plus {}": (CodedChange(torch.log1p, "{}.log1p()"), -1e-9, math.inf),
    "e to the power of {}": (CodedChange(torch.exp, "{}.exp()"), NEVER, OF_EXPONENTS),
    "10 to the power of {}": (
        CodedChange(lambda x: 10**x, "10 ** {}"), NEVER, OF_EXPONENTS / 2,
    ),
}  # fmt: skip
"""Curves of a column, with the range of numbers that each takes."""
CURVES: Final[Mapping[str, tuple[Change, float, float]]] = {
    "with each number as its logarithm": (torch.log, 0.0, math.inf),
    "with 1 plus each number as its logarithm": (torch.log1p, -1e-9, math.inf),
    "with each number as an exponent of e": (torch.exp, NEVER, OF_EXPONENTS),
    "with each number as an exponent of e, less 1 and with its sign": (
        lambda x: x.sign() * x.abs().expm1(),
        -OF_EXPONENTS,
        OF_EXPONENTS,
    ),
    "from decibels to power": (lambda x: 10 ** (x / 10), NEVER, 300.0),
    "from power to decibels": (lambda x: 10 * torch.log10(x), 0.0, math.inf),
}
"""Curves of all numbers of a table, signal or spectrum."""

LINES = {
    "each column at mean 0": "x = (x - x.mean(0)) / x.std(0)  # of these rows, as tried",
    "each channel at mean 0": "x = (x - mean) / std  # of each channel of these pictures, as tried",
    "moved by one to the left": "x = x.roll(-1, 1)",
    "moved by one to the right": "x = x.roll(1, 1)",
    "reverse order (BGR": "x = x.flip(1)  # channels",
    "ImageNet's constants": "x = (x - mean) / std  # ImageNet's mean and std, on pixels in 0..1",
    "mirrored along the last axis": "x = x.flip(-1)",
    "with the order of steps reversed": "x = x.flip(1)",
    "with 1 plus each number as its logarithm": "x = x.log1p()",
    "with each number as its logarithm": "x = x.log()",
    "less 1 and with its sign": "x = x.sign() * x.abs().expm1()",
    "with each number as an exponent of e": "x = x.exp()",
    "from decibels to power": "x = 10 ** (x / 10)",
    "from power to decibels": "x = 10 * x.log10()",
}
"""Code that brings a batch ``x`` into another form, by the words for the form."""


def column_changes(x: Inputs, names: Sequence[str]) -> dict[str, Change]:
    """Return, by name, the changes that convert one column's unit or exchange two columns.

    Empty unless there are 2 to 40 columns and each has a name.
    """
    if len(names) != x.shape[1] or not 1 < len(names) <= MOST_COLUMNS:
        return {}
    changes_of: dict[str, Change] = {}
    for words, (i, factor) in column_factors(names).items():
        changes_of[words] = one_column(i, factor, 0.0)
    for i, name in enumerate(names):
        changes_of[f"with {name} multiplied by -1"] = one_column(i, -1.0, 0.0)
        changes_of[f"with {name} from Fahrenheit to Celsius"] = one_column(i, 5 / 9, -160 / 9)
        changes_of[f"with {name} from Celsius to Fahrenheit"] = one_column(i, 9 / 5, 32.0)
        changes_of |= {f"with {words.format(name)}": _on_column(i, curve)
                  for words, curve in _curves_of(x[:, i], COLUMN_CURVES).items()}  # fmt: skip
    for i, j in combinations(range(len(names)), 2):
        changes_of[f"with {names[i]} and {names[j]} exchanged"] = _exchanged(i, j)
    return changes_of


def _curves_of(
    x: Float[Tensor, "*rest"], curves: Mapping[str, tuple[Change, float, float]]
) -> dict[str, Change]:
    """Return the named curves that can be applied to numbers of this range."""
    low, high = float(x.min()), float(x.max())
    return {w: curve for w, (curve, least, most) in curves.items()
            if least < low < high < most}  # fmt: skip


def _on_column(i: int, curve: Change) -> Change:
    def change(x: Inputs) -> Inputs:
        changed = x.clone()
        changed[:, i] = curve(x[:, i])
        return changed

    place = f"x[:, {i}]"
    return CodedChange(change, f"{place} = {line_of(curve).format(place)}", (i,))


def column_factors(names: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Return the columns and the factors to try on them, by description."""
    return {
        f"with {factor_words(name, factor)}": (i, factor)
        for i, name in enumerate(names)
        for unit in FACTORS
        for factor in (1 / unit, unit)
    }


def one_column(i: int, factor: float, offset: float) -> Change:
    """Return the change of one column of a table."""

    def change(x: Inputs) -> Inputs:
        changed = x.clone()
        changed[:, i] = factor * x[:, i] + offset
        return changed

    line = f"x[:, {i}] = {factor:.6g} * x[:, {i}]"
    line += f" {'-' if offset < 0 else '+'} {abs(offset):.6g}" if offset else ""
    return CodedChange(change, line, (i,))


def _exchanged(i: int, j: int) -> Change:
    def change(x: Inputs) -> Inputs:
        changed = x.clone()
        changed[:, [i, j]] = x[:, [j, i]]
        return changed

    return CodedChange(change, f"x[:, [{i}, {j}]] = x[:, [{j}, {i}]]", (i, j))


def changes(
    x: Inputs, pictures: bool = True, whole: Float[Tensor, "other *rest"] | None = None
) -> dict[str, Change]:
    """Return, by name, the changes that undo common mistakes in the scale of inputs.

    Rows of a square number of values count as pictures, which can be turned, unless ``pictures``
    is False. Scales come from all rows at once, so a change is the same for every row. If ``x``
    holds only some of the rows, ``whole`` holds others: the darkest and the brightest value come
    from both.
    """
    low, high = float(x.min()), float(x.max())
    span = (high - low) or 1.0
    mean, std = float(x.mean()), float(x.std()) or 1.0

    dark = low if whole is None else min(low, float(whole.min()))
    bright = high if whole is None else max(high, float(whole.max()))
    room = (bright - dark) or 1.0

    def unit(x: Inputs) -> Inputs:
        return (x - low) / span

    by_words: dict[str, Change] = {
        "divided by 255": lambda x: x / 255,
        "multiplied by 255": lambda x: x * 255,
        "rescaled to 0..1": unit,
        "rescaled to -1..1": lambda x: 2 * unit(x) - 1,
        "rescaled to 0..255": lambda x: 255 * unit(x),
        "standardised to mean 0 and variance 1": lambda x: (x - mean) / std,
        "with inverted brightness": lambda x: dark + bright - x,
        "mirrored along the last axis": lambda x: x.flip(-1),
    }
    if x.ndim == 4 and x.shape[1] == 3:
        by_words["with channels in reverse order (BGR for RGB)"] = lambda x: x.flip(1)
        usual, scale = (x.new_tensor(v).reshape(1, 3, 1, 1) for v in IMAGENET)
        by_words["rescaled to 0..1 and normalised with ImageNet's constants"] = lambda x: (
            (unit(x) - usual.to(x.device)) / scale.to(x.device)
        )
    axes = (0, *range(2, x.ndim))
    centre, spread = x.mean(axes, keepdim=True), x.std(axes, keepdim=True).clamp(min=1e-12)
    columns = "column" if x.ndim == 2 else "channel"
    by_words[f"with each {columns} at mean 0 and variance 1"] = lambda x: (x - centre) / spread
    if x.ndim == 2:
        by_words["with columns moved by one to the left"] = lambda x: x.roll(-1, 1)
        by_words["with columns moved by one to the right"] = lambda x: x.roll(1, 1)
    if x.ndim == 3:
        by_words["with the order of steps reversed"] = lambda x: x.flip(1)
        by_words |= _sequence_exchanges(x)
    if x.ndim == 3 or (x.ndim == 2 and not pictures):
        by_words |= _curves_of(x, CURVES)
    picture = picture_shape(x) if pictures or x.ndim == 4 else None
    if picture is None:
        return by_words
    turned = _turned(picture)
    if x.ndim == 4:  # the last axis is that of the columns
        turned.pop("mirrored")
    by_words |= turned
    for power in GAMMAS:
        part = f"((x - {dark:.6g}) / {room:.6g}).clamp(min=0)"
        by_words[f"with their brightness to the power of {power:.2g}"] = CodedChange(
            lambda x, p=power: dark + room * ((x - dark) / room).clamp(min=0) ** p,
            f"x = {dark:.6g} + {room:.6g} * {part} ** {power:.6g}",
        )
    return _by_promise(by_words, pixel_moves(picture), span)


def _by_promise(
    found: dict[str, Change], moves: Mapping[str, object], span: float
) -> dict[str, Change]:
    """Return forms of images in the order in which a small budget should try them.

    First what pictures that were loaded otherwise need, last the moves and a scale away from what
    networks are trained on.
    """
    unlikely = "divided by 255" if span < LARGE else "multiplied by 255"
    first = ("inverted", "turned", "mirrored", "reverse order", "height and width")

    def rank(words: str) -> int:
        if words in moves or words == unlikely:
            return 2 + (words in moves)
        return 0 if any(word in words for word in first) else 1

    return {w: found[w] for w in sorted(found, key=rank)}


def _sequence_exchanges(x: Float[Tensor, "row one two"]) -> dict[str, Change]:
    """Return exchanges of two channels of sequences, for either possible channel axis.

    Channels are counted from 0. Axes of more than 12 are left out: the pairs would be too many.
    """
    exchanges: dict[str, Change] = {}
    for axis in (1, 2):
        n = x.shape[axis]
        for pair in combinations(range(n if n <= MOST_CHANNELS else 0), 2):
            order = list(range(n))
            order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
            where = "along axis 1" if axis == 1 else "along the last axis"
            words = f"with channels {pair[0]} and {pair[1]} {where} exchanged"
            at = (f"x[{':' if axis == 1 else '...'}, [{a}, {b}]]" for a, b in (pair, pair[::-1]))
            exchanges[words] = CodedChange(
                lambda x, o=order, a=axis: x.index_select(a, x.new_tensor(o).long()),
                " = ".join(at),
            )
    return exchanges


def picture_shape(x: Inputs) -> Sequence[int] | None:
    """Return each row's shape as an image; None if rows are not images or square."""
    side = math.isqrt(x.shape[-1])
    if x.ndim == 4:
        return x.shape[1:]
    return (1, side, side) if x.ndim == 2 and side > 1 and side * side == x.shape[1] else None


def pixel_moves(picture: Sequence[int]) -> dict[str, tuple[int, int]]:
    """Return shifts of 1, 2, 4, ... pixels to try first, by description.

    Examples
    --------
    >>> list(pixel_moves((1, 8, 8)))[:3]
    ['moved by one pixel to the left', 'moved by one pixel to the right', 'moved by one pixel up']
    """
    steps = [2**i for i in range(10)]
    return {
        move_words(sign * n, dim): (sign * n, dim)
        for n in steps
        for dim in (-1, -2)
        for sign in (-1, 1)
        if n == 1 or n < picture[dim] / 3
    }


def move_words(step: int, dim: int) -> str:
    """Describe a shift of images by some pixels along an axis."""
    sides = {-1: ("to the left", "to the right"), -2: ("up", "down")}[dim]
    n = "one pixel" if abs(step) == 1 else f"{abs(step)} pixels"
    return f"moved by {n} {sides[step > 0]}"


def pixel_move(picture: Sequence[int], step: int, dim: int) -> Change:
    """Return the change that shifts images cyclically."""
    return _on_pictures(picture, lambda x: x.roll(step, dim), f"{{}}.roll({step}, {dim})")


def _on_pictures(picture: Sequence[int], change: Change, code: str) -> CodedChange:
    """Return a change of images of a shape, flattened images included."""
    images = f"x.reshape(-1, {', '.join(str(n) for n in picture)})"
    return CodedChange(
        lambda x: change(x.reshape(-1, *picture)).reshape(x.shape),
        f"x = {code.format(images)}.reshape(x.shape)",
    )


def _turned(picture: Sequence[int]) -> dict[str, Change]:
    """Return the changes that shift or rotate images of a shape, flattened images included."""
    turned: dict[str, tuple[Change, str]] = {
        "turned upside down": (lambda x: x.flip(-2), "{}.flip(-2)"),
        "with height and width exchanged": (lambda x: x.transpose(-1, -2), "{}.transpose(-1, -2)"),
        "turned to the left": (lambda x: x.rot90(1, (-2, -1)), "{}.rot90(1, (-2, -1))"),
        "turned to the right": (lambda x: x.rot90(-1, (-2, -1)), "{}.rot90(-1, (-2, -1))"),
        "mirrored": (lambda x: x.flip(-1), "{}.flip(-1)"),
    }
    for n in BLURS:
        mean = f"torch.nn.functional.avg_pool2d({{}}, {n}, 1, {n // 2}, count_include_pad=False)"
        turned[f"blurred over {n} x {n} pixels"] = (
            lambda x, n=n: avg_pool2d(x, n, 1, n // 2, count_include_pad=False), mean,
        )  # fmt: skip
    moved = {
        words: pixel_move(picture, step, dim) for words, (step, dim) in pixel_moves(picture).items()
    }
    return {words: _on_pictures(picture, *coded) for words, coded in turned.items()} | moved
