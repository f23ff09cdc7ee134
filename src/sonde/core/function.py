"""Plain functions of instruments: one call on arrays, derived from the class."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter, Signature
from typing import Any, ParamSpec, Protocol, TypeVar, cast, overload, runtime_checkable

from sonde.core.columns import COLUMNS
from sonde.core.instrument import Instrument
from sonde.core.keywords import answer_to
from sonde.core.renaming import current_names

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
ROWS = {"one": ("x",), "pair": ("x", "y"), "all": ("layers",)}
GROUP = "group"
HEAD = "Parameters\n----------\n"
MEANINGS = {
    "x": "Rows of the site, one for each example, token or patch.",
    "y": "Rows of the second site, matched with those of the first.",
    "layers": "Rows of each site, by name or in the order of execution.",
    "label": "Class of each row, a whole number; -1 for none.",
    "group": "Document or person of each row: rows of one group are not independent.",
}
"""What the arrays of a function contain; other columns are described in ``COLUMNS``."""


@runtime_checkable
class Answers(Protocol[R_co]):
    """An instrument, typed by its result."""

    def result(self, *_: Any, **states: Any) -> R_co:
        """Return the result."""
        ...


@runtime_checkable
class InstrumentFunction(Protocol[P, R_co]):
    """A function of arrays; type checkers take its parameters and its result from the class.

    Types cannot join columns such as ``group`` with the parameters of a class, so the second
    overload takes any arguments. ``inspect.signature`` is exact, and a call that breaks it raises a
    TypeError.
    """

    __name__: str

    @overload
    def __call__(self, x: Any, /, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    @overload
    def __call__(self, x: Any, /, *columns: Any, **more: Any) -> R_co: ...


def as_function(
    method: Callable[P, Answers[R_co]],
    *columns: str,
    optional: Sequence[str] = (),
    given: Mapping[str, Mapping[str, Any]] | None = None,
    called: Mapping[str, str] | None = None,
) -> InstrumentFunction[P, R_co]:
    """Return the function of a class: ``two_nn(x, m=64)`` is ``TwoNN(m=64).fit(x)``.

    Rows come first: ``x``, for pairs ``x`` and ``y``, for all sites ``layers``; then the columns.
    ``group`` and the fields of the class are keywords.

    Parameters
    ----------
    method : class of an Instrument
        What answers.
    *columns : str
        What the method needs beside its rows, such as ``label``.
    optional : sequence of str, default=()
        Columns that it can do without.
    given : mapping of str to mapping, optional
        For a column, the fields that are set if it is passed, and their values, such as
        ``{"group": {"grouped": True}}``. These fields are no parameters of the function.
    called : mapping of str to str, optional
        Fields that have another name in the function, such as fields that would hide a method of
        the class.

    Examples
    --------
    >>> from sonde.measure import TwoNN
    >>> inspect.signature(as_function(TwoNN)).replace(return_annotation=Signature.empty)
    <Signature (x: Any, *, group: Any = None, fit_by: Literal['ml', 'slope'] = 'ml', m: int = 2048)>
    """
    cls = cast("type[Instrument]", method)
    follows = given or {}
    arrays = (*ROWS[cls.span], *columns)
    words = called or {}
    signature = _signature(cls, arrays, optional, follows, words)
    fields = {words.get(p, p): p for p in inspect.signature(cls).parameters}
    own = signature.parameters.keys() - {*arrays, *optional, GROUP}

    def function(*args: Any, **keywords: Any) -> Any:
        named = current_names(cls, keywords, warn=True)
        try:
            passed = dict(signature.bind(*args, **named).arguments)
        except TypeError as error:
            wrong = next((n for n in named if n not in signature.parameters), None)
            hint = "" if wrong is None else answer_to(wrong, signature.parameters)
            raise TypeError(f"{cls.__name__}: {error}.{hint}") from None
        parameters = {fields[n]: passed.pop(n) for n in [*passed] if n in own}
        for column in [c for c in follows if passed.get(c) is not None]:
            parameters |= follows[column]
        rows = passed.pop(ROWS[cls.span][0])
        return cls(**parameters).fit(rows, **passed)

    function.__doc__ = _with_columns(cls.__doc__ or "", [*arrays, *optional, GROUP], words)
    function.__module__ = cls.__module__
    function.__name__ = function.__qualname__ = cls.__module__.rpartition(".")[2]
    function.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return cast("InstrumentFunction[P, R_co]", function)


def _with_columns(text: str, columns: Sequence[str], words: Mapping[str, str]) -> str:
    """Return the docstring of a class with entries for the rows and columns of its function."""
    plain = inspect.cleandoc(text)
    for own, name in words.items():
        plain = re.sub(rf"(?m)^{own} :", f"{name} :", plain)
    missing = [name for name in dict.fromkeys(columns) if not re.search(rf"(?m)^{name} :", plain)]
    entries = "".join(f"{name} : array\n    {_meaning(name)}\n" for name in missing)
    if HEAD in plain:
        return plain.replace(HEAD, HEAD + entries, 1)
    before, *after = re.split(r"(?m)^(?=(?:Returns|Raises|Examples|References)\n-{3,}\n)", plain)
    return "\n\n".join([before.rstrip(), HEAD + entries.rstrip(), "".join(after)]).rstrip() + "\n"


def _meaning(column: str) -> str:
    """Return what an array of a function contains, as a sentence."""
    if column in MEANINGS:
        return MEANINGS[column]
    meaning = COLUMNS[column].meaning
    return f"{meaning[0].upper()}{meaning[1:]}."


def _signature(
    cls: type[Instrument],
    needed: Sequence[str],
    optional: Sequence[str],
    follows: Mapping[str, Mapping[str, Any]],
    words: Mapping[str, str],
) -> Signature:
    """Return the signature: rows and columns, ``group``, and fields not set by a column."""
    decided = {name for values in follows.values() for name in values}
    place, keyword = Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY
    arrays = [Parameter(n, place, annotation=Any) for n in needed]
    arrays += [Parameter(n, place, annotation=Any, default=None) for n in optional]
    if GROUP not in optional:
        arrays.append(Parameter(GROUP, keyword, annotation=Any, default=None))
    own = inspect.signature(cls).parameters.values()
    kept = [p for p in own if p.name not in decided]
    options = [p.replace(kind=keyword, name=words.get(p.name, p.name)) for p in kept]
    answer = inspect.signature(cls.result).return_annotation
    return Signature([*arrays, *options], return_annotation=answer)
