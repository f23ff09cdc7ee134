"""Faults of models and inputs that no check was written for, and how a scan names them.

``says`` is what the first finding, or its fix, must say to name the fault. It was written before
the checks were.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sonde.report import Report
from sonde.report._first_screen import first_finding


@dataclass(frozen=True)
class Unnamed:
    """A fault in a model or its inputs.

    Parameters
    ----------
    model, name : str
    says : str
        Pattern that words naming the fault match.
    scan : callable
    """

    model: str
    name: str
    says: str
    scan: Callable[[], Report]


@dataclass(frozen=True)
class Named:
    """How a scan named a fault: "named" first, "mentioned", "alarm" for another one, "missed"."""

    fault: Unnamed
    how: str
    words: str
    answers: str
    seconds: float

    def __str__(self) -> str:
        said = f"{self.fault.model:10s} {self.fault.name:34s} {self.how:10s}{self.seconds:6.1f}"
        return f"{said}  {self.answers:22s} {self.words}"


def named(fault: Unnamed) -> Named:
    """Scan a fault and judge what was said."""
    began = time.perf_counter()
    report = fault.scan().json()
    seconds = time.perf_counter() - began
    first = first_finding(report)
    loud = [f for f in report["findings"] if f["level"] != "note"]
    how = "missed"
    if first is not None and _matches(fault, first):
        how = "named"
    elif any(_matches(fault, f) for f in report["findings"]):
        how = "mentioned"
    elif loud:
        how = "alarm"
    words = "" if first is None else f"{first['code']} {first['sentence']} {first.get('fix') or ''}"
    return Named(fault, how, words, _answers(report), seconds)


def _matches(fault: Unnamed, finding: dict[str, Any]) -> bool:
    said = f"{finding['sentence']} {finding.get('fix') or ''}"
    return re.search(fault.says, said, re.IGNORECASE) is not None


def _answers(report: dict[str, Any]) -> str:
    found = report.get("answers")
    return "" if found is None else f"{found['measure']} {found['value']:.3g}"
