"""Gates on a scan: levels, codes, and limits such as ``accuracy<.95``."""

import math
import re
from typing import Any, Final

from sonde.core.errors import InputError, near

LEVELS: Final = ("note", "warning", "error")
MEASURES: Final = {"accuracy": "accuracy", "loss": "nats_per_token", "error": "rms_error"}
LIMIT: Final = re.compile(rf"({'|'.join(MEASURES)}) *([<>]) *(\d+\.?\d*|\.\d+)")


def reached(report: dict[str, Any], word: str) -> str | None:
    """Return how a report reaches a limit, or None if it does not or if ``word`` is no limit.

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
        names = ", ".join(n for n in MEASURES if figure(report, n) is not None)
        return f"{name} {side} {limit} (not known{f'; known: {names}' if names else ''})"
    is_beyond = value < float(limit) if side == "<" else value > float(limit)
    return f"{name} {value:.4g} {side} {limit}" if is_beyond else None


def figure(report: dict[str, Any], name: str) -> float | None:
    """Return accuracy, loss (nats per label or token), error (root mean square), or None."""
    answers = report.get("answers") or {}
    if answers.get("measure", "").endswith(MEASURES[name]):
        return answers["value"]
    if name != "loss" or answers.get("measure") != "accuracy":
        return None
    rows = [row for row in report["rows"]["answers"] if row["right"] is not None]
    lost = [math.inf if row["loss"] is None else row["loss"] for row in rows]
    return math.fsum(lost) / len(lost) if lost else None


def parse_gate(text: str | None) -> tuple[str, ...]:
    """Return the levels, codes and limits of ``--fail-on``.

    Raises
    ------
    InputError
        If a word is not a level, a code or a limit.
    """
    if text is None or text == "never":
        return ()
    from sonde.findings.catalogue import rule_classes

    words = []
    for word in text.split(","):
        word = word.strip()
        if LIMIT.fullmatch(word):
            words.append(word)
        elif word in LEVELS or word.upper() in rule_classes():
            words.append(word if word in LEVELS else word.upper())
        else:
            names = [*LEVELS, *rule_classes()]
            raise InputError(
                f"--fail-on: expected a level, a code or a limit such as accuracy<.95, loss>1.2 or "
                f"error>3, got {word!r}.{near(word, names)}"
            )
    return tuple(words)


def codes_reaching(
    report: dict[str, Any], gate: tuple[str, ...], baseline: dict[str, Any] | None = None
) -> list[str]:
    """Return the codes and limits by which a report reaches a gate.

    A check that the gate names by its code reaches the gate too if the check was withheld or
    failed: a gate that could not look must not pass. Its code is followed by ``(withheld)`` or
    ``(failed)``.
    """
    findings = [f for f in report["findings"] if not f["ignored"]]
    if baseline is not None:
        from sonde.report import diff, new_or_worse

        entries = new_or_worse(diff(baseline, report))
        findings = [{"code": e["code"], "level": e["level_b"]} for e in entries if e["level_b"]]
    levels = [LEVELS.index(word) for word in gate if word in LEVELS]
    least = min(levels, default=len(LEVELS))
    codes = [f["code"] for f in findings if LEVELS.index(f["level"]) >= least or f["code"] in gate]
    blind = [c for c in report["checks"] if c["state"] in ("withheld", "failed")]
    codes += [f"{c['code']} ({c['state']})" for c in blind if c["code"] in gate]
    codes += [measure for word in gate if (measure := reached(report, word)) is not None]
    return list(dict.fromkeys(codes))
