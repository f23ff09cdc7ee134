"""Check a report against ``schema.json``, with the part of JSON Schema that this file uses."""

import json
import math
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from typing import Any

from sonde.core.errors import StateError
from sonde.report._format import Real

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}


@cache
def schema() -> dict[str, Any]:
    """Return the JSON Schema of a report, ``sonde-scan/1``.

    Examples
    --------
    >>> schema()["properties"]["schema"]["const"]
    'sonde-scan/1'
    """
    return json.loads(files("sonde.report").joinpath("schema.json").read_text("utf-8"))


def check_report(report: Any, *, strict: bool = True) -> None:
    """Raise unless ``report`` follows the schema.

    Parameters
    ----------
    report : dict
        The JSON of a scan.
    strict : bool, default=True
        Refuse keys that the schema does not name. Writers are held to that; readers pass False, so
        that the report of a later version with additional keys can be read.

    Raises
    ------
    StateError
        Names the first place that is wrong.

    Examples
    --------
    >>> check_report({"schema": "other/1"})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    sonde.core.errors.StateError: ...: expected 'sonde-scan/1', got 'other/1' at $.schema. ...
    """
    if isinstance(report, dict) and "schema" in report:
        _raise_first(
            _faults(report["schema"], schema()["properties"]["schema"], "$.schema", strict)
        )
    _raise_first(_faults(report, schema(), "$", strict))


def _raise_first(faults: Iterator[str]) -> None:
    fault = next(faults, None)
    if fault is not None:
        raise StateError(f"check_report: {fault}. Give the JSON or HTML that `sonde scan` wrote.")


def _faults(value: Any, rule: dict[str, Any], at: str, strict: bool) -> Iterator[str]:
    if "$ref" in rule:
        rule = schema()["$defs"][rule["$ref"].removeprefix("#/$defs/")]
    if "anyOf" in rule:
        yield from _any(value, rule["anyOf"], at, strict)
        return
    wanted = [rule["const"]] if "const" in rule else rule.get("enum")
    if wanted is not None and value not in wanted:
        yield f"expected {' or '.join(map(repr, wanted))}, got {_shown(value)} at {at}"
    names = rule.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names and not _is_a(value, names):
        yield f"expected {' or '.join(names)}, got {_shown(value)} at {at}"
    elif isinstance(value, dict):
        yield from _object(value, rule, at, strict)
    elif isinstance(value, list):
        yield from _array(value, rule, at, strict)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from _number(value, rule, at)
    elif isinstance(value, str) and "pattern" in rule:
        yield from _pattern(value, rule["pattern"], at)


def _any(value: Any, rules: list[dict[str, Any]], at: str, strict: bool) -> Iterator[str]:
    firsts = (next(_faults(value, rule, at, strict), None) for rule in rules)
    faults = [fault for fault in firsts if fault]
    if len(faults) == len(rules):
        # The fault inside the alternative of the right type says more than "is not null".
        yield faults[-1] if value is None else faults[0]


def _object(value: dict, rule: dict[str, Any], at: str, strict: bool) -> Iterator[str]:
    for key in rule.get("required", ()):
        if key not in value:
            yield f"expected the key {key!r}, got none at {at}"
    properties, rest = rule.get("properties", {}), rule.get("additionalProperties", True)
    for key, item in value.items():
        if key in properties:
            yield from _faults(item, properties[key], f"{at}.{key}", strict)
        elif isinstance(rest, dict):
            yield from _faults(item, rest, f"{at}.{key}", strict)
        elif rest is False and strict:
            yield f"expected no key {_shown(key)} at {at}"


def _array(value: list, rule: dict[str, Any], at: str, strict: bool) -> Iterator[str]:
    low, high = rule.get("minItems", 0), rule.get("maxItems", math.inf)
    if not low <= len(value) <= high:
        yield f"expected {low} to {high} items, got {len(value)} at {at}"
        return
    for i, item in enumerate(value):
        yield from _faults(item, rule.get("items", {}), f"{at}[{i}]", strict)


def _number(value: Real, rule: dict[str, Any], at: str) -> Iterator[str]:
    if not math.isfinite(value):
        yield f"expected a finite number, got {value} at {at}"
    elif not rule.get("minimum", -math.inf) <= value <= rule.get("maximum", math.inf):
        ends = f"{rule.get('minimum', '..')} to {rule.get('maximum', '..')}"
        yield f"expected {ends}, got {value} at {at}"


def _pattern(value: str, pattern: str, at: str) -> Iterator[str]:
    if re.search(pattern, value) is None:
        yield f"expected text like {pattern}, got {_shown(value)} at {at}"


def _is_a(value: Any, names: list[str]) -> bool:
    if isinstance(value, bool):
        return "boolean" in names
    return any(isinstance(value, _TYPES[name]) for name in names)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
