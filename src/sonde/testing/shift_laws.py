"""The laws of shifts: functions that raise AssertionError if a shift breaks them."""

import json
import math
from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import SondeError
from sonde.core.shift import Comparison, Shift, Side
from sonde.core.stream import Stream
from sonde.engine.folding import observe_stream
from sonde.engine.passes import merge_states, states_of
from sonde.engine.requests import Task, requests

WIDTH = 4


def normal_rows(n: int, seed: int, width: int = WIDTH) -> Tensor:
    """Return ``n`` standard normal float64 rows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64)


def assert_sound(found: Comparison) -> None:
    """Assert a finite value and a p-value in [0, 1], or a flag (then p may be NaN)."""
    defined = math.isfinite(float(found)) and 0 <= found.p <= 1
    assert defined or found.flags, f"value {found.value}, p {found.p} without a flag"
    assert math.isnan(found.p) or 0 <= found.p <= 1, f"p {found.p}"
    json.dumps(found.chart(), allow_nan=False)
    assert {"value", "p"} <= set(found.table().column_names)


def assert_alike(a: Comparison, b: Comparison, how: str) -> None:
    """Assert the same effect size and p-value up to rounding; ``how`` begins the message."""
    same = math.isclose(float(a), float(b), rel_tol=1e-7, abs_tol=1e-9)
    same = same and math.isclose(a.p, b.p, rel_tol=1e-6, abs_tol=1e-9)
    assert same, f"{how}: value {float(a)} and {float(b)}, p {a.p} and {b.p}"


def law_itself(shift: Shift) -> None:
    """A side compared with itself has a p-value above 0.1."""
    side = shift.fit(normal_rows(120, 0))
    result = side.compare(side)
    assert_sound(result)
    assert result.p > 0.1, f"p {result.p} of a side against itself"


def law_far(shift: Shift) -> None:
    """Rows of another mean and covariance have p <= 0.01 and a larger value than unchanged rows."""
    dim = normal_rows(2, 0).shape[1]
    spread = torch.linspace(3.0, 0.5, dim, dtype=torch.float64)
    x, y = normal_rows(150, 0) * spread, normal_rows(120, 1) * 2 * spread.flip(0) + 9
    near, far = shift.between(x, normal_rows(120, 2) * spread), shift.between(x, y)
    assert far.p <= 0.01, f"p {far.p} of a large shift"
    assert float(far) > float(near), f"{float(far)} far away, {float(near)} without change"
    assert far.direction == "higher"
    assert far.sides == (150, 120), f"sides {far.sides}"


def law_order(shift: Shift) -> None:
    """Reordered rows with their ids give an equal comparison."""
    x, y = normal_rows(90, 3), normal_rows(80, 4) + 0.3
    ids = [f"row {i}" for i in range(len(x))]
    back = list(range(len(x) - 1, -1, -1))
    first, second = shift.fit(x, ids=ids), shift.fit(x[back], ids=[ids[i] for i in back])
    other = first.shift.fit(y)
    again = _as(second, first).compare(other)
    assert_alike(first.compare(other), again, "in another order")


def law_merged(shift: Shift) -> None:
    """A side merged from two parts gives the comparison of one pass over all rows."""
    x, y = normal_rows(90, 5), normal_rows(80, 6) + 0.3
    whole = shift.fit(x)
    task = Task(whole.shift, ("x",))
    wanted = requests([task])
    ids = [f"row {i}" for i in range(len(x))]
    parts = [
        observe_stream(Stream.of(x[rows], ids=[ids[i] for i in rows]), wanted)
        for rows in (list(range(40)), list(range(40, 90)))
    ]
    merged = whole.shift.result(**states_of(task, merge_states(wanted, *parts)))
    one = whole.shift.fit(x, ids=ids)
    other = whole.shift.fit(y)
    assert_alike(one.compare(other), merged.compare(other), "merged from parts")


def law_again(shift: Shift) -> None:
    """The comparison does not depend on the global random state."""
    x, y = normal_rows(60, 7), normal_rows(70, 8)
    torch.manual_seed(1)
    first = shift.between(x, y)
    torch.manual_seed(2)
    second = shift.between(x, y)
    a, b = (float(first), first.p), (float(second), second.p)
    assert a == b, f"two runs differ: value and p {a} and {b}"


def law_groups(shift: Shift) -> None:
    """Eight copies of each row in one group raise no more false alarms: at most 4 of 12 at 5 %."""
    group = [f"group {i}" for i in range(40)] * 8
    alarms = 0
    for seed in range(12):
        x, y = normal_rows(40, 100 + seed).repeat(8, 1), normal_rows(40, 200 + seed).repeat(8, 1)
        result = shift.between(x, y, group=group, group2=group)
        assert result.sides == (40, 40), f"sides {result.sides} of 40 groups"
        alarms += result.p <= 0.05
    assert alarms <= 4, f"{alarms} alarms of 12 without change"


def law_degenerate(shift: Shift) -> None:
    """Few, equal or constant rows give a SondeError, a finite value with a p-value, or a flag."""
    plain = normal_rows(36, 11)
    constant = torch.cat([plain[:, :1] * 0 + 1, plain[:, 1:]], 1)
    cases: dict[str, tuple[Any, Any]] = {
        "1 row": (plain, plain[:1]),
        "2 rows": (plain[:2], plain[2:4]),
        "3 rows": (plain[:3], plain[3:36]),
        "constant rows": (plain * 0 + 2, plain * 0 + 2),
        "other constant rows": (plain * 0 + 2, plain * 0 + 3),
        "a constant unit": (constant, constant + 0.1 * plain.mean(0)),
        "equal rows": (plain[torch.arange(36) // 2], plain),
        "half precision": (plain.bfloat16(), plain.half()),
        "more dimensions than rows": (normal_rows(6, 0, 20), normal_rows(7, 1, 20)),
    }
    for name, (x, y) in cases.items():
        try:
            assert_sound(shift.between(x, y))
        except SondeError:
            continue
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def _as(side: Side, pattern: Side) -> Side:
    """Return a side with the shift of ``pattern``, as fitted parameters differ by rounding."""
    return pattern.shift.result(**side.states)
