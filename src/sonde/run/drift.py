"""Two fitted bundles compared at every site that both have, from their states alone."""

import importlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import torch

from sonde.core.errors import InputError, SondeError
from sonde.core.passes import states_of
from sonde.core.requests import Task, requests
from sonde.core.shift import Comparison, Shift, Side
from sonde.run.catalogue import FAMILIES
from sonde.run.entries import Key, names_of
from sonde.run.fitted import Fitted
from sonde.run.stages import next_task
from sonde.stats import adjusted_p
from sonde.stats.adjusted_p import Correction


@dataclass(frozen=True)
class Drift:
    """Comparisons by (method, site), and what could not be compared, with the reason."""

    found: dict[Key, Comparison]
    left_out: dict[Key, str]

    def __iter__(self) -> Iterator[tuple[Key, Comparison]]:
        return iter(self.found.items())

    def __len__(self) -> int:
        return len(self.found)

    def __getitem__(self, key: Key) -> Comparison:
        return self.found[key]

    def adjusted(self, correction: Correction = "holm") -> dict[Key, float]:
        """Return the p-values, adjusted for the number of comparisons."""
        p = torch.tensor([c.p for c in self.found.values()], dtype=torch.float64)
        numbers = adjusted_p(p, correction).tolist()  # pyright: ignore[reportUnknownMemberType]
        return dict(zip(self.found, numbers, strict=True))

    def moved(self, level: float = 0.05, correction: Correction = "holm") -> list[Key]:
        """Return what moved at this level over all comparisons, the smallest p-value first."""
        adjusted = self.adjusted(correction)
        chosen = [key for key, p in adjusted.items() if not math.isnan(p) and p <= level]
        return sorted(chosen, key=lambda key: (adjusted[key], key))


def drift(first: Fitted, second: Fitted, shifts: Shift | Iterable[Shift] | None = None) -> Drift:
    """Compare two fitted bundles at every site that both have.

    A shift needs no fit of its own where both bundles hold the states that it reads. Rows of one
    group count once. The bundles may be of two models: sites are matched by name.

    Parameters
    ----------
    first, second : Fitted
        The reference and the other.
    shifts : Shift or iterable of Shift, optional
        Those that both bundles can answer where left out.

    Returns
    -------
    Drift

    Raises
    ------
    InputError
        If the bundles share no site, or the states of no shift.

    Examples
    --------
    >>> import torch
    >>> from sonde.core import Stream
    >>> from sonde.detect import Hotelling
    >>> from sonde.measure import Covariance
    >>> from sonde.run.fit import fit
    >>> rows = torch.randn(600, 4, generator=torch.Generator().manual_seed(0))
    >>> sides = rows[:300], rows[300:] + 1
    >>> a, b = (fit(Covariance(), Stream.of(x), progress=False) for x in sides)
    >>> drift(a, b, Hotelling()).moved()
    [('hotelling', 'x')]
    """
    keys = _shared_sites(first, second)
    named = _known(first, second) if shifts is None else shifts
    chosen = [named] if isinstance(named, Shift) else list(named)
    tasks = [Task(shift, (key,)) for shift in chosen for key in keys]
    found: dict[Key, Comparison] = {}
    left_out: dict[Key, str] = {}
    for name, task in zip(names_of(tasks), tasks, strict=True):
        try:
            comparison = _compare(first, second, task)
        except SondeError as error:
            left_out[name] = str(error)
            continue
        if comparison is not None:
            found[name] = comparison
        elif shifts is not None:
            left_out[name] = "the bundles do not both hold its states; fit both with it"
    if not found and not left_out:
        raise InputError(
            "drift: expected bundles that both hold the states of a shift, got none. "
            "Fit both with hotelling, unit_shift or another; `sonde methods detect` lists them."
        )
    return Drift(found, left_out)


def _compare(first: Fitted, second: Fitted, task: Task) -> Comparison | None:
    """Return the comparison at one site; None where a bundle lacks the states."""
    one, other = _side(first, task), _side(second, task)
    return None if one is None or other is None else one.compare(other)


def _side(bundle: Fitted, task: Task) -> Side | None:
    """Return a bundle's side of the last pass that its states answer."""
    following: Task | None = task
    while following is not None:
        wanted = requests([following], bundle.split)
        if any(name not in bundle.states for name in wanted):
            return None
        task = following
        following = next_task(task, bundle.states, bundle.split)
    with torch.no_grad():
        side = task.instrument.result(**states_of(task, bundle.states, bundle.split))
    task.instrument.require_rows(side, task.keys[0])
    assert isinstance(side, Side)
    return replace(side, groups=_groups(bundle, side.n))


def _groups(bundle: Fitted, rows: int) -> int:
    """Return how many groups the rows come from; 0 where each row stands for itself."""
    data = bundle.header["data"]
    if data.get("grouped"):
        return int(data["n_groups"])
    return int(data["n_examples"]) if rows > int(data["n_examples"]) else 0


def _known(first: Fitted, second: Fitted) -> list[Shift]:
    """Return the shifts that a bundle was fitted with, and all others by their defaults."""
    fitted = [t.instrument for b in (first, second) for t in b.tasks]
    chosen = [i for i in fitted if isinstance(i, Shift)]
    for family in FAMILIES:
        package = importlib.import_module(f"sonde.{family}")
        classes = [getattr(package, name) for name in package.__all__]
        chosen += [c() for c in classes if isinstance(c, type) and issubclass(c, Shift)]
    return list(dict.fromkeys(chosen))


def _shared_sites(first: Fitted, second: Fitted) -> list[str]:
    """Return the kinds of rows that both bundles have."""
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
