"""Fitted states over the steps of a training run: a folder with a file for each step.

Every file is whole or missing, so a killed training leaves the steps that it had recorded. A
training that resumes from an earlier checkpoint writes later steps again.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from sonde.core._shown import html_table, told
from sonde.core.errors import InputError, StateError, StoreError, near
from sonde.core.instrument import Instrument
from sonde.core.wording import plural
from sonde.engine.requests import Task
from sonde.files.durable import make_directory
from sonde.files.state_file import read_header
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.header import data_fingerprint, make_header
from sonde.run.fitting.prepared import Prepared
from sonde.run.instruments.entries import entry_of

_NAME = re.compile(r"^step-(\d{10})\.sonde$")
ALIKE = ("sites", "reading", "data", "entries")


@dataclass(frozen=True)
class Track:
    """A folder of fitted states, one for each recorded step.

    Parameters
    ----------
    directory : path
        Made with the first step.
    instruments : tuple of Instrument classes, optional
        Classes of your own that were fitted; sonde's are known.

    Examples
    --------
    >>> import tempfile, torch
    >>> from sonde.core import Stream
    >>> from sonde.measure import ParticipationRatio
    >>> from sonde.run.fitting.fit import fit
    >>> track = Track(Path(tempfile.mkdtemp()) / "run.track")
    >>> rows = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    >>> for step in (0, 10):
    ...     track.add(step, fit(ParticipationRatio(), Stream.of(rows), progress=False))
    >>> track.steps, track.table().column_names
    ((0, 10), ['step', 'site', 'method', 'index', 'value', 'se'])
    """

    directory: Path | str
    instruments: tuple[type[Instrument], ...] = ()

    @property
    def steps(self) -> tuple[int, ...]:
        """The recorded steps in ascending order."""
        place = Path(self.directory)
        names = [p.name for p in place.iterdir()] if place.is_dir() else []
        return tuple(sorted(int(m[1]) for name in names if (m := _NAME.match(name))))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, Fitted]]:
        return ((step, self.at(step)) for step in self.steps)

    def add(self, step: int, fitted: Fitted) -> None:
        """Write the states of one step; an existing step is replaced.

        Raises
        ------
        InputError
            If the step is below 0 or needs more than ten digits.
        StateError
            If the folder holds states of other instruments, sites or data.
        """
        if not 0 <= step < 10**10:
            raise InputError(f"Track.add: expected a step from 0 on, got {step}.")
        self.check(fitted)
        make_directory(self.directory)
        fitted.save(self.file(step))

    def check(self, fitted: Fitted) -> None:
        """Raise if states have other instruments, sites or data than the recorded steps.

        Raises
        ------
        StateError
            Naming what differs.
        """
        if not self.steps:
            return
        self._compare(fitted.header, fitted.tasks, self.steps[0])

    def check_reading(self, step: int, settled: Prepared) -> None:
        """Raise if a reading differs from the recorded steps' reading, before it starts.

        Parameters
        ----------
        step : int
            A recorded step.
        settled : Prepared
            The rows of the same checkpoint, and what is fitted on them.

        Raises
        ------
        StateError
            Naming what differs: instruments, sites, data, or the weights of the checkpoint.
        """
        units = [{"plan": "", "data": data_fingerprint(settled.stream), "units": []}]
        header = make_header(settled.stream, units, {}, settled.split)
        self._compare(header, settled.tasks, step)
        kept = read_header(self.file(step))
        if header["model"].get("model") != kept["model"].get("model"):
            raise self.other_checkpoint(step)

    def other_checkpoint(self, step: int) -> StateError:
        """Return the error of a recorded step whose checkpoint now holds other weights."""
        return StateError(
            f"Track: step {step:,} in {self.directory} was read from a checkpoint with other "
            "weights than the folder holds now. Run with --fresh to delete the record, or "
            "choose another folder with --record."
        )

    def clear(self) -> None:
        """Remove all recorded steps."""
        for step in self.steps:
            self.file(step).unlink(missing_ok=True)

    def _compare(self, header: Mapping[str, Any], tasks: Sequence[Task], step: int) -> None:
        own = {**header, "entries": [entry_of(task) for task in tasks]}
        there = read_header(self.file(step))
        for name in ALIKE:
            if own.get(name) != there.get(name):
                what = "instruments" if name == "entries" else name
                raise StateError(
                    f"Track: {self.directory} holds steps recorded with other {what}. Run with "
                    "--fresh to delete them, or record into another folder."
                )

    def at(self, step: int) -> Fitted:
        """Return the states of one step.

        Raises
        ------
        StoreError
            If it was not recorded.
        """
        if step not in self.steps:
            steps = [str(s) for s in self.steps]
            held = f"only {len(steps)} others" if steps else "no step at all"
            raise StoreError(
                f"Track.at: {self.directory} has no step {step}, {held}.{near(str(step), steps)}"
            )
        return Fitted.load(self.file(step), self.instruments)

    def _repr_html_(self) -> str:
        steps = self.steps
        if not steps:
            return html_table(f"Track: {self.directory}, nothing recorded yet", (), (), 0)
        first, last = dict(self.at(steps[0])), dict(self.at(steps[-1]))
        rows = [
            (*key, told(first[key])[0], told(result)[0])
            for key, result in last.items()
            if key in first
        ]
        columns = ("method", "site", f"step {steps[0]}", f"step {steps[-1]}")
        title = f"Track: {plural(len(steps), 'step')} in {self.directory}"
        return html_table(title, columns, rows, len(rows))

    def table(self) -> pa.Table:
        """Return a table of every scalar result over the steps.

        Returns
        -------
        pyarrow.Table
            ``step site method index value se``; ``index`` counts the entries of a value that is a
            vector, ``se`` is null where no valid error is known.
        """
        names = ("step", "site", "method", "index", "value", "se")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for step, fitted in self:
            for (method, site), result in fitted:
                for index, row in enumerate(result.table().to_pylist()):
                    entry = (step, site, method, index, row["value"], row.get("se"))
                    for name, value in zip(names, entry, strict=True):
                        columns[name].append(value)
        kinds = (pa.int64(), pa.string(), pa.string(), pa.int64(), pa.float64(), pa.float64())
        return pa.table(
            {n: pa.array(columns[n], kind) for n, kind in zip(names, kinds, strict=True)}
        )

    def chart(self, methods: Iterable[str] = ()) -> dict[str, Any]:
        """Return curves over the steps as a Vega-Lite dict: a panel for each method.

        Parameters
        ----------
        methods : iterable of str, optional
            Only these; values that are vectors are left out.

        Raises
        ------
        InputError
            If there is no such method, or nothing to draw.
        """
        rows = self.table().to_pylist()
        vectors = {(r["method"], r["site"]) for r in rows if r["index"] > 0}
        rows = [r for r in rows if (r["method"], r["site"]) not in vectors]
        names = sorted({r["method"] for r in rows})
        chosen = list(methods) or names
        unknown = [m for m in chosen if m not in names]
        if unknown or not names:
            raise InputError(
                f"Track.chart: {self.directory} has no curve of "
                f"{unknown[0] if unknown else 'anything'}; recorded: "
                f"{', '.join(names) or 'nothing'}.{near(unknown[0], names) if unknown else ''}"
            )
        return _curves([r for r in rows if r["method"] in chosen])

    def file(self, step: int) -> Path:
        """Return the file of one step."""
        return Path(self.directory) / f"step-{step:010d}.sonde"


def _curves(rows: list[dict[str, Any]]) -> dict[str, Any]:
    values = []
    for row in rows:
        value, se = row["value"], row["se"]
        if value is None or value != value:
            continue
        kept = {name: row[name] for name in ("step", "site", "method", "value")}
        if se is not None and se == se:
            kept |= {"low": value - 2 * se, "high": value + 2 * se}
        values.append(kept)
    x = {"field": "step", "type": "quantitative", "title": "step"}
    color = {"field": "site", "type": "nominal", "sort": None}
    y = {"field": "value", "type": "quantitative", "title": None, "scale": {"zero": False}}
    band = {
        "mark": {"type": "area", "opacity": 0.15},
        "transform": [{"filter": "isValid(datum.low)"}],
        "encoding": {
            "x": x,
            "y": {"field": "low", "type": "quantitative"},
            "y2": {"field": "high"},
            "color": color,
        },
    }
    line = {
        "mark": {"type": "line", "point": True, "tooltip": True},
        "encoding": {"x": x, "y": y, "color": color},
    }
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": values},
        "facet": {"row": {"field": "method", "type": "nominal", "title": None}},
        "spec": {"width": 420, "height": 180, "layer": [band, line]},
        "resolve": {"scale": {"y": "independent"}},
    }
