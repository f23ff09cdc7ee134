"""Gates on the model's own answers: ``accuracy<.95``, ``loss>1.2``, ``error>3``."""

import math
import re
from typing import Any, Final

MEASURES: Final = {"accuracy": "accuracy", "loss": "nats_per_token", "error": "rms_error"}
LIMIT: Final = re.compile(rf"({'|'.join(MEASURES)}) *([<>]) *(\d+\.?\d*|\.\d+)")


def reached(report: dict[str, Any], word: str) -> str | None:
    """Return how a report reaches a limit, or None if it does not or ``word`` is no limit.

    An unknown figure reaches the limit too: a gate that could not look must not pass.

    Examples
    --------
    >>> reached({"answers": {"measure": "accuracy", "value": 0.93}}, "accuracy<.95")
    'accuracy 0.93 < .95'
    >>> reached({"answers": None}, "loss>1.2")
    'loss > 1.2 (not known)'
    >>> reached({"answers": {"measure": "rms_error", "value": 3.0}}, "loss>1.2")
    'loss > 1.2 (not known; known: error)'
    """
    match = LIMIT.fullmatch(word)
    if match is None:
        return None
    name, side, limit = match.groups()
    value = figure(report, name)
    if value is None:
        known = ", ".join(n for n in MEASURES if figure(report, n) is not None)
        return f"{name} {side} {limit} (not known{f'; known: {known}' if known else ''})"
    is_beyond = value < float(limit) if side == "<" else value > float(limit)
    return f"{name} {value:.4g} {side} {limit}" if is_beyond else None


def figure(report: dict[str, Any], name: str) -> float | None:
    """Return accuracy, loss (nats per label or token) or error (root mean square), or None."""
    answers = report.get("answers") or {}
    if answers.get("measure", "").endswith(MEASURES[name]):
        return answers["value"]
    if name != "loss" or answers.get("measure") != "accuracy":
        return None
    rows = [row for row in report["rows"]["answers"] if row["right"] is not None]
    lost = [math.inf if row["loss"] is None else row["loss"] for row in rows]
    return math.fsum(lost) / len(lost) if lost else None
