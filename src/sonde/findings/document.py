"""A scan as the JSON that reports, gates and scripts read (schema ``sonde-scan/1``)."""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch

from sonde.findings.answered import answered_rows
from sonde.findings.catalogue import codes_of
from sonde.findings.evidence.answers.answers import answers_section
from sonde.findings.evidence.answers.labels import labels_section
from sonde.findings.evidence.inputs.suspect_labels import suspects_section
from sonde.findings.evidence.inputs.unusual_rows import NAMED, rows_section
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import EXAMPLES
from sonde.findings.evidence.texts.lens import prediction_section
from sonde.findings.evidence.trials.calibration import sureness_section
from sonde.findings.evidence.versus.comparison import versus_section
from sonde.findings.inputs import other_rows, own_rows, show_inputs
from sonde.findings.profile import similarity, site_profile, site_units, site_values, unit_facts
from sonde.findings.provenance import limits, provenance
from sonde.findings.rule import LEVELS, Check, Figure, Finding, Gap, Rule
from sonde.findings.scan import Scanned
from sonde.findings.trial import Trial
from sonde.findings.vectors import vectors_section
from sonde.run.fitting.fitted_rows import fitted_rows
from sonde.run.reading.row_places import Place, places_of
from sonde.run.scoring.exhibit import hashed_id

SCHEMA = "sonde-scan/1"
ID_KEYS = ("id", "id2", "ids", "rows", "group")
MEASURED = ("method", "site", "value", "se", "null", "n", "unit", "n_values", "direction", "flags")
MOST_UNITS = 20


def document(scanned: Scanned, model: str = "", started: float | None = None) -> dict[str, Any]:
    """Return the JSON of a scan.

    Parameters
    ----------
    scanned : Scanned
    model : str
        The model as typed.
    started : float or None
        Seconds since the epoch at which the command began.
    """
    evidence, settings = scanned.evidence, scanned.settings
    place = places_of(scanned.stream, settings.hash_ids)
    other_place = places_of(scanned.other_stream, settings.hash_ids)
    findings = [
        _finding(c, scanned.rules[c.code], scanned)
        | _rows_of(c.finding, evidence, other_place if c.finding.of_other else place)
        for c in scanned.checks
        if c.finding is not None
    ]
    findings.sort(key=lambda f: (-LEVELS.index(f["level"]), -f["effect"], f["code"]))
    document = {
        "schema": SCHEMA,
        "verdict": _verdict(findings, scanned.checks),
        "answers": _answers(evidence),
        "cause": _marked(scanned, findings, "is_cause"),
        "part_of_cause": _marked(scanned, findings, "is_part"),
        "findings": findings,
        "checks": [_check(c, scanned.rules[c.code]) for c in scanned.checks],
        "sites": [site_profile(s, evidence, settings.error_bars) for s in evidence.sites],
        "similarity": similarity(evidence),
        "units": _units(evidence, findings),
        "labels": labels_section(evidence),
        "prediction": prediction_section(evidence),
        "vectors": vectors_section(evidence, scanned.stream),
        "measures": [{k: line[k] for k in MEASURED} for line in fitted_rows(scanned.measured)],
        "not_measured": [{"method": m, "reason": r} for m, r in scanned.not_measured.items()],
        "versus": _versus(evidence),
        "rows": _rows_section(scanned),
        "left_out": [entry.json() for entry in scanned.stream.left_out],
        "untried": evidence.budget.text() or None,
        "limits": limits(scanned),
        "shows_inputs": settings.show_inputs,
        "partial": None
        if scanned.partial is None
        else {"done": scanned.partial[0], "total": scanned.partial[1]},
        "provenance": provenance(scanned, model, started if started is not None else time.time()),
    }
    if settings.show_inputs:
        show_inputs(document, scanned.stream, scanned.other_stream, evidence.data)
    _name_places(own_rows(document), place)
    _name_places(other_rows(document), other_place)
    plain = to_plain(document)
    return hash_ids(plain) if settings.hash_ids else plain


def _marked(
    scanned: Scanned, findings: list[dict[str, Any]], mark: Literal["is_cause", "is_part"]
) -> str | None:
    """Return the code of the cause, or of a part of it, unless the user ignores this code."""
    ignored = {f["code"] for f in findings if f["ignored"]}
    all_findings = [c.finding for c in scanned.checks if c.finding is not None]
    codes = [f.code for f in all_findings if (f.is_cause if mark == "is_cause" else f.is_part)]
    return next((code for code in codes if code not in ignored), None)


def _answers(evidence: Evidence) -> dict[str, Any] | None:
    """Return the model's accuracy, and a classifier's calibration if it is clearly off."""
    section = answers_section(evidence)
    if section is None or section["measure"] != "accuracy":
        return section
    return section | {"sureness": sureness_section(evidence)}


def _versus(evidence: Evidence) -> dict[str, Any] | None:
    """Return the section on OTHER, with its values at each site."""
    section = versus_section(evidence)
    if section is None or evidence.versus is None:
        return section
    other = evidence.versus.other
    return section | {
        "profiles": [
            {"site": site.schema.key, "values": site_values(site, other)} for site in other.sites
        ]
    }


def _rows_section(scanned: Scanned) -> dict[str, Any]:
    """Return the section on rows; no label is called wrong if that check was withheld."""
    section = rows_section(scanned.evidence)
    tables = [check.tables.get("weak_groups", []) for check in scanned.checks]
    section["weak_groups"] = [group for table in tables for group in table]
    section["answers"] = answered_rows(scanned.evidence, scanned.checks)
    withheld = {check.code for check in scanned.checks if check.state == "withheld"}
    if withheld.intersection(codes_of("mislabelled")):
        return section | {"mislabelled": [], "suspects": None}
    return section | {"suspects": suspects_section(scanned.evidence)}


def _finding(check: Check, rule: Rule, scanned: Scanned) -> dict[str, Any]:
    finding, again = check.finding, scanned.again
    assert finding is not None
    return {
        "code": finding.code,
        "level": finding.level,
        "title": rule.title,
        "sentence": finding.sentence,
        "why": rule.why,
        "fix": finding.fix or rule.fix,
        "trial": _trial(finding.trial, finding.gap),
        "next": "" if again is None else again.text(finding.next),
        "theme": rule.theme,
        "effect": float(min(1.0, max(0.0, finding.effect))),
        "because_of": finding.because_of,
        "borderline": finding.borderline,
        "common": finding.common,
        "sites": list(finding.sites),
        "units": [int(u) for u in finding.units],
        "classes": list(finding.classes),
        "location": None if finding.location is None else asdict(finding.location),
        "figure": _figure(finding.figure),
        "how": _how(rule),
        "ignored": is_ignored(finding, scanned.settings.ignore),
    }


def _trial(trial: Trial | None, gap: Gap | None) -> dict[str, Any] | None:
    """Return a trial whose gain was confirmed, with errors and losses as positive numbers.

    A head that was fitted anew undoes nothing: advice to do so is no fix.
    """
    if trial is None or not trial.holds or trial.scope == "head":
        return None
    before, after = float(trial.before.double().mean()), float(trial.after.double().mean())
    possible = None if gap is None else gap.possible
    if trial.measure == "error":
        before, after, possible = 1 - before, 1 - after, None if gap is None else 1 - gap.possible
    elif trial.measure != "accuracy":
        before, after, possible = -before, -after, None if gap is None else -gap.possible
    return {
        "change": trial.change,
        "measure": trial.measure,
        "before": before,
        "after": after,
        "n_rows": len(trial.rows),
        "p": trial.p,
        "possible": possible,
        "possible_at": None if gap is None else gap.where,
        "closed": None if gap is None else gap.closed,
    }


def _rows_of(finding: Finding, evidence: Evidence, place: Place) -> dict[str, Any]:
    """Return the ids of the rows that a finding names, and their place in the data."""
    data = evidence.versus.other_data if finding.of_other else evidence.data
    places = [place(example) for example in finding.examples[:NAMED]]
    return {
        "rows": [str(data.ids[example]) for example in finding.examples[:NAMED]],
        "places": [name for name in places if name is not None],
    }


def is_ignored(finding: Finding, ignore: Sequence[str]) -> bool:
    """Return whether every site of a finding is silenced by ``CODE`` or ``CODE@pattern``."""
    patterns = []
    for entry in ignore:
        code, _, pattern = entry.partition("@")
        if code.upper() == finding.code:
            patterns.append(pattern or "*")
    if not patterns:
        return False
    names = list(finding.sites) or [""]
    return all(
        any(fnmatchcase(name, p) or fnmatchcase(name, f"{p}:*") or p == "*" for p in patterns)
        for name in names
    )


def _how(rule: Rule) -> str:
    moved = rule.moved()
    thresholds = ", ".join(f"{name} = {value:g}" for name, value in moved.items())
    return rule.how + (f" Thresholds moved: {thresholds}." if moved else "")


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    if figure is None:
        return None
    return {
        "name": figure.name,
        "value": figure.value,
        "low": figure.low,
        "high": figure.high,
        "confidence": None if figure.low is None else figure.confidence,
        "unit": figure.unit,
        "null": figure.null,
        "threshold": figure.threshold,
        "direction": figure.direction,
        "p": figure.p,
        "n_rows": figure.n_rows,
        "n_groups": figure.n_groups,
        "flags": list(figure.flags),
    }


def _check(check: Check, rule: Rule) -> dict[str, Any]:
    limits = ", ".join(f"{k} {v:g}" for k, v in rule.thresholds().items())
    return {
        "code": check.code,
        "title": rule.title,
        "state": check.state,
        "reason": check.reason or None,
        "figure": _figure(check.figure),
        "threshold": limits or None,
    }


def _verdict(findings: list[dict[str, Any]], checks: Sequence[Check]) -> dict[str, int]:
    counted = [f for f in findings if not f["ignored"]]
    verdict = {level: sum(f["level"] == level for f in counted) for level in reversed(LEVELS)}
    for state in ("clear", "withheld", "not_applicable", "failed"):
        verdict[state] = sum(c.state == state for c in checks)
    verdict["ignored"] = len(findings) - len(counted)
    return verdict


def _units(evidence: Evidence, findings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for site in evidence.sites:
        names = (site.schema.key, site.name)
        codes: dict[int, list[str]] = {}
        for finding in findings:
            if finding["sites"] and finding["sites"][0] in names:
                for unit in finding["units"]:
                    codes.setdefault(unit, []).append(finding["code"])
        named = [
            unit_facts(site, unit, codes_of)
            for unit, codes_of in list(codes.items())[:MOST_UNITS]
            if 0 <= unit < site.dim
        ]
        out.append(site_units(site, named))
    return out


def to_plain(value: Any) -> Any:
    """Return a value as JSON: tensors as lists, NaN and infinity as None."""
    if isinstance(value, torch.Tensor):
        return to_plain(value.tolist())
    if isinstance(value, dict):
        return {str(k): to_plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(v) for v in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    number = float(value)
    return number if math.isfinite(number) else None


def hash_ids(value: Any, is_id: bool = False) -> Any:
    """Return JSON in which the ids of rows are hashes; ``is_id`` says that ``value`` is an id."""
    if isinstance(value, dict):
        return {key: hash_ids(item, key in ID_KEYS) for key, item in value.items()}
    if isinstance(value, list):
        return [hash_ids(item, is_id) for item in value]
    return hashed_id(value) if is_id and isinstance(value, str) else value


def _name_places(rows: list[dict[str, Any]], place: Place) -> None:
    """Replace the ``examples`` of a table's rows by their ``places``."""
    for row in rows:
        names = [place(example) for example in row.pop(EXAMPLES)]
        row["places"] = [name for name in names if name is not None]
