"""A bundle of fitted states: what it was fitted on, what it answers, and how it travels.

Only states are stored; results and scorers are rebuilt from them. A bundle names its instruments by
their words in the catalogue, never by an importable path.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sonde.core.errorbars import result_with_error
from sonde.core.errors import StateError
from sonde.core.instrument import Detector, Instrument
from sonde.core.passes import Request, States, Task, merge_states, states_of, terms_of
from sonde.core.plan import STATE_VERSION, Split
from sonde.core.result import Result
from sonde.core.state import canonical, digest
from sonde.core.statefile import read_header, read_state, state_type, write_state
from sonde.run.catalogue import find, snake_case
from sonde.run.ledger import add_counters, join_units
from sonde.run.tasks import ErrorSample, requests_of
from sonde.stats import Calibrated, CalibratedScorer

Key = tuple[str, str]


@dataclass(frozen=True, eq=False)
class Fitted:
    """States of some instruments at some sites, with a header that says where they come from.

    Parameters
    ----------
    tasks : tuple of Task
        Instruments (detectors calibrated) and the rows that each result is about.
    states : dict of id to State or None
    header : dict
        Model, sites, plans with the units that were seen, data, counters.
    split : Split or None
        The held-out part of the plan.
    sample : ErrorSample or None
        Where error bars come from.
    """

    tasks: tuple[Task, ...]
    states: States
    header: dict[str, Any]
    split: Split | None = None
    sample: ErrorSample | None = None
    further: tuple[type[Instrument], ...] = field(default=(), repr=False)

    @cached_property
    def requests(self) -> dict[str, Request]:
        """Every state in the bundle and how it was asked for."""
        return requests_of(self.tasks, self.sample, self.split)

    @cached_property
    def _results(self) -> dict[Key, Result]:
        return {}

    def __iter__(self) -> Iterator[tuple[Key, Result]]:
        for task in self.tasks:
            yield name_of(task), self._result(task)

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def names(self) -> list[Key]:
        """The (method, site) pairs that have a result."""
        return [name_of(task) for task in self.tasks]

    def result(self, method: str | type[Instrument] | Instrument, site: str | None = None) -> Any:
        """Return the result of a method at a site; the site may be left out where there is one.

        Raises
        ------
        StateError
            If the bundle has no such result.
        """
        word = method if isinstance(method, str) else word_of(method)
        mine = [t for t in self.tasks if name_of(t)[0] == word]
        if site is not None:
            mine = [t for t in mine if name_of(t)[1] in (str(site), f"{site}:out")]
        if len(mine) != 1:
            known = ", ".join(f"{w} at {s}" for w, s in self.names[:20])
            raise StateError(
                f"Fitted.result: expected one result of {word!r} at {site or 'its only site'}, "
                f"got {len(mine)}. The bundle has: {known}."
            )
        return self._result(mine[0])

    def _result(self, task: Task) -> Result:
        name = name_of(task)
        if name not in self._results:
            rows = None
            if self.sample is not None and not isinstance(task.instrument, Calibrated | Detector):
                n_groups = int(self.header["data"]["n_groups"])
                rows = self.sample.rows(task.keys, self.states, n_groups)
            self._results[name] = result_with_error(
                task.instrument,
                states_of(task, self.states, self.split),
                terms_of(task, self.split),
                rows,
            )
        return self._results[name]

    @property
    def scorers(self) -> dict[Key, CalibratedScorer]:
        """The calibrated scorers by (method, site)."""
        return {
            name_of(t): self._result(t)  # type: ignore[misc]
            for t in self.tasks
            if isinstance(t.instrument, Calibrated | Detector)
        }

    def save(self, path: str | Path) -> str:
        """Write the bundle to one file and return its id (sha256 of the file)."""
        return write_state(Path(path), self._header_for_file(), self.states)

    def _header_for_file(self) -> dict[str, Any]:
        entries = []
        for task in self.tasks:
            inner = _inner(task.instrument)
            entries.append(
                {
                    "instrument": word_of(inner),
                    "params": {f.name: canonical(getattr(inner, f.name)) for f in fields(inner)},  # type: ignore[arg-type]
                    "calibrated": task.instrument.m
                    if isinstance(task.instrument, Calibrated)
                    else None,
                    "sites": list(task.keys),
                    "digest": digest(inner),
                }
            )
        split = None if self.split is None else {"held": self.split.held, "seed": self.split.seed}
        sample = (
            None
            if self.sample is None
            else {"columns": list(self.sample.columns), "groups": self.sample.groups}
        )
        return {
            **self.header,
            "format": "sonde-state",
            "version": STATE_VERSION,
            "entries": entries,
            "split": split,
            "sample": sample,
        }

    @classmethod
    def load(cls, path: str | Path, instruments: Iterable[type[Instrument]] = ()) -> "Fitted":
        """Read a bundle.

        Parameters
        ----------
        path : path
        instruments : iterable of Instrument classes, optional
            Classes of your own that the bundle was fitted with; sonde's are known.

        Raises
        ------
        StateError
            If the file is damaged, hostile, of another version, or of an instrument whose
            parameters mean something else today.
        """
        path, further = Path(path), tuple(instruments)
        header = read_header(path)
        if header.get("version") != STATE_VERSION or header.get("format") != "sonde-state":
            raise StateError(
                f"Fitted.load: expected a fitted state of version {STATE_VERSION}, "
                f"got {header.get('format')!r} version {header.get('version')!r} at {path}. "
                "Fit it again with this version."
            )
        tasks, split, sample = _tasks_of(header, further, path)
        wanted = requests_of(tasks, sample, split)
        _, states = read_state(path, {i: state_type(r.statistic) for i, r in wanted.items()})
        missing = wanted.keys() - states.keys()
        if missing:
            raise StateError(f"Fitted.load: {len(missing)} states are missing in {path}.")
        kept = {k: v for k, v in header.items() if k not in ("entries", "split", "sample")}
        return cls(tuple(tasks), states, kept, split, sample, further)

    def merge(self, other: "Fitted") -> "Fitted":
        """Return the bundle of both sets of units.

        Raises
        ------
        StateError
            If the bundles are of another model, reading or instruments, or share units.
        """
        if self.requests.keys() != other.requests.keys():
            raise StateError(
                "Fitted.merge: the bundles hold other states. Fit both with the same instruments, "
                "parameters and sites; a second pass whose parameters come from a first one must "
                "be fitted together."
            )
        for name in ("model", "sites"):
            if self.header.get(name) != other.header.get(name):
                raise StateError(f"Fitted.merge: the bundles are of another {name}.")
        header = {
            **self.header,
            "units": merge_units(self.header["units"], other.header["units"]),
            "counters": add_counters(self.header["counters"], other.header["counters"]),
            "data": _merge_data(self.header["data"], other.header["data"]),
        }
        return replace(
            self, states=merge_states(self.requests, self.states, other.states), header=header
        )


Units = list[dict[str, Any]]


def merge_units(a: Units, b: Units) -> Units:
    """Return which units of which plans both bundles have seen together.

    Raises
    ------
    StateError
        If a unit would be counted twice: the same unit of one plan, or the same data under two
        plans that differ in their cut.
    """
    by_plan = {entry["plan"]: entry for entry in a}
    merged = {plan: dict(entry) for plan, entry in by_plan.items()}
    for entry in b:
        plan = entry["plan"]
        if plan not in merged:
            clash = [e for e in a if e["data"] == entry["data"]]
            if clash:
                raise StateError(
                    "Fitted.merge: both bundles have seen the same data "
                    f"(fingerprint {entry['data'][:12]}) under different plans, units "
                    f"{clash[0]['units']} and {entry['units']}: rows would count twice."
                )
            merged[plan] = dict(entry)
            continue
        merged[plan]["units"] = join_units(merged[plan]["units"], entry["units"])
    return [merged[plan] for plan in sorted(merged)]


def _merge_data(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    both = sorted({a["fingerprint"], b["fingerprint"]})
    return {
        **a,
        "fingerprint": "+".join(both),
        "n_examples": a["n_examples"] + b["n_examples"],
        "n_groups": a["n_groups"] + b["n_groups"],
    }


def _tasks_of(
    header: dict[str, Any], further: tuple[type[Instrument], ...], path: Path
) -> tuple[list[Task], Split | None, ErrorSample | None]:
    try:
        split = None if header["split"] is None else Split(**header["split"])
        raw = header["sample"]
        sample = (
            None if raw is None else ErrorSample(tuple(raw["columns"]), bool(raw["groups"]), split)
        )
        tasks = [_task_of(entry, further) for entry in header["entries"]]
    except (KeyError, TypeError, ValueError) as error:
        raise StateError(
            f"Fitted.load: the header of {path} is not one of ours: {error}."
        ) from error
    return tasks, split, sample


def _task_of(entry: dict[str, Any], further: tuple[type[Instrument], ...]) -> Task:
    cls = find(entry["instrument"], further)
    parameters = {k: tuple(v) if isinstance(v, list) else v for k, v in entry["params"].items()}
    instrument = cls(**parameters)
    if digest(instrument) != entry["digest"]:
        raise StateError(
            f"Fitted.load: {entry['instrument']} has other parameters today than when the state "
            "was fitted. Fit it again."
        )
    if entry["calibrated"] is not None:
        if not isinstance(instrument, Detector):
            raise StateError(f"Fitted.load: {entry['instrument']} is no detector.")
        instrument = Calibrated(instrument, m=int(entry["calibrated"]))
    return Task(instrument, tuple(str(s) for s in entry["sites"]))


def _inner(instrument: Instrument) -> Instrument:
    return instrument.detector if isinstance(instrument, Calibrated) else instrument


def word_of(instrument: Instrument | type[Instrument]) -> str:
    """Return the command-line word of an instrument, calibrated or not."""
    if isinstance(instrument, type):
        return snake_case(instrument.__name__)
    return snake_case(type(_inner(instrument)).__name__)


def name_of(task: Task) -> Key:
    """Return the (method, site) under which a task's result is found."""
    return word_of(task.instrument), " & ".join(task.keys)
