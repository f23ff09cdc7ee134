"""Every parameter of every instrument changes something: the result, the scores, or the reading."""

import dataclasses
import typing
from collections.abc import Iterator
from typing import Any, Final, Literal, final

import pytest
import torch

import sonde.detect
import sonde.measure
from sonde.core.errors import SondeError
from sonde.core.instrument import Instrument
from sonde.core.result import Result, Scorer
from sonde.core.shift import Shift, Side
from sonde.core.statistic import Statistic
from sonde.stats import Moments, MomentsState
from sonde.testing.instrument_laws import fit, make_inputs, score

CLASSES = [
    cls
    for room in (sonde.detect, sonde.measure)
    for name in sorted(room.__all__)
    if isinstance(cls := getattr(room, name), type) and issubclass(cls, Instrument)
]
_METRICS = "reads rows of token metrics; these inputs are states"
UNSEEN: Final = {
    "PaDiM.max_positions": "a bound of memory, for images of more positions",
    "PatchCore.b": "weighs the score of a whole image; here rows are scored",
    **dict.fromkeys(
        (f"TokenStatistics.{n}" for n in ("statistic", "direction", "k", "rank")), _METRICS
    ),
}
"""Parameters whose effect these few rows cannot show, with the reason."""


def plain(value: Any) -> Any:
    """Return a value in a form that ``==`` compares bit for bit."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.detach().cpu().double().tolist()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        known = (f.name for f in dataclasses.fields(value))
        return {name: plain(getattr(value, name)) for name in known}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, list | tuple) else value


def without(found: Any, instrument: Instrument) -> str:
    """Return a result as text, without the instrument itself, whose parameters it may hold."""
    own = {f.name for f in dataclasses.fields(instrument)}  # type: ignore[arg-type]
    kept = {k: v for k, v in plain(found).items() if k not in own | {"method", "conventions"}}
    return repr(kept)


def outcome(instrument: Instrument, inputs: dict[str, Any]) -> tuple[str, ...]:
    """Return the reading, and the result with its scores or its comparison."""
    reading = repr(sorted(instrument.reading().items(), key=str))
    try:
        found: Result = fit(instrument, inputs)
        if isinstance(instrument, Shift) and isinstance(found, Side):
            other = fit(instrument, {**inputs, "x": inputs["c"] + 0.3})
            return reading, without(instrument.compare(found, other), instrument)
        if isinstance(found, Scorer):
            return reading, repr(plain(score(instrument, found, inputs)))
        return reading, without(found, instrument)
    except SondeError as error:
        return reading, type(error).__name__


def others(value: Any, hint: Any) -> Iterator[Any]:
    """Yield other values that a parameter may take."""
    for kind in (hint, *typing.get_args(hint)):
        if typing.get_origin(kind) is Literal:
            yield from typing.get_args(kind)
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield from (value + 1, max(1, value // 2), value * 2, 1, 2, 3, 7, 0, value + 40)
    elif isinstance(value, float):
        yield from (value / 2, value * 2, value + 0.1, 0.5, 0.9, 1.5)
    elif value is None:
        yield from (1, 2, 0.5, True, (0.0, 3.0), (1.0, 2.0, 3.0))
    elif hint is str:
        yield from ("position", "group")
    elif isinstance(value, str):
        yield from (0.3, 1, 2)
    elif isinstance(value, tuple) and value:
        yield from (value[:1], value[:-1], (*(2 * v for v in value[:1]), *value[1:]))


def idle(cls: type[Instrument]) -> list[str]:
    """Return the parameters that change nothing, whatever their value."""
    hints, inputs = typing.get_type_hints(cls), make_inputs()
    bases = [cls(**example) for example in cls.examples] or [cls()]
    known = [outcome(base, inputs) for base in bases]
    found = []
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]
        name = field.name
        changed = (
            outcome(other, inputs) != seen
            for base, seen in zip(bases, known, strict=True)
            for value in (
                *others(getattr(base, name), hints[name]),
                *(getattr(b, name) for b in bases),
            )
            if (other := _replaced(base, name, value)) is not None
        )
        if field.init and f"{cls.__name__}.{name}" not in UNSEEN and not any(changed):
            found.append(name)
    return found


def _replaced(base: Instrument, name: str, value: Any) -> Instrument | None:
    try:
        return dataclasses.replace(base, **{name: value})  # type: ignore[type-var]
    except (SondeError, TypeError, ValueError):
        return None


@pytest.mark.slow
@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_parameter_changes_something(cls: type[Instrument]) -> None:
    assert idle(cls) == []


@final
@dataclasses.dataclass(frozen=True)
class Idles(Instrument):
    """The mean of all rows, with a parameter that nobody reads."""

    seed: int = 0

    def reads(self) -> dict[str, Statistic[Any]]:
        return {"moments": Moments("diag")}

    def result(self, moments: MomentsState) -> Result:
        return Result(value=moments.mean.mean(), n=moments.n)


def test_a_parameter_that_nobody_reads_is_seen() -> None:
    assert idle(Idles) == ["seed"]
