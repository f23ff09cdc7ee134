"""Standard errors from a single fit, by the influence function on a sample of rows.

One backward pass through ``result`` gives the derivative of the value with respect to every state;
each statistic says what one more row does to its state. The spread of these effects over groups,
in a sample of whole groups or of rows, is the standard error of the value.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.few_groups import FEW_GROUPS, effective_groups, grouped_error, widen_error
from sonde.core.instrument import Instrument
from sonde.core.result import Result
from sonde.core.state import State, leaves, map_tensors
from sonde.core.statistic import Statistic, parameter_names
from sonde.engine.independent_rows import independent_rows, normal_rows
from sonde.engine.tails import has_heavy_tails

R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class SampleRows:
    """Sampled rows at the sites of one task.

    Parameters
    ----------
    columns : dict of site key to dict of column name to Tensor
        Rows line up over sites.
    group : Int[Tensor, "row"]
        Group of each row.
    n_groups : int
        Number of groups in the data.
    n_rows : int or None, default=None
        Number of rows in the data if rows were drawn one by one; None if groups are whole.
    """

    columns: Mapping[str, Mapping[str, Any]]
    group: Int[Tensor, "row"]
    n_groups: int
    n_rows: int | None = None


@dataclass(frozen=True)
class Term:
    """A state that a result reads: its statistic, its sites, and its argument name."""

    name: str
    index: int | None
    statistic: Statistic[Any]
    keys: tuple[str, ...]


def result_with_error(
    instrument: Instrument,
    arguments: dict[str, Any],
    terms: list[Term],
    sample: SampleRows | None,
) -> Result:
    """Return the instrument's result, with a standard error if it needs one.

    The error is that of a scalar ``value`` which is differentiable in the states, and needs an
    ``influence`` formula for each statistic. Otherwise ``se`` stays None and
    ``conventions["se"]`` says why.
    """
    return results_with_error([instrument], arguments, terms, sample)[0]


def left_out(result: Result) -> Result:
    """Return the result with the flag ``nonfinite``, because non-finite rows were left out."""
    if "nonfinite" in result.flags:
        return result
    return replace(result, flags=(*result.flags, "nonfinite"))


def with_few_groups(result: R, n_groups: float) -> R:
    """Return the result with the flag ``few_groups`` if its error comes from fewer than 8."""
    if result.se is None or n_groups >= FEW_GROUPS or "few_groups" in result.flags:
        return result
    return replace(result, flags=(*result.flags, "few_groups"))


def with_copies(result: R, n_copies: int, n: int) -> R:
    """Return the result, with the flag ``copies`` and a convention if there are duplicates."""
    if n_copies == 0:
        return result
    convention = (
        f"{n_copies:,} of {n:,} rows are copies of another row: equal rows count as one group"
    )
    flags = tuple(dict.fromkeys((*result.flags, "copies")))
    return replace(result, flags=flags, conventions={**result.conventions, "copies": convention})


def results_with_error(
    instruments: Sequence[Instrument],
    arguments: dict[str, Any],
    terms: list[Term],
    sample: SampleRows | None,
) -> list[Result]:
    """Return the results of instruments that read equal states, each with its error.

    Values that a state caches, such as its eigenvalues, are computed once for all results.
    """
    reason = _no_influence(terms, sample)
    if sample is None or reason is not None:
        with torch.no_grad():
            return [_explained(_detached(i.result(**arguments)), str(reason)) for i in instruments]
    tracked = {name: _track(value) for name, value in arguments.items()}
    return [_with_error(i, tracked, terms, sample) for i in instruments]


def _with_error(
    instrument: Instrument, tracked: dict[str, Any], terms: list[Term], sample: SampleRows
) -> Result:
    independent = _independent(instrument, tracked, terms, sample)
    with torch.enable_grad():
        result = instrument.result(**tracked, **independent)
    value = result.value
    if result.se is not None or "se" in result.conventions:
        return _detached(result)
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        reason = "the value is not a differentiable function of the states"
        return _explained(_detached(result), reason)
    if not bool(torch.isfinite(value)):
        return _explained(_detached(result), "the value is not finite")
    if bool((sample.group == sample.group[:1]).all()):
        return _explained(_detached(result), "all sampled rows belong to one group")
    effect = _effects(tracked, _gradients(value, tracked), terms, sample)
    se = group_error(effect, sample.group, sample.n_groups, sample.n_rows)
    if not math.isfinite(se):
        return _explained(_detached(result), "the influence of single rows is not finite")
    _, sizes = torch.unique(sample.group, return_counts=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    widened = with_few_groups(
        replace(_detached(result), se=se), effective_groups(cast(Tensor, sizes))
    )
    sides = [sample.columns[key]["x"] for key in dict.fromkeys(k for t in terms for k in t.keys)]
    is_heavy = has_heavy_tails(effect, sample.group, sides)
    return replace(widened, flags=(*widened.flags, "heavy_tails")) if is_heavy else widened


def _independent(
    instrument: Instrument, arguments: dict[str, Any], terms: list[Term], sample: SampleRows
) -> dict[str, float]:
    """Return the effective numbers of independent rows that a ``result`` requests.

    ``independent`` is for covariances of both sides, ``independent_mean`` for means of the first,
    ``independent_squares`` for second moments of the first. ``independent_spectrum`` counts normal
    rows whose eigenvalues are as uneven as those of white rows with the tails of the first.
    """
    asked = _COUNTS.keys() & parameter_names(type(instrument).result)
    if not asked:
        return {}
    term = next((t for t in terms if len(t.keys) == 2), terms[0])
    n = int(torch.as_tensor(arguments[term.name].n).sum())  # or the rows of each class
    sides = _sides(sample, term.keys)
    counts = {
        name: independent_rows(_COUNTS[name](*sides), sample.group, n, sample.n_rows)
        for name in asked
    }
    if SPECTRUM in counts:
        counts[SPECTRUM] *= min(normal_rows(sides[0]), n)
    return counts


SPECTRUM = "independent_spectrum"
_COUNTS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, ...]]] = {
    "independent": lambda x, y: (x, y),
    "independent_mean": lambda x, _: (x,),
    "independent_squares": lambda x, y: (x, x, y),
    SPECTRUM: lambda x, y: (x, y),
}


def _sides(sample: SampleRows, keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Return two sides: the rows of two sites, of a site and its classes, or of a site twice."""
    first = cast(Tensor, sample.columns[keys[0]]["x"])
    if len(keys) == 2:
        return first, cast(Tensor, sample.columns[keys[1]]["x"])
    label = cast("Tensor | None", sample.columns[keys[0]].get("label"))
    return first, first if label is None else (label[:, None] == label.unique()).double()


def group_error(
    effect: Float[Tensor, "row"],
    group: Int[Tensor, "row"],
    n_groups: int,
    n_rows: int | None = None,
) -> float:
    """Return a value's standard error, from the first-order effect of each sampled row.

    Without ``n_rows`` the sample holds whole groups. With ``n_rows`` its rows were drawn one by one
    from ``n_rows`` rows: squares, and products of rows of one group, are then divided by their
    chance to be drawn. The sum of both is unbiased, and never taken below that of the squares.
    Errors from fewer than 32 groups are widened, so that 1.96 of them are Student's interval;
    groups of uneven sizes count as fewer.

    References
    ----------
    horvitz1952sampling
    """
    if not len(effect):
        return math.nan
    centred = effect.double() - effect.double().mean()
    unique = torch.unique(group, return_inverse=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    member = cast(Tensor, unique[1])
    count = int(member.max()) + 1
    if count < 2:
        return math.nan
    sums = torch.zeros(count, dtype=torch.float64).index_add_(0, member, centred)
    drawn, sizes = len(effect), torch.bincount(member)
    if n_rows is None or n_rows <= drawn:
        return float(grouped_error(sums, sizes)) * math.sqrt(n_groups / count)
    squares = float(centred.square().sum())
    products = (float(sums.square().sum()) - squares) * (n_rows - 1) / (drawn - 1)
    total = (squares + max(0.0, products)) * n_rows / drawn
    return widen_error(math.sqrt(total * n_groups / (n_groups - 1)), effective_groups(sizes))


def has_influence(statistic: Statistic[Any]) -> bool:
    """Return whether a statistic has a formula for the effect of a further row."""
    return type(statistic).influence is not Statistic[Any].influence


def _no_influence(terms: list[Term], sample: SampleRows | None) -> str | None:
    lacking = sorted({type(t.statistic).__name__ for t in terms if not has_influence(t.statistic)})
    if lacking:
        return f"no influence formula for {', '.join(lacking)}"
    return "no sample of rows was kept" if sample is None else None


def _explained(result: Result, reason: str) -> Result:
    if result.se is not None or "se" in result.conventions:
        return result
    return replace(result, conventions={**result.conventions, "se": reason})


def _track(value: Any) -> Any:
    return map_tensors(
        value,
        lambda t: t.detach().clone().requires_grad_(True) if t.is_floating_point() else t,
    )


def _detached(result: Result) -> Result:
    changed: dict[str, Any] = {
        name: item.detach()
        for name, item in vars(result).items()
        if isinstance(item, Tensor) and item.requires_grad
    }
    if isinstance(result.value, Tensor) and result.value.numel() == 1:
        changed["value"] = float(result.value.detach())
    nested = {
        name: map_tensors(item, lambda t: t.detach())
        for name, item in vars(result).items()
        if isinstance(item, State | tuple)
    }
    return replace(result, **{**nested, **changed})


def _gradients(value: Tensor, arguments: dict[str, Any]) -> dict[str, Any]:
    tracked = [t for argument in arguments.values() for t in leaves(argument) if t.requires_grad]
    gradients = cast(
        "tuple[Tensor | None, ...]",
        torch.autograd.grad(value, tracked, allow_unused=True, retain_graph=True),
    )
    table = {
        id(t): torch.zeros_like(t) if g is None else g
        for t, g in zip(tracked, gradients, strict=True)
    }
    return {
        name: map_tensors(argument, lambda t: table.get(id(t), torch.zeros_like(t)))
        for name, argument in arguments.items()
    }


def _effects(
    arguments: dict[str, Any], gradients: dict[str, Any], terms: list[Term], sample: SampleRows
) -> Float[Tensor, "row"]:
    total = torch.zeros(len(sample.group), dtype=torch.float64)
    with torch.no_grad():
        for term in terms:
            state, gradient = arguments[term.name], gradients[term.name]
            if term.index is not None:
                state, gradient = state[term.index], gradient[term.index]
            columns = columns_of(term, sample)
            detached = map_tensors(state, lambda t: t.detach())
            effect = term.statistic.influence(detached, gradient, *columns)
            if effect is not None:
                total += effect.double().cpu()
    return total


def columns_of(term: Term, sample: SampleRows) -> list[Any]:
    """Return the sampled columns that a term's statistic takes, in its order."""
    first, last = (sample.columns[key] for key in (term.keys[0], term.keys[-1]))
    return [last["x"] if name == "y" else first[name] for name in term.statistic.needs()]
