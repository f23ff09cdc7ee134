"""A bundle of fitted states: its origin, its results, and its file.

Only states are stored; results, scorers and later passes are rebuilt from them.
"""

import functools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sonde.core._shown import html_table, places, told
from sonde.core.clearance import LABELS, joined_labels
from sonde.core.errors import InputError, StateError
from sonde.core.instrument import Detector, Instrument, OnlySinks
from sonde.core.plan import STATE_VERSION, Split
from sonde.core.result import Result, Scorer
from sonde.core.state import digest, require_finite
from sonde.core.wording import plural
from sonde.engine.errorbars import left_out, result_with_error, with_copies, with_few_groups
from sonde.engine.passes import states_of
from sonde.engine.progress import Working
from sonde.engine.requests import Request, States, Task, terms_of
from sonde.files.places import to_path
from sonde.files.state_file import read_header, read_state, state_type, write_state
from sonde.run.fitting._joining import Bundle, joined, joined_split
from sonde.run.fitting._kept_sinks import with_value_of_sinks
from sonde.run.fitting._soundness import check_states
from sonde.run.fitting.group_counts import damaged_counts
from sonde.run.instruments.entries import (
    Key,
    entry_of,
    inner_of,
    names_of,
    spec_of,
    tasks_of,
    word_of,
)
from sonde.run.instruments.stages import has_stages, last_task, next_tasks
from sonde.run.instruments.tasks import ErrorSample, requests_of
from sonde.stats import Calibrated, CalibratedScorer
from sonde.stats.calibrated import Lengths

_log = logging.getLogger("sonde")

MOST_NAMED = 8


@dataclass(frozen=True, eq=False)
class Fitted:
    """States of some instruments at some sites, with a header that says where they come from.

    Parameters
    ----------
    tasks : tuple of Task
        Instruments as asked for (detectors calibrated) and the rows that each result is about.
    states : dict of id to State or None
        Fitted states by key, from all passes over the data.
    header : dict
        Model, sites, plans with the units that were seen, data, counters.
    split : Split or None
        The held-out part of the plan.
    sample : ErrorSample or None
        Where error bars come from.
    further : tuple[type[Instrument], ...], default=()
        Classes of your own instruments, which the catalogue does not know.
    """

    tasks: tuple[Task, ...]
    states: States
    header: dict[str, Any]
    split: Split | None = None
    sample: ErrorSample | None = None
    further: tuple[type[Instrument], ...] = field(default=(), repr=False)

    @cached_property
    def requests(self) -> dict[str, Request]:
        """The request of every state in the bundle, by id."""
        wanted = requests_of(self.tasks, self.sample, self.split)
        following = next_tasks(self.tasks, self.states, self.split)
        while following:
            wanted.update(requests_of(following, None, self.split))
            following = next_tasks(following, self.states, self.split)
        return dict(sorted(wanted.items()))

    @cached_property
    def _results(self) -> dict[int, Result]:
        return {}

    def __iter__(self) -> Iterator[tuple[Key, Result]]:
        for i, name in enumerate(self.names):
            yield name, self._result(i)

    def __len__(self) -> int:
        return len(self.tasks)

    def __repr__(self) -> str:
        words = list(dict.fromkeys(word for word, _ in self.names))
        words = words if len(words) <= MOST_NAMED else [*words[:MOST_NAMED], "..."]
        held = "" if self.split is None else f", {self.split.held:.0%} held out"
        where = places([site["text"] for site in self.header["sites"]])
        data = f"{plural(self.header['data']['n_examples'], 'example')}{held}"
        return f"Fitted({', '.join(words)} at {where}; {data})"

    def _repr_html_(self) -> str:
        rows = ((word, site, *told(result)) for (word, site), result in self)
        columns = ("method", "site", "value", "n", "calibrated on")
        return html_table(repr(self), columns, rows, len(self))

    @cached_property
    def names(self) -> list[Key]:
        """The (method, site) pairs with a result; ``knn(k=5)`` if a site has several ``knn``."""
        return names_of(self.tasks)

    def result(self, method: str | type[Instrument] | Instrument, site: str | None = None) -> Any:
        """Return the result of a method at a site; the site may be left out if there is only one.

        Raises
        ------
        StateError
            If the bundle has no such result, or several.
        """
        places = (str(site), f"{site}:out")
        matching = [
            i
            for i, (_, place) in enumerate(self.names)
            if self._is(i, method) and (site is None or place in places)
        ]
        if len(matching) != 1:
            names = ", ".join(f"{w} at {s}" for w, s in self.names[:20])
            what = method if isinstance(method, str) else word_of(method)
            raise StateError(
                f"Fitted.result: expected one result of {what!r} at {site or 'its only site'}, "
                f"got {len(matching)}. The bundle has: {names}."
            )
        return self._result(matching[0])

    def _is(self, i: int, method: str | type[Instrument] | Instrument) -> bool:
        instrument = self.tasks[i].instrument
        if isinstance(method, str):
            return method in (word_of(instrument), self.names[i][0])
        if isinstance(method, type):
            return isinstance(inner_of(instrument), method)
        return digest(inner_of(method)) == digest(inner_of(instrument))

    def _result(self, i: int) -> Result:
        if i not in self._results:
            word, site = self.names[i]
            with Working(f"result of {word} at {site}"):
                self._results[i] = self._computed(i)
        return self._results[i]

    def _computed(self, i: int) -> Result:
        task = last_task(self.tasks[i], self.states, self.split)
        rows = sinks = None
        if self.sample is not None and task.instrument.estimates:
            n_groups = int(self.header["data"]["n_groups"])
            rows = self.sample.rows(task.keys, self.states, n_groups)
            if self.sample.sinks:
                sinks = self.sample.rows(task.keys, self.states, n_groups, OnlySinks())
        states, terms = states_of(task, self.states, self.split), terms_of(task, self.split)
        result = result_with_error(task.instrument, states, terms, rows)
        if sinks is not None:
            result = with_value_of_sinks(result, task.instrument, states, terms, sinks)
        inner_of(self.tasks[i].instrument).require_rows(result, self.names[i][1])
        broken = any(self.header["counters"].get(f"nonfinite|{key}") for key in task.keys)
        result = with_few_groups(result, int(self.header["data"]["n_groups"]))
        result = self._with_lengths(with_copies(result, *self._copies), self.names[i])
        return left_out(result) if broken else result

    def _with_lengths(self, result: Result, name: Key) -> Result:
        """Return a scorer with the lengths of the examples that calibrated it."""
        lengths = [
            Lengths(*rest)
            for seen in self.header.get("calibrations", ())
            for word, site, *rest in seen.get("lengths", ())
            if (word, site) == name
        ]
        if not lengths or not isinstance(result, CalibratedScorer):
            return result
        return replace(result, lengths=functools.reduce(Lengths.merge, lengths))

    @property
    def _copies(self) -> tuple[int, int]:
        """Number of examples whose id is a repeat, and of all examples; 0 if they are in groups."""
        data = self.header["data"]
        n, n_groups = int(data["n_examples"]), int(data["n_groups"])
        return 0 if data.get("grouped") else n - n_groups, n

    @property
    def spec(self) -> str:
        """Return the hash of the methods with all their parameters and sites."""
        return spec_of(self.tasks)

    @property
    def scorers(self) -> dict[Key, Scorer]:
        """The scorers by (method, site), calibrated if the fit held rows out."""
        return {
            name: self._result(i)  # type: ignore[misc]
            for i, name in enumerate(self.names)
            if isinstance(self.tasks[i].instrument, Calibrated | Detector)
        }

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class number; empty if classes have no names."""
        return tuple(self.header["data"].get("label_names", ()))

    def save(self, path: str | Path) -> str:
        """Write the bundle to one file and return its id (sha256 of the file).

        Raises
        ------
        StateError
            If a state is not finite.
        """
        require_finite(self.states)
        return write_state(to_path(path), self._header_for_file(), self.states)

    def _header_for_file(self) -> dict[str, Any]:
        sample = (
            None
            if self.sample is None
            else {
                "columns": list(self.sample.columns),
                "groups": self.sample.groups,
                "sinks": self.sample.sinks,
            }
        )
        return {
            **self.header,
            "format": "sonde-state",
            "version": STATE_VERSION,
            "entries": [entry_of(task) for task in self.tasks],
            "split": None if self.split is None else self.split.json(),
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
            If the file is damaged, hostile or of another version, or if the parameters of one of
            its instruments mean something else today.
        """
        path, further = to_path(path), tuple(instruments)
        header = read_header(path)
        kind, version = header.get("format"), header.get("version")
        if (kind, version) != ("sonde-state", STATE_VERSION):
            later = type(version) is int and version > STATE_VERSION
            raise StateError(
                f"Fitted.load: expected a fitted state of version {STATE_VERSION}, got {kind!r} "
                f"version {version!r} at {path}. "
                + ("A later sonde wrote it: install that version." if later else "Fit it again.")
            )
        _check_header(header, path)
        tasks, split, sample = tasks_of(header, further, path)
        wanted = requests_of(tasks, sample, split)
        following = [task for task in tasks if has_stages(task)]
        while following:
            _, states = read_state(path, _types(wanted), partial=True)
            check_states(states, path)
            following = next_tasks(following, states, split)
            wanted.update(requests_of(following, None, split))
        _, states = read_state(path, _types(wanted))
        check_states(states, path)
        kept = {k: v for k, v in header.items() if k not in ("entries", "split", "sample")}
        fitted = cls(tuple(tasks), states, kept, split, sample, further)
        _log.info("%s: %r", path, fitted)
        return fitted

    def merge(self, other: "Fitted") -> "Fitted":
        """Return the bundle that holds the units of both bundles.

        Raises
        ------
        StateError
            If the bundles differ in model, reading, instruments or classes, or if they share units
            or most of their rows. A few shared rows give a warning.
        """
        states, header = joined(self._contents, other._contents)
        split = joined_split(self.split, other.split)
        return replace(self, states=states, header=header, split=split)

    def declassified(self, *labels: str) -> "Fitted":
        """Return the bundle without some access labels, for readers without those permissions.

        Raises
        ------
        StateError
            If the bundle has no such label.
        """
        own = joined_labels(self.header)
        if unknown := {*labels} - {*own}:
            raise StateError(
                f"Fitted.declassified: expected labels among {', '.join(own) or 'none'}, got "
                f"{', '.join(sorted(unknown))}."
            )
        return replace(self, header=self.header | {LABELS: [x for x in own if x not in labels]})

    @property
    def _contents(self) -> Bundle:
        return Bundle(
            self.tasks, self.requests, self.states, self.header, self.split, self.label_names
        )


def as_fitted(probe: Fitted | str | Path, caller: str) -> Fitted:
    """Return a bundle, read from its file if a path is given.

    Raises
    ------
    InputError
        If it is neither a bundle nor a path.
    """
    if isinstance(probe, Fitted):
        return probe
    if isinstance(probe, str | Path):
        return Fitted.load(probe)
    raise InputError(
        f"{caller}: expected a fitted bundle or the path of one, got {type(probe).__name__}. "
        "Pass what sonde.fit returned, or the file that it was saved to."
    )


_FIELDS = {
    "model": dict, "reading": dict, "data": dict, "counters": dict, "units": list, "sites": list,
    "entries": list,
}  # fmt: skip
_SITE_FIELDS = {"text": str, "dim": int, "reducer": str}


def _check_header(header: dict[str, Any], path: Path) -> None:
    """Raise if a header's fields differ from the fields that ``save`` writes."""
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(header.get(name), kind)]
    wrong += [
        f"sites[{i}]"
        for i, site in enumerate(header.get("sites") or ())
        if not isinstance(site, dict)
        or any(not isinstance(site.get(n), k) for n, k in _SITE_FIELDS.items())
    ]
    wrong = wrong or damaged_counts(header)
    if wrong:
        raise StateError(f"Fitted.load: the header of {path} is damaged at {', '.join(wrong)}.")


def _types(wanted: dict[str, Request]) -> dict[str, Any]:
    return {i: state_type(r.statistic) for i, r in wanted.items()}
