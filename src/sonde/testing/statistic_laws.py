"""The laws of statistics: functions that raise AssertionError if a statistic breaks them."""

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import InputError, SondeError, StateError
from sonde.core.state import digest, equal, leaves, map_tensors, size_bytes
from sonde.core.statistic import Statistic
from sonde.engine.passes import merge_pair
from sonde.files.state_file import read_state, state_type, write_state
from sonde.testing.rows import Columns, atoms, make_columns, take


@dataclass(frozen=True)
class Case:
    """A statistic for the laws to test, and the allowed splits of its rows.

    Parameters
    ----------
    statistic : Statistic
        Statistic to test.
    kind : {"row", "example", "group"} or digits, default="row"
        Which rows no split may separate: those of one example, of one group, or (digits) of
        this number of successive examples; ``row`` allows every split.
    whole : bool, default=True
        Whether one ``observe`` over several parts must equal the merge of the parts' states.
    grows : int, default=0
        By how many bytes the state may grow when the rows double.
    dims : tuple of int
        Widths of the rows that the statistic is tried on.
    error : callable, optional
        Required if ``merging`` is "bounded": ``error(state, columns)`` returns how far a state is
        from the exact answer on the rows that it has seen, in the unit of ``statistic.bound``.
    """

    statistic: Statistic[Any]
    kind: str = "row"
    whole: bool = True
    grows: int = 0
    dims: tuple[int, ...] = (1, 3, 64)
    error: Callable[[Any, Columns], float] | None = field(default=None, repr=False)


def case_of(statistic: Statistic[Any]) -> Case:
    """Return the case of a statistic, with whole examples or groups if required."""
    if statistic.whole_groups:
        return Case(statistic, "group")
    return Case(statistic, "example" if statistic.whole_examples else "row")


def observe(statistic: Statistic[Any], columns: Columns) -> Any:
    """Return ``statistic.observe`` of the columns that it needs."""
    return statistic.observe(*(columns[name] for name in statistic.needs()))


def update(statistic: Statistic[Any], state: Any, columns: Columns) -> Any:
    """Return ``statistic.update`` of a state with the columns that it needs."""
    return statistic.update(state, *(columns[name] for name in statistic.needs()))


def centred(state: Any) -> Any:
    """Return a state with sums about the means, if it stores them about a row.

    The reference row depends on the order of merging, so that only centred states compare.
    """
    return state.centred() if hasattr(state, "centred") else state


def assert_close(a: Any, b: Any, rtol: float = 1e-9, path: str = "state") -> None:
    """Assert that two states are equal: floats up to ``rtol`` of the largest entry (at least 1)."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        assert a.shape == b.shape, f"{path}: shapes {tuple(a.shape)} and {tuple(b.shape)}"
        if not a.is_floating_point():
            assert torch.equal(a, b), f"{path}: {a} != {b}"
            return
        scale = max(float(a.abs().max()), float(b.abs().max()), 1.0) if a.numel() else 1.0
        gap = float((a.double() - b.double()).abs().max()) if a.numel() else 0.0
        assert gap <= rtol * scale, f"{path}: off by {gap:.3g} at scale {scale:.3g}"
    elif isinstance(a, tuple):
        assert len(a) == len(b), f"{path}: {len(a)} and {len(b)} items"
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_close(left, right, rtol, f"{path}[{i}]")
    elif is_dataclass(a):
        assert type(a) is type(b), f"{path}: {type(a).__name__} and {type(b).__name__}"
        for f in fields(a):
            assert_close(getattr(a, f.name), getattr(b, f.name), rtol, f"{path}.{f.name}")
    elif isinstance(a, float):
        assert a == b or abs(a - b) <= rtol * max(abs(a), abs(b), 1.0), f"{path}: {a} != {b}"
    else:
        assert a == b, f"{path}: {a!r} != {b!r}"


def parts_of(case: Case, columns: Columns, n_parts: int, seed: int) -> list[Columns]:
    """Return the rows as ``n_parts`` random parts, some maybe empty, with atoms kept whole."""
    generator = torch.Generator().manual_seed(seed)
    pieces = atoms(columns, case.kind)
    order = torch.randperm(len(pieces), generator=generator).tolist()
    owner = torch.randint(n_parts, (len(pieces),), generator=generator).tolist()
    rows = [[pieces[i] for i in order if owner[i] == part] for part in range(n_parts)]
    return [take(columns, torch.cat(r)) if r else take(columns, torch.arange(0)) for r in rows]


def state_of(case: Case, columns: Columns) -> Any:
    """Return the state of all rows, or None if there are none."""
    if len(columns["order"]) == 0:
        return None
    if case.whole:
        return observe(case.statistic, columns)
    state = None
    for rows in atoms(columns, case.kind):
        state = merge_pair(case.statistic, state, observe(case.statistic, take(columns, rows)))
    return state


def law_split(case: Case, columns: Columns, rtol: float = 1e-9) -> None:
    """Any split of the rows, merged in any order as a chain or a tree, gives an equal state."""
    whole = centred(state_of(case, columns))
    for seed, n_parts in enumerate((2, 5, 9)):
        states = [state_of(case, part) for part in parts_of(case, columns, n_parts, seed)]
        chain = None
        for state in states:
            chain = merge_pair(case.statistic, chain, state)
        assert_close(centred(chain), whole, rtol)
        tree = list(states)
        while len(tree) > 1:
            a, b = tree.pop(), tree.pop(0)
            tree.insert(len(tree) // 2, merge_pair(case.statistic, a, b))
        assert_close(centred(tree[0]), whole, rtol)


def law_atoms(case: Case, columns: Columns) -> None:
    """Merging the smallest parts (single rows where allowed) gives the state of one ``observe``."""
    chain = None
    for rows in atoms(columns, case.kind):
        chain = merge_pair(case.statistic, chain, observe(case.statistic, take(columns, rows)))
    assert_close(centred(chain), centred(state_of(case, columns)))


def law_update(case: Case, columns: Columns) -> None:
    """``update(state, rows)`` equals ``merge(state, observe(rows))``."""
    first, second = parts_of(case, columns, 2, 3)
    state = state_of(case, first)
    fast = update(case.statistic, state, second)
    slow = case.statistic.merge(state, observe(case.statistic, second))
    assert_close(centred(fast), centred(slow))


def law_size(case: Case, n: int = 1024) -> None:
    """Doubling the rows adds at most ``case.grows`` bytes to the state."""
    sizes = [size_bytes(state_of(case, make_columns(m, 3))) for m in (n, 2 * n)]
    assert sizes[1] <= sizes[0] + case.grows, f"{sizes[0]} bytes for {n} rows, {sizes[1]} for twice"


def law_pure(case: Case, columns: Columns) -> None:
    """``observe``, ``merge`` and ``update`` do not change their arguments."""
    before = {k: v.clone() for k, v in columns.items() if isinstance(v, Tensor)}
    first, second = parts_of(case, columns, 2, 1)
    a, b = state_of(case, first), state_of(case, second)
    kept = map_tensors(a, torch.clone), map_tensors(b, torch.clone)
    observe(case.statistic, columns)
    case.statistic.merge(a, b)
    update(case.statistic, a, second)
    assert equal(a, kept[0]), "the left operand changed"
    assert equal(b, kept[1]), "the right operand changed"
    for name, values in before.items():
        assert torch.equal(columns[name], values), f"the column {name} changed"


def law_sizes(case: Case) -> None:
    """States of 1 to ``10 dim`` float64 or float16 rows are finite; exact ones survive a split."""
    for dim, dtype in product(case.dims, (torch.float64, torch.float16)):
        for n in sorted({1, 2, max(dim - 1, 1), 10 * dim}):
            columns = make_columns(n, dim, seed=n, dtype=dtype)
            state = state_of(case, columns)
            for leaf in leaves(state):
                finite = not leaf.is_floating_point() or bool(torch.isfinite(leaf).all())
                assert finite, f"not finite for n={n}, dim={dim}, {dtype}"
            if n > 2 and case.statistic.merging == "exact":
                first, second = parts_of(case, columns, 2, n)
                merged = merge_pair(case.statistic, state_of(case, first), state_of(case, second))
                assert_close(centred(merged), centred(state), 1e-5)


def law_half(case: Case) -> None:
    """Half-precision rows give the state of the same numbers in float32."""
    for dtype in (torch.bfloat16, torch.float16):
        columns = make_columns(200, 3, dtype=dtype)
        wide = {
            k: v.float() if isinstance(v, Tensor) and v.dtype == dtype else v
            for k, v in columns.items()
        }
        assert_close(centred(state_of(case, columns)), centred(state_of(case, wide)), 1e-6)


def law_offset(case: Case) -> None:
    """Float32 rows about 2000 standard deviations from 0 give the state of float64 rows."""
    columns = make_columns(400, 3)
    columns["x"], columns["y"] = columns["x"] + 2048.0, columns["y"] + 2048.0
    wide = dict(columns, x=columns["x"].double(), y=columns["y"].double())
    assert_close(centred(state_of(case, columns)), centred(state_of(case, wide)), 1e-6)


def law_influence(case: Case) -> None:
    """``influence`` is the derivative of a value by the weight of a further row.

    The finite difference: a state merged with itself twenty times holds each row 2^20 times, so one
    more row weighs 2^-20 of it. A constant added to the effects of all rows is ignored.
    """
    columns = make_columns(24, 3, seed=4)
    for name in ("x", "y"):
        columns[name] = columns[name].double()
    state = state_of(case, columns)
    big = map_tensors(state, torch.clone)
    for _ in range(20):
        big = case.statistic.merge(big, big)
    tracked = map_tensors(
        state, lambda t: t.clone().requires_grad_(True) if t.is_floating_point() else t
    )
    points = [t for t in leaves(tracked) if t.requires_grad]
    grads = torch.autograd.grad(_smooth(tracked), points, allow_unused=True) if points else ()
    table = {
        id(t): torch.zeros_like(t) if g is None else g for t, g in zip(points, grads, strict=True)
    }
    gradient = map_tensors(tracked, lambda t: table.get(id(t), torch.zeros_like(t)))
    needed = [columns[name] for name in case.statistic.needs()]
    effect = case.statistic.influence(state, gradient, *needed)
    assert effect is not None
    measured, formula = [], []
    start = float(_smooth(big))
    for rows in atoms(columns, case.kind):
        one = observe(case.statistic, take(columns, rows))
        measured.append((float(_smooth(case.statistic.merge(big, one))) - start) * 2.0**20)
        formula.append(float(effect[rows].sum()))
    a, b = torch.tensor(measured).double(), torch.tensor(formula).double()
    size = torch.tensor([float(len(r)) for r in atoms(columns, case.kind)]).double()
    a, b = a - size * a.sum() / size.sum(), b - size * b.sum() / size.sum()
    gap = float((a - b).abs().max() / a.abs().max().clamp(min=1e-12))
    assert gap < 1e-4, f"off by {gap:.3g} of the largest effect"


def _smooth(state: Any) -> Tensor:
    """Return a differentiable value of a state that is invariant to repeating all rows."""
    total = torch.zeros((), dtype=torch.float64)
    weight = _weight(state)
    fixed = {"mean", "mean_x", "mean_y", "low", "high"}
    for name, item in vars(state).items():
        if name.startswith("reference"):
            continue
        if is_dataclass(item):
            share = torch.as_tensor(_weight(item), dtype=torch.float64) / weight
            total = total + _smooth(item) + share.sin()
        elif isinstance(item, Tensor) and item.is_floating_point():
            scaled = item.double() if name in fixed else item.double() / weight
            waves = torch.cos(torch.arange(scaled.numel(), dtype=torch.float64) + len(name))
            total = total + (scaled.flatten() * waves).sin().sum()
    return total


def _weight(state: Any) -> Any:
    if hasattr(state, "weight"):
        return state.weight.sum()
    if hasattr(state, "n"):
        return float(state.n)
    return float(state.rows.n)


def law_save(case: Case, columns: Columns) -> None:
    """A saved and loaded state is equal bit by bit."""
    state = state_of(case, columns)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.sonde"
        write_state(path, {}, {"a": state, "b": None})
        _, back = read_state(path, dict.fromkeys("ab", state_type(case.statistic)))
    assert back["b"] is None
    assert equal(back["a"], state)


def law_identity(case: Case) -> None:
    """Equal parameters have equal digests; ``observe`` returns the type of its annotation."""
    again = replace(case.statistic)  # type: ignore[type-var]
    assert digest(again) == digest(case.statistic)
    actual, named = type(state_of(case, make_columns(12))), state_type(case.statistic)
    assert issubclass(actual, named), f"a {actual.__name__}, named {named.__name__}"


def law_bound(case: Case, columns: Columns) -> None:
    """For every split, merged or updated part by part, ``case.error`` is at most its bound."""
    if case.error is None:
        name = type(case.statistic).__name__
        raise InputError(
            f"check: {name} merges within a bound; expected the error of its states, got none. "
            f"Pass sonde.testing.Case({name}(..), error=..)."
        )
    for seed, n_parts in enumerate((1, 2, 7, 40)):
        chain, grown = None, None
        for part in parts_of(case, columns, n_parts, seed):
            state = state_of(case, part)
            if state is not None and grown is not None:
                grown = update(case.statistic, grown, part)
            chain, grown = merge_pair(case.statistic, chain, state), grown or state
        for kind, reached in (("merged", chain), ("updated", grown)):
            bound, gap = case.statistic.bound(reached), case.error(reached, columns)
            where = f"{n_parts} parts {kind}"
            assert math.isfinite(bound)
            assert gap <= bound * (1 + 1e-9) + 1e-6, f"off by {gap}, bound {bound}, {where}"


def law_learner(case: Case) -> None:
    """A learner uses its own seed, changes no state in place, and cannot be merged."""
    learner: Any = case.statistic
    width = 7 if learner.span == "pair" else 3
    columns = make_columns(300, width, seed=7, dtype=torch.float64, length=4)
    dim = columns["x"].shape[1]
    first, second = learner.start(dim), learner.start(dim)
    for n_pass in range(min(3, learner.n_passes())):
        kept = map_tensors(first, torch.clone)
        torch.manual_seed(1 + n_pass)
        ahead = update(learner, first, columns)
        torch.manual_seed(9 + n_pass)
        behind = update(learner, second, columns)
        assert equal(ahead, behind), f"two runs differ in pass {n_pass}"
        assert equal(first, kept), f"the state changed in place in pass {n_pass}"
        first, second = learner.close_pass(ahead), learner.close_pass(behind)
        assert equal(first, second), f"two runs differ after pass {n_pass}"
    try:
        learner.merge(first, second)
    except StateError:
        return
    except SondeError as error:
        raise AssertionError(f"merge raised {error!r} instead of StateError") from error
    raise AssertionError("a learner merged")
