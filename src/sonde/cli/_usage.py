"""Report a usage error in one line instead of the parser's box."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from sonde.cli.console import REMARK, note
from sonde.core.renaming import former_names

_DRAWN = re.compile("[\u2500-\u257f]+")
_BORDER = re.compile("[\u2500-\u257f]{3}|-{4}")
_KINDS = {int: "a whole number", float: "a number"}


def wrong_usage(command: type[Any], word: str, arguments: Sequence[str], box: str) -> str:
    """Return one line on what the parser refused.

    Parameters
    ----------
    command : type
        The dataclass of the command.
    word : str
        Its name.
    arguments : sequence of str
        What was typed after the command word.
    box : str
        The parser's message; its wording is used only if nothing better is known.
    """
    flags = dict(_flags(command))
    reason = (
        _unknown(arguments, flags)
        or _spaced(arguments)
        or _missing(box)
        or _value(arguments, flags, box)
    )
    return f"sonde {word}: {reason or _paragraph(box)} See sonde {word} --help."


def current_flags(command: type[Any], word: str, arguments: Sequence[str]) -> list[str]:
    """Return the arguments with current names for renamed flags, with a note for each old name."""
    current = {f"--{old}".replace("_", "-"): f"--{new}".replace("_", "-")
               for new, old in former_names(command).items()}  # fmt: skip
    renamed_flags = list[str]()
    for argument in arguments:
        old = _name(argument)
        new = current.get(old or "", old)
        if old is not None and new is not None and new != old:
            text = f"sonde {word}: the flag {old} is now called {new}. Write {new}."
            note(f"{REMARK}{text}")
            argument = new + argument[len(old) :]
        renamed_flags.append(argument)
    return renamed_flags


OUTPUT = ("-o", "--output")


def outputs_of(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments with the first output alone, and the further outputs.

    Examples
    --------
    >>> outputs_of(["m", "-o", "a.json", "d", "-o", "b.html"])
    (['m', '-o', 'a.json', 'd'], ['b.html'])
    >>> outputs_of(["m", "--output=a.json", "-o=b.html"])
    (['m', '--output=a.json'], ['b.html'])
    """
    kept, further, is_value, seen = list[str](), list[str](), False, 0
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if is_value:
            (kept if seen == 1 else further).append(argument)
            is_value = False
        elif name in OUTPUT:
            seen, is_value = seen + 1, not equals
            if seen == 1:
                kept.append(argument)
            elif equals:
                further.append(value)
        else:
            kept.append(argument)
    return kept, further


def _flags(command: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield every flag with its type; flags of option groups have no prefix."""
    hints = get_type_hints(command, include_extras=True)
    for f in fields(command):
        hint = hints[f.name]
        if is_dataclass(hint) and isinstance(hint, type):
            yield from _flags(hint)
            continue
        notes = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
        plain = get_args(hint)[0] if notes else hint
        name = next((n for extra in notes if (n := getattr(extra, "name", None))), f.name)
        yield f"--{name.replace('_', '-')}", plain
        for extra in notes:
            for alias in getattr(extra, "aliases", None) or ():
                yield alias, plain
    yield "--help", bool
    yield "-h", bool


def _name(argument: str) -> str | None:
    """Return the flag that an argument names, or None if the argument is a value."""
    name = argument.partition("=")[0]
    if not re.match(r"--?[A-Za-z]", name):
        return None
    return name.replace("_", "-") if name.startswith("--") else name


def _unknown(arguments: Sequence[str], flags: dict[str, Any]) -> str | None:
    for argument in arguments:
        name = _name(argument)
        if name is not None and name not in flags:
            names = {flag[2:]: flag for flag in flags if flag.startswith("--")}
            close = get_close_matches(name.lstrip("-"), names, n=2)
            hint = f" Did you mean {' or '.join(names[k] for k in close)}?" if close else ""
            return f"unknown option {name}.{hint}"
    return None


def _spaced(arguments: Sequence[str]) -> str | None:
    """Return the correct spelling of a list typed with a space after a comma."""
    for one, following in pairwise(arguments):
        if one.endswith(",") and _name(one) is None and _name(following) is None:
            got = f"got {one!r} and {following!r}. Write {one}{following}."
            return f"expected names without spaces, {got}"
    return None


def _missing(box: str) -> str | None:
    """Return a sentence on the missing arguments."""
    plain = [_words_of_box(line) for line in box.splitlines()]
    names = [line for line in plain if re.fullmatch(r"[A-Z]{3,}( [A-Z[\].]{3,})*", line)]
    return f"expected {' '.join(names)}." if names and "Missing from" in box else None


def _value(arguments: Sequence[str], flags: dict[str, Any], box: str) -> str | None:
    """Return a sentence about the expected and the typed value of the flag that failed."""
    match = re.search(r"(?:Error parsing|for argument) '?(?:-\w/)?(--[\w-]+)", _words_of_box(box))
    kind = None if match is None else _kind(flags.get(match[1]))
    if match is None or kind is None:
        return None
    return f"expected {kind} after {match[1]}, got {_typed(arguments, match[1])}."


def _kind(hint: Any) -> str | None:
    """Describe a type."""
    inner = [a for a in get_args(hint) if a is not type(None)]
    if get_origin(hint) is tuple:
        return f"{len(inner)} values" if Ellipsis not in inner else "values"
    if inner and type(None) in get_args(hint):
        return _kind(inner[0])
    if inner and all(isinstance(a, str) for a in inner):
        return f"one of {', '.join(inner)}"
    return None if hint is None or hint is bool else _KINDS.get(hint, "a value")


def _typed(arguments: Sequence[str], flag: str) -> str:
    """Return the value typed after a flag."""
    short = {"--output": "-o"}.get(flag, flag)
    for i, argument in reversed(list(enumerate(arguments))):
        if _name(argument) in (flag, short):
            values = [argument.partition("=")[2]] if "=" in argument else []
            for following in arguments[i + 1 :] if not values else ():
                if _name(following) is not None:
                    break
                values.append(following)
            return repr(" ".join(values)) if values else "nothing"
    return "nothing"


def _words_of_box(box: str) -> str:
    """Return the text of a box without its border."""
    return " ".join(_DRAWN.sub(" ", box).split())


def _paragraph(box: str) -> str:
    """Return the text between the first two borders of a box."""
    parts: list[list[str]] = []
    for line in box.splitlines():
        if _BORDER.search(line):
            parts.append([])
        elif parts:
            parts[-1].append(_words_of_box(line))
    kept = " ".join(parts[0]) if parts else ""
    text = kept.removeprefix("Error parsing ").strip().rstrip(".")
    text = re.sub(r"^Unrecognized options:", "unexpected words:", text)
    return f"{text or 'these words are not understood'}."


def flag_names(command: type[Any]) -> list[str]:
    """Return the names of all flags of a command, without positional arguments.

    Parameters
    ----------
    command : type
        The dataclass of the command.
    """
    return sorted({name for name, _ in _flags(command)} - {*_positional(command)})


def _positional(command: type[Any]) -> Iterator[str]:
    """Yield the names of fields that are positional arguments."""
    from tyro.conf import Positional

    marker = get_args(Positional[int])[1:]
    hints = get_type_hints(command, include_extras=True)
    for f in fields(command):
        if any(note in marker for note in get_args(hints[f.name])[1:]):
            yield f"--{f.name.replace('_', '-')}"
