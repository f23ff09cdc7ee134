"""Print what odd rows do to methods drawn by lot.

Copies, constants, a NaN, few digits, huge and tiny scales, one group, uneven groups, a class of two
rows, labels as texts, sorted rows. A cell says how the value (or the scores of a detector) moved,
in standard errors or standard deviations of the scores, which flags came, or how it was refused;
``<-- silent`` marks a value that moved by more than 3, or is not finite, without a new flag, and
``<-- crash`` an error that is not sonde's.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from tests.contract.statistics import exported_instruments
from tools.figures._table import Row, Table, Words, chosen, head
from torch import Tensor

from sonde.core.errors import SondeError
from sonde.core.instrument import Instrument
from sonde.core.result import Result, Scorer
from sonde.testing.instrument_laws import fit, make_inputs, pick, score, size_of_example

STATES = "x", "a", "b", "c"
N = 192
Inputs = dict[str, Any]


def scaled(inputs: Inputs, factor: float) -> Inputs:
    """Return the inputs with all states times a factor."""
    return inputs | {k: inputs[k] * factor for k in STATES}


def with_nan(inputs: Inputs) -> Inputs:
    """Return the inputs with a NaN in one row of every site."""
    made = {k: inputs[k].clone() for k in STATES}
    for x in made.values():
        x[5, 1] = float("nan")
    return inputs | made


def copied(inputs: Inputs) -> Inputs:
    """Return each row four times, without ids and groups."""
    rows = pick(inputs, torch.arange(N).repeat(4))
    return rows | {"ids": [f"row {i}" for i in range(4 * N)], "group": None}


def small_class(inputs: Inputs) -> Inputs:
    """Return the inputs without most rows of one class: two are left."""
    label = inputs["label"]
    rare = torch.nonzero(label == 2).flatten()[2:]
    keep = torch.ones(N, dtype=torch.bool)
    keep[rare] = False
    return pick(inputs, torch.nonzero(keep).flatten())


def in_order(inputs: Inputs) -> Inputs:
    """Return the rows class by class."""
    return pick(inputs, torch.argsort(inputs["label"], stable=True))


ODD: dict[str, Callable[[Inputs], Inputs]] = {
    "each row four times": copied,
    "constant rows": lambda i: i | {k: i[k] * 0 + 2 for k in STATES},
    "a constant unit": lambda i: (
        i | {k: torch.cat([i[k][:, :1] * 0 + 2, i[k][:, 1:]], 1) for k in STATES}
    ),
    "one NaN": with_nan,
    "float16": lambda i: i | {k: i[k].half() for k in STATES},
    "times 1e20": lambda i: scaled(i, 1e20),
    "times 1e-20": lambda i: scaled(i, 1e-20),
    "float32 times 1e20": lambda i: i | {k: i[k].float() * 1e20 for k in STATES},
    "float32 times 1e-20": lambda i: i | {k: i[k].float() * 1e-20 for k in STATES},
    "one group": lambda i: i | {"group": ["one"] * N},
    "uneven groups": lambda i: i | {"group": ["big" if j < N - 12 else f"g{j}" for j in range(N)]},
    "a class of two rows": small_class,
    "labels as texts": lambda i: i | {"label": ["abc"[c] for c in i["label"].tolist()]},
    "sorted rows": in_order,
}


def measured(instrument: Instrument, inputs: Inputs, judged: Inputs) -> tuple[Tensor, Result]:
    """Return the value, or the scores of other rows, and the result."""
    result = fit(instrument, {k: v for k, v in inputs.items() if v is not None})
    if isinstance(result, Scorer):
        return score(instrument, result, judged).double(), result
    return torch.as_tensor(result.value).double(), result


def cell(
    instrument: Instrument, plain: tuple[Tensor, Result], change: Callable[[Inputs], Inputs]
) -> str:
    """Return what a change of the rows did."""
    inputs, others = change(make_inputs(N)), change(make_inputs(N, seed=1))
    is_other = change in (copied, small_class, in_order)
    try:
        value, result = measured(instrument, inputs, make_inputs(N, seed=1) if is_other else others)
    except SondeError as error:
        return f"refused: {str(error)[:90]}"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:90]} <-- crash"
    before, first = plain
    new = sorted(set(result.flags) - set(first.flags))
    if isinstance(result, Scorer):
        if value.isnan().any():
            return f"{int(value.isnan().sum())} scores NaN {new} <-- silent"
        return f"{_moved_scores(before, value)} {' '.join(new)}"
    if not bool(value.isfinite().all()):
        return f"not finite {' '.join(result.flags)}{'' if result.flags else ' <-- silent'}"
    if value.shape != before.shape:
        return f"shape {tuple(before.shape)} to {tuple(value.shape)} {' '.join(new)}"
    gap = (value - before).abs().max()
    known = first.se is not None
    size = torch.as_tensor(first.se).double().max() if known else before.abs().max() / 30
    moved = float(gap / size.clamp(min=1e-300))
    se = "" if result.se is not None or not known else ", no error"
    silent = " <-- silent" if moved > 3 and not new else ""
    return f"{moved:.2g}{se} {' '.join(new)}{silent}"


def _moved_scores(before: Tensor, after: Tensor) -> str:
    finite = before.isfinite() & after.isfinite() if before.shape == after.shape else None
    if finite is None:
        return f"{len(after)} scores"
    both = torch.stack([before, after])[:, finite]
    if not both.numel() or bool((both.std(1) == 0).any()):
        return "scores are equal"
    gap = float((both[1] - both[0]).abs().max() / both[0].std())
    return (
        f"r {float(torch.corrcoef(both)[0, 1]):.2f}, by {gap:.2g}, {int((~finite).sum())} infinite"
    )


def table(words: Words = (), *, seed: int = 1, methods: int = 10) -> Table:
    """Print the table.

    Parameters
    ----------
    words
        Methods whose names hold one of these words; by default some are drawn by lot.
    seed
        Seed of the lot.
    methods
        How many methods are drawn.
    """
    rooms = "measure", "detect", "explain"
    every = [i for i in exported_instruments() if type(i).__module__.split(".")[1] in rooms]
    first = {type(i).__name__: i for i in reversed(every) if size_of_example(i) == 1}
    names = random.Random(seed).sample(sorted(first), methods)
    drawn = {n: first[n] for n in (sorted(first) if words else names)}
    yield head("method", "rows", "what became of it")
    for name, instrument in chosen(drawn, words):
        plain = measured(instrument, make_inputs(N), make_inputs(N, seed=1))
        for what, change in ODD.items():
            yield Row((name, what), partial(_cells, instrument, plain, change))


def _cells(*what: Any) -> list[str]:
    return [cell(*what)]
