"""``Running``: a statistic or an instrument that is updated in place, batch by batch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from sonde.core._kinds import is_mapping
from sonde.core.columns import Columns
from sonde.core.errors import ShapeError, StateError
from sonde.core.instrument import Every, Instrument
from sonde.core.result import Result
from sonde.core.state import State, digest, require_finite
from sonde.core.statistic import Statistic
from sonde.core.stream import Stream
from sonde.engine.errorbars import result_with_error
from sonde.engine.passes import merge_states, observe_unit, states_of
from sonde.engine.requests import Request, States, Task, requests, terms_of
from sonde.files.places import to_path
from sonde.files.state_file import read_state, state_type, write_state


class Running:
    """A statistic or an instrument that is updated with arrays, batch by batch.

    Before the first row every state is None. Fed in another order, or merged from parts, it gives
    the same result to rounding.

    Parameters
    ----------
    what : Statistic or Instrument
        Statistic or instrument to update.

    Examples
    --------
    >>> import torch
    >>> from sonde.measure import ParticipationRatio
    >>> running = Running(ParticipationRatio())
    >>> rows = torch.randn(300, 4, generator=torch.Generator().manual_seed(0))
    >>> for part in rows.split(100):
    ...     running.update(part)
    >>> round(float(running.result()), 2)
    3.87
    """

    def __init__(self, what: Statistic[Any] | Instrument) -> None:
        self.what = what
        self.n_rows = 0
        self._task: Task | None = None
        self._requests: dict[str, Request] = {}
        self._states: States = {}

    def update(
        self, x: Any, label: Any = None, *, y: Any = None, seed: int = 0, **columns: Unpack[Columns]
    ) -> None:
        """Add rows; the columns are those of ``Instrument.fit``. Empty batches have no effect."""
        sites = x if is_mapping(x) else ({"x": x} if y is None else {"x": x, "y": y})
        stream = Stream.of(sites, label=label, seed=seed, **columns)
        self._prepare(tuple(s.key for s in stream.schema))
        if len(stream) == 0:
            return
        batches = stream.batches(0, len(stream))
        new = observe_unit(batches, self._requests, states=self._chain())
        chain = self._chain()
        fresh = {i: (None if i in chain else s) for i, s in self._states.items()}
        self._states = merge_states(self._requests, fresh, new)
        self.n_rows += len(stream)

    def merge(self, other: "Running") -> None:
        """Add the rows of another ``Running``, which is not changed.

        Raises
        ------
        StateError
            If the other runs something else, or trains by steps.
        """
        if digest(self.what) != digest(other.what):
            raise StateError(
                f"Running.merge: expected {type(self.what).__name__} with the same parameters, "
                f"got {type(other.what).__name__}. Merge only results with equal parameters."
            )
        if other._task is None:
            return
        self._prepare(other._task.keys)
        self._states = merge_states(self._requests, self._states, other._states)
        self.n_rows += other.n_rows

    @property
    def state(self) -> State | None:
        """The state of the statistic; None before the first row."""
        if isinstance(self.what, Instrument):
            raise StateError("Running.state: an instrument reads several states. Use result().")
        return next(iter(self._states.values()), None)

    def result(self) -> Result:
        """Return the instrument's result, without an error bar because rows are not kept.

        Raises
        ------
        StateError
            Before the first row, or for a statistic.
        """
        if not isinstance(self.what, Instrument):
            raise StateError("Running.result: a statistic has no result. Use state.")
        if self._task is None:
            raise StateError(
                f"Running.result: {type(self.what).__name__} has seen no row yet. Call update "
                "first."
            )
        arguments = states_of(self._task, self._states)
        return result_with_error(self.what, arguments, terms_of(self._task), None)

    def save(self, path: str | Path) -> str:
        """Write the states to one file and return its id.

        Raises
        ------
        StateError
            If a state is not finite.
        """
        require_finite(self._states)
        keys = [] if self._task is None else list(self._task.keys)
        header = {"format": "sonde-running", "digest": digest(self.what), "n_rows": self.n_rows}
        return write_state(to_path(path), {**header, "sites": keys}, self._states)

    @classmethod
    def load(cls, what: Statistic[Any] | Instrument, path: str | Path) -> "Running":
        """Read the states that ``save`` wrote for an equal statistic or instrument.

        Raises
        ------
        StateError
            If the file is damaged or was written for something else.
        """
        running = cls(what)

        def types(name: str) -> Any:
            return state_type(statistics[name])

        statistics = _statistics(what)
        header, states = read_state(path, lambda name: types(name.split("|")[0]))
        if header.get("digest") != digest(what):
            raise StateError(
                f"Running.load: expected a state of {type(what).__name__} with these "
                f"parameters, got a state of another method or of other parameters in {path}. "
                "Load it with the method and parameters that wrote it."
            )
        if header["sites"]:
            running._prepare(tuple(header["sites"]))
        running._states, running.n_rows = states, int(header["n_rows"])
        return running

    def _chain(self) -> States:
        return {i: s for i, s in self._states.items() if self._is_chain(i)}

    def _is_chain(self, request: str) -> bool:
        return self._requests[request].statistic.merging == "none"

    def _prepare(self, keys: tuple[str, ...]) -> None:
        if self._task is not None:
            if self._task.keys != keys:
                raise ShapeError(f"Running.update: expected sites {self._task.keys}, got {keys}.")
            return
        if isinstance(self.what, Instrument):
            self._task = Task(self.what, keys)
            self._requests = requests([self._task])
        else:
            self._task = Task(_StateOf(self.what), keys)
            request = Request(self.what, keys, Every(), "all")
            self._requests = {request.id: request}
        self._states = dict.fromkeys(self._requests)


@dataclass(frozen=True)
class _StateOf(Instrument):
    """An instrument around a single statistic, so that a statistic can have a task."""

    statistic: Statistic[Any]

    def reads(self) -> dict[str, Statistic[Any]]:
        return {"state": self.statistic}

    def result(self, *_: Any, **states: Any) -> Result:
        return Result()


def _statistics(what: Statistic[Any] | Instrument) -> dict[str, Statistic[Any]]:
    if isinstance(what, Statistic):
        return {digest((what, Every())): what}
    return {
        digest((read.statistic, read.where)): read.statistic for read in what.all_reads().values()
    }
