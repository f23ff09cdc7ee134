"""Old names of parameters, which are accepted for one release with a warning.

A class or function states its renamed parameters once, by ``@renamed(new="old")``. Calls warn;
files and recipes that were written with old names are read without a warning.
"""

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from sonde.core.errors import InputError, RenamedWarning

T = TypeVar("T", bound=Callable[..., Any])
FORMER = "__former_names__"
"""Attribute of a class or function: the old name of each renamed parameter, by its new name."""
MAPPINGS = "__former_mappings__"
"""Attribute of a function: names of old parameters whose entries are keywords now."""


def renamed(*mappings: str, **former: str) -> Callable[[T], T]:
    """Accept the old names of a class's or a function's parameters, with a warning.

    A class also answers to its old names as attributes.

    Parameters
    ----------
    *mappings : str
        Names of old parameters that took a mapping of options, which are keywords now.
    **former : str
        The old name of each renamed parameter, by its new name.

    Examples
    --------
    >>> @renamed(remove="share")
    ... def pruned(n: int, remove: float = 0.5) -> int:
    ...     return round(n * (1 - remove))
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     print(pruned(10, share=0.2), caught[0].message)
    8 pruned: the parameter 'share' is now called 'remove'. Write remove=.
    """

    def decorate(target: T) -> T:
        if not isinstance(target, type):
            return _accepting(target, target.__name__, former, mappings)
        init: Any = target.__init__
        target.__init__ = _accepting(init, target.__name__, former, ())
        for new, old in former.items():
            setattr(target, old, property(functools.partial(_read, name=new, old=old)))
        setattr(target, FORMER, former)
        return cast("T", target)

    return decorate


def former_names(target: Any) -> Mapping[str, str]:
    """Return the old names of a class's or a function's parameters, by their new names."""
    return getattr(target, FORMER, {})


def current_names(
    target: Any, given: Mapping[str, Any], *, warn: bool = False, stacklevel: int = 3
) -> dict[str, Any]:
    """Return parameters under their current names.

    Parameters
    ----------
    target : class or function
        Owner of the parameters.
    given : mapping of str to value
        Parameters by their current or their old names.
    warn : bool, default=False
        Whether each old name raises a ``RenamedWarning``; files are read without a warning.
    stacklevel : int, default=3
        Number of calls between the warning and the line to blame, as in ``warnings.warn``.

    Raises
    ------
    InputError
        If a parameter is given under both names.
    """
    current = {old: new for new, old in former_names(target).items()}
    given = _flattened(target, given, stacklevel + 1)
    for old in current.keys() & given.keys():
        new, name = current[old], getattr(target, "__name__", "")
        if new in given:
            raise InputError(
                f"{name}: expected {new}= alone, got its old name {old}= as well. Leave {old}= out."
            )
        if warn:
            warnings.warn(
                f"{name}: the parameter {old!r} is now called {new!r}. Write {new}=.",
                RenamedWarning,
                stacklevel=stacklevel,
            )
    return {current.get(name, name): value for name, value in given.items()}


def _flattened(target: Any, given: Mapping[str, Any], stacklevel: int) -> dict[str, Any]:
    """Return parameters with the entries of old mappings among them, and warn about each."""
    mappings = {name: given[name] for name in getattr(target, MAPPINGS, ()) if name in given}
    flat = {name: value for name, value in given.items() if name not in mappings}
    for old, options in mappings.items():
        if twice := flat.keys() & (options or {}).keys():
            raise InputError(
                f"{target.__name__}: expected {min(twice)}= once, got it in {old}= as well. Leave "
                f"{old}= out."
            )
        warnings.warn(
            f"{target.__name__}: the options in {old!r} are keywords now. Write "
            f"{', '.join(f'{name}=' for name in options or ('device',))} without {old}=.",
            RenamedWarning,
            stacklevel=stacklevel,
        )
        flat |= options or {}
    return flat


def _accepting(target: Any, name: str, former: Mapping[str, str], mappings: Sequence[str]) -> Any:
    """Return a function that passes old names on as current names."""
    old = frozenset([*former.values(), *mappings])

    @functools.wraps(target)
    def accepting(*args: Any, **given: Any) -> Any:
        if not old.isdisjoint(given):
            given = current_names(accepting, given, warn=True)
        return target(*args, **given)

    accepting.__name__ = name if target.__name__ == "__init__" else target.__name__
    setattr(accepting, FORMER, former)
    setattr(accepting, MAPPINGS, mappings)
    return accepting


def _read(owner: Any, *, name: str, old: str) -> Any:
    """Return a renamed attribute, with a warning."""
    warnings.warn(
        f"{type(owner).__name__}: the attribute {old!r} is now called {name!r}. Write .{name}.",
        RenamedWarning,
        stacklevel=2,
    )
    return getattr(owner, name)
