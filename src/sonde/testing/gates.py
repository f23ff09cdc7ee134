"""A scan as a test: ``assert_scan(model, data, "accuracy>=.95", "no error")``."""

import re
from pathlib import Path
from typing import Any

from sonde.core.errors import InputError
from sonde.findings.catalogue import rule_classes
from sonde.report import Report, scan
from sonde.report.gate import LEVELS, MEASURES, codes_reaching, parse_gate

OPPOSITE = {">=": "<", "<=": ">"}
WANTED = re.compile(rf"({'|'.join(MEASURES)}) *(>=|<=) *(\d+\.?\d*|\.\d+)")


def assert_scan(
    model: Any, data: Any, *wanted: str, page: str | Path | None = None, **options: Any
) -> Report:
    """Scan a model, and fail if a requirement is not met.

    Parameters
    ----------
    model : object
        Model to scan, as ``sonde.scan`` takes it.
    data : object
        Inputs to scan the model on, as ``sonde.scan`` takes them.
    *wanted : str
        Limits of the model's answers (``accuracy>=.95``, ``loss<=1.2``, ``error<=3``), levels
        (``no warning``: no finding of that level or above), and codes (``no SND004``). Without one
        ``no error``. A figure that is not known, or a check that could not look, fails.
    page : path, optional
        Write the report there, ``.html`` or ``.json``, before anything fails.
    **options
        Options of ``sonde.scan``.

    Raises
    ------
    AssertionError
        With what does not hold, and the first lines of the report.
    InputError
        If a word is no limit, level or code.

    Examples
    --------
    >>> usual = {"image_mean": 0.5, "image_std": 0.5, "limit": 64, "progress": False}
    >>> assert_scan("sonde:digits", "sonde:digits/test", "accuracy>=.9", **usual).json()["schema"]
    'sonde-scan/1'
    """
    gate = tuple(_gate_of(word) for word in wanted or ("no error",))
    report = scan(model, data, **options)
    if page is not None:
        report.save(page)
    broken = codes_reaching(report.json(), gate)
    if broken:
        where = "" if page is None else f"\nThe report: {page}"
        raise AssertionError(
            f"the scan does not satisfy {', '.join(wanted) or 'no error'}: "
            f"{'; '.join(broken)}\n{report}{where}"
        )
    return report


def _gate_of(word: str) -> str:
    """Return the ``--fail-on`` condition for a requirement."""
    limit = WANTED.fullmatch(word.strip())
    if limit is not None:
        name, side, value = limit.groups()
        return f"{name}{OPPOSITE[side]}{value}"
    if not word.startswith("no "):
        raise InputError(
            f"assert_scan: expected a limit such as accuracy>=.95, or 'no' and a level "
            f"({', '.join(LEVELS)}) or code ('no {next(iter(rule_classes()))}'), got {word!r}."
        )
    (gate,) = parse_gate(word.removeprefix("no ").strip())
    return gate
