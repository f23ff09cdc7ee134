"""Which laws hold for which kind of method, and ``check``, which holds a method to its own.

A new kind is one entry of ``KINDS`` beside the module of its laws.
"""

import importlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from sonde.core.edit import Edit
from sonde.core.errors import InputError
from sonde.core.instrument import Detector, Instrument
from sonde.core.shift import Shift
from sonde.core.state import digest
from sonde.core.statistic import Learner, Statistic
from sonde.run.instruments.listing import FAMILIES
from sonde.tap import Decode
from sonde.testing import decode_laws, edit_laws, instrument_laws, shift_laws, statistic_laws
from sonde.testing.instrument_laws import make_inputs
from sonde.testing.rows import make_columns
from sonde.testing.statistic_laws import Case


@dataclass(frozen=True)
class Law:
    """One promise: a function that raises AssertionError for a method that breaks it.

    Parameters
    ----------
    name : str
    hold : callable
        Called with the method; a statistic comes as a ``Case``.
    applies : callable
        Whether a method of the kind makes the promise.
    promise : str
        The law in one sentence.
    """

    name: str
    hold: Callable[[Any], None]
    applies: Callable[[Any], bool]
    promise: str


def _law(function: Callable[..., None], *, of: Callable[[], tuple[Any, ...]], **how: Any) -> Law:
    """Return a law that gives its function what ``of`` makes, beside the method."""
    promise = (function.__doc__ or "").partition("\n")[0]
    name = function.__name__.removeprefix("law_")
    applies = how.get("applies", lambda _: True)
    return Law(name, lambda method: function(method, *of()), applies, promise)


def _alone() -> tuple[()]:
    return ()


def _inputs() -> tuple[Any]:
    return (make_inputs(),)


def _make() -> tuple[Any]:
    return (make_inputs,)


def _columns() -> tuple[Any]:
    return (make_columns(300, 3, seed=7, dtype=torch.float64),)


def _few() -> tuple[Any]:
    return (make_columns(60, 3, seed=2, dtype=torch.float64),)


def _learns(instrument: Instrument) -> bool:
    return any(isinstance(r.statistic, Learner) for r in instrument.all_reads().values())


def _merges(case: Case) -> bool:
    return case.statistic.merging != "none"


def _exact(case: Case) -> bool:
    return case.statistic.merging == "exact"


def _meets_offsets(case: Case) -> bool:
    needs = case.statistic.needs()
    return _exact(case) and "x" in needs and "grad" not in needs


def _has_influence(case: Case) -> bool:
    return _exact(case) and type(case.statistic).influence is not Statistic.influence


def _company() -> tuple[Any, ...]:
    """Return a dozen instruments of sonde for each span, and their rows."""
    found: list[Instrument] = []
    for family in FAMILIES:
        package = importlib.import_module(f"sonde.{family}")
        members = (getattr(package, name) for name in package.__all__)
        found += [
            m(**m.examples[0]) for m in members if isinstance(m, type) and issubclass(m, Instrument)
        ]
    return found, make_inputs()


_S, _I, _H, _E = statistic_laws, instrument_laws, shift_laws, edit_laws
_D = decode_laws

KINDS: dict[type, tuple[Law, ...]] = {
    Statistic: (
        _law(_S.law_split, of=_columns, applies=_exact),
        _law(_S.law_atoms, of=_few, applies=_exact),
        _law(_S.law_update, of=_columns, applies=_exact),
        _law(_S.law_size, of=_alone, applies=_merges),
        _law(_S.law_pure, of=_columns, applies=_merges),
        _law(_S.law_sizes, of=_alone, applies=_merges),
        _law(_S.law_half, of=_alone, applies=_merges),
        _law(_S.law_offset, of=_alone, applies=_meets_offsets),
        _law(_S.law_influence, of=_alone, applies=_has_influence),
        _law(_S.law_save, of=_columns, applies=_merges),
        _law(_S.law_identity, of=_alone, applies=_merges),
        _law(_S.law_bound, of=_columns, applies=lambda c: c.statistic.merging == "bounded"),
    ),
    Learner: (_law(_S.law_learner, of=_alone),),
    Instrument: (
        _law(_I.law_value, of=_inputs),
        _law(_I.law_degenerate, of=_make),
        _law(_I.law_sizes, of=_make),
        _law(_I.law_order, of=_inputs, applies=lambda i: not _learns(i)),
        _law(_I.law_ragged, of=_inputs, applies=lambda i: _I.size_of_example(i) > 1),
        _law(_I.law_again, of=_inputs),
        _law(_I.law_company, of=_company, applies=lambda i: not isinstance(i, Detector)),
        _law(_I.law_then, of=_make, applies=lambda i: type(i).then is not Instrument.then),
    ),
    Detector: (
        _law(_I.law_score_finite, of=_inputs),
        _law(_I.law_score_alone, of=_inputs),
        _law(_I.law_score_direction, of=_inputs),
    ),
    Shift: tuple(
        _law(law, of=_alone)
        for law in (
            _H.law_itself,
            _H.law_far,
            _H.law_order,
            _H.law_merged,
            _H.law_again,
            _H.law_groups,
            _H.law_degenerate,
        )
    ),
    Edit: (
        _law(_E.law_strength, of=_alone, applies=_E.has_strength),
        _law(_E.law_kept, of=_alone),
        _law(_E.law_rows, of=_alone),
        _law(_E.law_again, of=_alone),
        *(
            _law(law, of=_alone)
            for law in (
                _E.law_padding,
                _E.law_rounding,
                _E.law_untouched,
                _E.law_restored,
                _E.law_generates,
            )
        ),
    ),
    Decode: (
        _law(_D.law_strength, of=_alone, applies=_D.has_strength),
        *(
            _law(law, of=_alone)
            for law in (
                _D.law_kept,
                _D.law_constant,
                _D.law_rows,
                _D.law_recomputed,
                _D.law_untouched,
            )
        ),
    ),
}
"""The laws by what they hold for; a method keeps those of each class that it is an instance of."""


def laws_of(method: Any) -> tuple[Law, ...]:
    """Return the laws that a method promises to keep.

    Parameters
    ----------
    method : Instrument, Edit, Decode or Case
        An instance; a statistic as a ``Case``.
    """
    thing = method.statistic if isinstance(method, Case) else method
    kinds = [laws for kind, laws in KINDS.items() if isinstance(thing, kind)]
    return tuple(law for laws in kinds for law in laws if law.applies(method))


def check(method: Any, *, without: Collection[str] = ()) -> None:
    """Hold a method to every law of its kind, e.g. of detectors, of edits or of decoding rules.

    Parameters
    ----------
    method : class or instance
        Of a class each entry of its ``examples`` is tried; without these, its defaults. A statistic
        that may not be split between any two rows is given as a ``Case``. An edit meets
        activations of width 4. A decoding rule meets ``causal_model()``; the models that it reads
        have its 32 tokens.
    without : names of laws, optional
        Left out, for instance ``{"score_direction"}`` where a high score means one of two classes.

    Raises
    ------
    AssertionError
        Names the law, the method with its parameters, and what differed.
    InputError
        The method is of no known kind, or reads columns that plain arrays do not bring.

    Examples
    --------
    >>> from sonde.core import Clamp
    >>> check(Clamp(low=0.0))
    """
    found = [(one, laws_of(one)) for one in _instances(method)]
    known = {law.name for _, laws in found for law in laws}
    if not known:
        kinds = ", ".join(kind.__name__ for kind in KINDS)
        raise InputError(f"check: expected a method of a kind in {kinds}, got {method!r}.")
    if unknown := set(without) - known:
        names = ", ".join(sorted(known))
        raise InputError(f"check: {method!r} has no law {sorted(unknown)}. Its laws: {names}.")
    for one, laws in found:
        for law in laws:
            if law.name not in without:
                _hold(law, one)


def _hold(law: Law, method: Any) -> None:
    try:
        law.hold(method)
    except AssertionError as error:
        promise = law.promise.rstrip(".")
        said = f"{method!r} breaks the law {law.name!r} ({promise}): {error}"
        raise AssertionError(said) from error
    except Exception as error:
        error.add_note(f"while {method!r} was held to the law {law.name!r}: {law.promise}")
        raise


def _instances(method: Any) -> Iterator[Any]:
    """Return what is held to the laws, and before an instrument the private statistics it reads."""
    if isinstance(method, type):
        made = [method(**parameters) for parameters in getattr(method, "examples", ({},))]
    else:
        made = [method]
    for one in made:
        if isinstance(one, Statistic):
            yield statistic_laws.case_of(one)
            continue
        if isinstance(one, Instrument):
            instrument_laws.require_columns(one)
            read = {digest(r.statistic): r.statistic for r in one.all_reads().values()}
            for statistic in read.values():
                if not type(statistic).__module__.startswith("sonde."):
                    yield statistic_laws.case_of(statistic)
        yield one
