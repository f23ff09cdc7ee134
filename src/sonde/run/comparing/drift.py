"""Compare two fitted bundles at every site that both have, from their states alone."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch

from sonde.core._shown import html_table, told
from sonde.core.errors import InputError, SondeError
from sonde.core.shift import Comparison, Shift, Side
from sonde.core.state import equal
from sonde.detect import (
    MMD,
    ClassifierTwoSample,
    Frechet,
    Hotelling,
    ReconstructionShift,
    SubspaceShift,
    UnitShift,
)
from sonde.detect._sides import TwoSamples, paired_rows
from sonde.engine.progress import Bar
from sonde.engine.requests import Task
from sonde.run.comparing.broken_rows import BROKEN, MISSING, broken_rows, missing_values
from sonde.run.comparing.moved_direction import MovedDirection, moved_direction
from sonde.run.fitting.evidence import evidence, groups_of, sample
from sonde.run.fitting.fitted import Fitted, as_fitted
from sonde.run.instruments.entries import Key, names_of
from sonde.run.reading.recipe import recipe_in, require_same_columns
from sonde.stats import HashSampleState, adjusted_p
from sonde.stats.adjusted_p import Correction

LEAST_TIMES, MOST_TIMES = 999, 4999
DEFAULTS = 7
Sameness = Literal["same", "some", "other"]


@dataclass(frozen=True)
class Drift:
    """Comparisons by (method, site), and the reason for each comparison that was not possible.

    Parameters
    ----------
    found : dict of (method, site) to Comparison
    left_out : dict of (method, site) to str
    basis : dict of (method, site) to (str, str)
        Which rows of each side a comparison is about.
    directions : dict of site to MovedDirection
        Where each mean went.
    rows : {"same", "some", "other"}
        Whether both sides are the same rows (p-values come from pairs), share some, or none.
    identical : bool
        Whether the bundles hold the same states.
    """

    found: dict[Key, Comparison]
    left_out: dict[Key, str]
    basis: dict[Key, tuple[str, str]] = field(default_factory=dict[Key, tuple[str, str]])
    directions: dict[str, MovedDirection] = field(default_factory=dict[str, MovedDirection])
    rows: Sameness = "other"
    identical: bool = False

    def _repr_html_(self) -> str:
        rows = [(*key, told(c)[0], f"{c.p:.3g}") for key, c in self.found.items()]
        columns = ("method", "site", "difference", "p")
        return html_table(f"Drift: rows {self.rows}", columns, rows, len(rows))

    def __iter__(self) -> Iterator[tuple[Key, Comparison]]:
        return iter(self.found.items())

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, key: Key) -> Comparison:
        return self.found[key]

    def adjusted(self, correction: Correction = "holm") -> dict[Key, float]:
        """Return the p-values, adjusted for the number of comparisons (multiple testing)."""
        p = torch.tensor([c.p for c in self.found.values()], dtype=torch.float64)
        numbers = adjusted_p(p, correction).tolist()  # pyright: ignore[reportUnknownMemberType]
        return dict(zip(self.found, numbers, strict=True))

    def moved(self, level: float = 0.05, correction: Correction = "holm") -> list[Key]:
        """Return the comparisons that are significant at this level, by ascending p-value."""
        adjusted = self.adjusted(correction)
        chosen = [key for key, p in adjusted.items() if not math.isnan(p) and p <= level]
        return sorted(chosen, key=lambda key: (adjusted[key], key))


def drift(
    first: Fitted | str | Path,
    second: Fitted | str | Path,
    shifts: Shift | Iterable[Shift] | None = None,
    *,
    level: float = 0.05,
    progress: bool = False,
) -> Drift:
    """Compare two fitted bundles at every site that both have.

    A shift need not have been fitted if both bundles hold the states that it reads, or moments of
    classes or a sample of rows from which these states follow. Rows of one group count once. The
    bundles may be of two models: sites are matched by name. If both sides are the same rows, they
    are compared in pairs if both bundles hold a sample of them, and else have no p-value.

    Parameters
    ----------
    first, second : Fitted, or the paths of bundles
        The reference and the other.
    shifts : Shift or iterable of Shift, optional
        By default the shifts that a bundle was fitted with, and the default shifts, as far as both
        bundles can answer them; and the fractions of rows with NaN or infinity, and of missing
        values of a column, which no shift sees.
    level : float, default=0.05
        The default shifts permute often enough, but at most 4,999 times, for a comparison to reach
        this level after the correction for all comparisons.
    progress : bool, default=False
        A bar on stderr after two seconds.

    Returns
    -------
    Drift

    Raises
    ------
    InputError
        If the bundles share no site, or the states of no shift.
    StateError
        If the bundles are of tables whose columns of numbers, or their order, differ.

    Examples
    --------
    >>> import torch
    >>> from sonde.core import Stream
    >>> from sonde.detect import Hotelling
    >>> from sonde.measure import Covariance
    >>> from sonde.run.fitting.fit import fit
    >>> rows = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    >>> sides = rows[:300], rows[300:] + 1
    >>> a, b = (fit(Covariance(), Stream.of(x), progress=False) for x in sides)
    >>> drift(a, b, Hotelling()).moved()
    [('hotelling', 'x')]
    """
    first, second = as_fitted(first, "drift"), as_fitted(second, "drift")
    require_same_columns(recipe_in(first.header), recipe_in(second.header), "drift")
    keys = _shared_sites(first, second)
    named = _known(first, second, len(keys), level) if shifts is None else shifts
    chosen = [named] if isinstance(named, Shift) else list(named)
    tasks = [Task(shift, (key,)) for shift in chosen for key in keys]
    result = Drift({}, {}, rows=_sameness(first, second, keys), identical=_identical(first, second))
    with Bar("drift", len(tasks), progress) as bar:
        for name, task in zip(names_of(tasks), tasks, strict=True):
            _note(result, name, first, second, task, asked=shifts is not None)
            bar.advance(1)
    if shifts is None:
        _count_rows_left_out(result, first, second, keys)
    if not result.found and not result.left_out:
        raise InputError(
            "drift: expected bundles that both hold the states of a shift, got none. "
            "Fit both with hotelling, unit_shift or another; `sonde methods detect` lists them."
        )
    for key in keys:
        sides = [c.sides for (_, site), c in result.found.items() if site == key]
        where = _direction(first, second, key, sides) if sides else None
        if where is not None:
            result.directions[key] = where
    return result


def _count_rows_left_out(made: Drift, first: Fitted, second: Fitted, keys: list[str]) -> None:
    """Add the fractions of broken rows and missing values, which no other comparison reads."""
    for key in keys:
        if (moved := broken_rows(first, second, key)) is not None:
            made.found[BROKEN, key] = moved
            made.basis[BROKEN, key] = ("all rows", "all rows")
    for column, moved in missing_values(first, second).items():
        made.found[MISSING, f"column {column}"] = moved
        made.basis[MISSING, f"column {column}"] = ("all rows", "all rows")


def _note(made: Drift, name: Key, first: Fitted, second: Fitted, task: Task, asked: bool) -> None:
    """Add a comparison, or the reason why it is missing."""
    try:
        one, other = (_side(bundle, task) for bundle in (first, second))
        if one is not None and other is not None:
            comparison = one.side.compare(other.side)
            made.found[name] = _withheld(comparison, made, first, second, task.keys[0])
            made.basis[name] = (one.basis, other.basis)
        elif asked:
            made.left_out[name] = (
                "one of the bundles does not hold the states of this method; fit both "
                "bundles with it"
            )
    except SondeError as error:
        made.left_out[name] = str(error)


def _withheld(
    found: Comparison, made: Drift, first: Fitted, second: Fitted, key: str
) -> Comparison:
    """Return a comparison, without its p-value if equal rows in both bundles cannot be paired."""
    if made.rows != "same" or "paired" in found.flags or float(found) == 0:
        return found
    if _pairs(first, second, key) is not None:
        return found
    return replace(found, p=math.nan, flags=(*found.flags, "paired"))


@dataclass(frozen=True)
class _Found:
    side: Side
    basis: str


def _side(bundle: Fitted, task: Task) -> _Found | None:
    """Return a bundle's state for a two-sample test after its last pass, or None if missing."""
    shift, key = task.instrument, task.keys[0]
    while True:
        held = {n: evidence(bundle, r.statistic, key) for n, r in shift.all_reads().items()}
        if any(e is None for e in held.values()):
            return None
        states = {name: e.state for name, e in held.items() if e is not None}
        with torch.no_grad():
            side = shift.result(**states)
        following = shift.then(side)
        if following is None:
            break
        shift = following
    shift.require_rows(side, key)
    if not isinstance(side, Side):
        raise TypeError(
            f"drift: expected the state of one data set for {shift}, got {type(side).__name__}."
        )
    beside = sample(bundle, key)
    if beside is not None and "sample" not in states:
        states["sample"] = beside.state
    held_states = [e for e in held.values() if e is not None]
    groups = groups_of(
        bundle, side.n, held_states[0].part
    )  # the side counts the rows of its first state
    side = replace(side, states=states, groups=groups, data=_data(bundle))
    return _Found(side, " and ".join(dict.fromkeys(e.basis for e in held_states)))


def _data(bundle: Fitted) -> str:
    """Return a name for a bundle's rows: the fingerprint of the data and the number of examples."""
    data = bundle.header["data"]
    return f"{data['fingerprint']}|{data['n_examples']}" if data["fingerprint"] else ""


def _sampled(first: Fitted, second: Fitted, key: str) -> list[tuple[HashSampleState, int]]:
    """Return each bundle's sample of rows at a site, if it has one, with its number of groups."""
    samples = [(bundle, sample(bundle, key)) for bundle in (first, second)]
    return [
        (e.state, groups_of(bundle, e.state.n, e.part))
        for bundle, e in samples
        if e is not None and isinstance(e.state, HashSampleState)
    ]


def _sameness(first: Fitted, second: Fitted, keys: list[str]) -> Sameness:
    """Return whether the bundles hold the same rows, some common rows, or none."""
    if _data(first) and _data(first) == _data(second):
        return "same"
    shared: Sameness = "other"
    for key in keys:
        both = [state for state, _ in _sampled(first, second, key)]
        if len(both) < 2 or not len(both[0].draw):
            continue
        own, theirs = (set(state.draw.tolist()) for state in both)
        if own == theirs:
            return "same"
        shared = "some" if own & theirs else shared
    return shared


def _identical(first: Fitted, second: Fitted) -> bool:
    same = first.states.keys() == second.states.keys()
    return same and all(equal(first.states[i], second.states[i]) for i in first.states)


def _pairs(first: Fitted, second: Fitted, key: str) -> TwoSamples | None:
    """Return the sampled rows of a site in pairs, or None if the sides hold different rows."""
    both = _sampled(first, second, key)
    if len(both) < 2 or both[0][0].rows.shape[1] != both[1][0].rows.shape[1]:
        return None
    sides = [
        Side(value=float(s.n), n=s.n, shift=MMD(), states={"sample": s}, groups=groups)
        for s, groups in both
    ]
    return paired_rows("drift", sides[0], sides[1])


def _direction(
    first: Fitted, second: Fitted, key: str, sides: list[tuple[int, int]]
) -> MovedDirection | None:
    most = max(n for n, _ in sides), max(n for _, n in sides)
    return moved_direction(first, second, key, most, _pairs(first, second, key))


def _known(first: Fitted, second: Fitted, sites: int, level: float) -> list[Shift]:
    """Return the two-sample tests that either bundle was fitted with, and the default tests."""
    fitted = [t.instrument for b in (first, second) for t in b.tasks]
    chosen = [i for i in fitted if isinstance(i, Shift)]
    taken = {type(shift) for shift in chosen}
    wanted = math.ceil(2 * sites * DEFAULTS / level) - 1
    times = min(max(wanted, LEAST_TIMES), MOST_TIMES)
    defaults: list[Shift] = [
        Hotelling(),
        UnitShift(),
        SubspaceShift(permutations=times),
        Frechet(permutations=times),
        MMD(m=512, permutations=times),
        ClassifierTwoSample(),
        ReconstructionShift(permutations=times),
    ]
    chosen += [shift for shift in defaults if type(shift) not in taken]
    return list(dict.fromkeys(chosen))


def _shared_sites(first: Fitted, second: Fitted) -> list[str]:
    """Return the sites that both bundles have."""
    sites = [
        dict.fromkeys(key for task in bundle.tasks for key in task.keys)
        for bundle in (first, second)
    ]
    shared = [key for key in sites[0] if key in sites[1]]
    if not shared:
        raise InputError(
            f"drift: expected bundles that share a site, got {list(sites[0])[:5]} and "
            f"{list(sites[1])[:5]}. Fit both at the same sites with the same reducer."
        )
    return shared
