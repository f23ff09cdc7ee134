"""How objects are printed: one line in a terminal, a small table in a notebook."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from html import escape
from itertools import islice
from typing import Any, cast

from torch import Tensor

from sonde.core.wording import plural

MOST_ROWS = 20
LONGEST = 40
"""Letters of a nested value that are still written out."""
MOST_SITES = 3
MOST_FACTS = 6
UNSHOWN = ("schema", "hash", "sonde")
"""Keys of a document that say nothing about the model."""
SILENT = (None, "", (), "none", (-math.inf, math.inf))


class OneLine:
    """Base class that keeps ``dataclass`` from replacing an inherited ``__repr__``."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "__repr__" not in vars(cls):
            cls.__repr__ = cls.__repr__


def places(names: Sequence[str]) -> str:
    """Return the number of sites and at most three of their names.

    Examples
    --------
    >>> places([f"layers.{i}:out" for i in range(12)]), places(["x"])
    ('12 sites: layers.0:out, layers.1:out ... layers.11:out', '1 site: x')
    """
    few = len(names) <= MOST_SITES
    listed = ", ".join(names) if few else f"{', '.join(names[:2])} ... {names[-1]}"
    return f"{plural(len(names), 'site')}: {listed}"


def one_line(result: Any) -> str:
    """Return the class of a result and its fields; tensors are shown by their shape.

    Empty fields (no unit, no flag, no error) and the conventions are left out.
    """
    facts = [f"{name}={text}" for name, text in _facts(result)]
    return f"{type(result).__name__}({', '.join(facts)})"


def told(result: Any) -> tuple[str, str, str]:
    """Return value ± error, number of rows, and number of calibration rows, as text."""
    facts, calibration = dict(_facts(result)), getattr(result, "calibration", None)
    error = f" ± {facts['se']}" if "se" in facts else ""
    value = f"{facts.get('value', '')}{error} {result.unit}".strip()
    return value, facts.get("n", ""), "" if calibration is None else str(calibration.n)


def as_html(result: Any, table: Any, flags: Mapping[str, str]) -> str:
    """Return a result as an HTML table: name, value ± se, null, n, unit, flags, conventions.

    Parameters
    ----------
    result : Result
    table : pyarrow.Table
        Its numbers.
    flags : mapping
        What each flag means.
    """
    facts = dict(_facts(result))
    facts.pop("flags", None)
    if "value" in facts:
        error = facts.pop("se", None)
        pair = [facts["value"], *([] if error is None else [f"± {error}"])]
        facts["value"] = " ".join([*pair, result.unit]).rstrip()
    facts.pop("unit", None)
    if "direction" in facts:
        facts["direction"] = f"{result.direction} means more"
    name = escape(result.title or type(result).__name__)
    parts = [f"<table><caption><b>{name}</b></caption><tbody>"]
    parts += [_row(key.replace("_", " "), text) for key, text in facts.items()]
    parts += [_row("flag", f"{flag}: {flags[flag]}") for flag in result.flags]
    parts.append("</tbody></table>")
    parts.append(listed(table) if table.num_rows > 1 else "")
    parts.append(_conventions(result.conventions))
    return "".join(parts)


def _facts(result: Any) -> Iterator[tuple[str, str]]:
    """Yield the fields to print, with their text."""
    for field in fields(result):
        value = getattr(result, field.name)
        lost = field.name == "value" and bool(result.flags)
        if field.name != "conventions" and (lost or not _is_silent(value)):
            ends = field.name == "range"
            text = f"[{_number(value[0])}, {_number(value[1])}]" if ends else _as_text(value)
            yield field.name, text


def _is_silent(value: Any) -> bool:
    """Return whether a value is empty or NaN, so that it is not printed."""
    if isinstance(value, float):
        return math.isnan(value)
    return not isinstance(value, Tensor) and value in SILENT


def _as_text(value: Any) -> str:
    if isinstance(value, Tensor):
        return _number(value.item()) if value.numel() == 1 else _shape(value)
    if isinstance(value, float):
        return _number(value)
    written = repr(value)
    return written if len(written) <= LONGEST else f"<{type(value).__name__}>"


def _shape(value: Tensor) -> str:
    return f"<{' x '.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}>"


def _number(value: float) -> str:
    return f"{value:.6g}"


def _row(name: str, text: str) -> str:
    return f"<tr><th scope='row'>{escape(name)}</th><td>{escape(text)}</td></tr>"


def listed(table: Any) -> str:
    """Return the first rows of a table of numbers and texts as an HTML table."""
    shown = cast("list[dict[str, Any]]", table.slice(0, MOST_ROWS).to_pylist())
    rows = [[_cell(value) for value in row.values()] for row in shown]
    return html_table("", table.column_names, rows, table.num_rows)


def document_html(name: str, document: Mapping[str, Any]) -> str:
    """Return a command's JSON as HTML: a table of single values, then a table per list.

    Parameters
    ----------
    name : str
        Caption of the first table.
    document : mapping
    """
    single = [(k, _cell(v)) for k, v in document.items() if k not in UNSHOWN and _is_single(v)]
    facts = "".join(_row(key.replace("_", " "), text) for key, text in single if text)
    parts = [f"<table><caption><b>{escape(name)}</b></caption><tbody>{facts}</tbody></table>"]
    for key, held in document.items():
        rows = cast("list[Any]", held) if isinstance(held, list) else []
        if rows and all(isinstance(row, dict) for row in rows):
            parts.append(_rows_html(key.replace("_", " "), rows))
    return "".join(parts)


def document_line(name: str, document: Mapping[str, Any]) -> str:
    """Return a result's name and the first single values of its document in one line."""
    single = [(k, v) for k, v in document.items() if k not in UNSHOWN and _is_single(v)]
    facts = [f"{k}={_cell(v)}" for k, v in single if len(_cell(v)) in range(1, LONGEST)]
    return f"{name}({', '.join(facts[:MOST_FACTS])})"


def _rows_html(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as an HTML table of the columns with single values in every row."""
    columns = [k for k in rows[0] if all(_is_single(row.get(k)) for row in rows)]
    cells = [[_cell(row.get(k)) for k in columns] for row in rows]
    return html_table(name, columns, cells, len(rows)) if columns else ""


def _is_single(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _cell(value: Any) -> str:
    if isinstance(value, str | bool):
        return str(value)
    return "" if value is None else _number(value)


def html_table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[object]], n: int
) -> str:
    """Return the first of ``n`` rows as an HTML table, with the number of hidden rows."""
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(value))}</td>" for value in row) + "</tr>"
        for row in islice(rows, MOST_ROWS)
    )
    more = f"<p>{plural(n - MOST_ROWS, 'more row')}</p>" if n > MOST_ROWS else ""
    title = f"<caption><b>{escape(caption)}</b></caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{more}"


def _conventions(conventions: Mapping[str, Any]) -> str:
    if not conventions:
        return ""
    rows = "".join(_row(str(k).replace("_", " "), str(v)) for k, v in conventions.items())
    summary = "<summary>conventions</summary>"
    return f"<details>{summary}<table><tbody>{rows}</tbody></table></details>"
