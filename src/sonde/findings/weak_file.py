"""The weak groups of a scan, as a file for ``sonde score --group``."""

from sonde.core.errors import InputError
from sonde.findings.catalogue import codes_of
from sonde.findings.codes._weak_rule import WeakGroupRule
from sonde.findings.evidence.inputs.weak_groups import told, weak_rows
from sonde.findings.scan import Scanned
from sonde.run.scoring.weak_file import KnownGroup, WeakGroups


def weak_groups_of(scanned: Scanned) -> WeakGroups:
    """Return the groups that a scan confirmed, which may be none.

    Raises
    ------
    InputError
        If the scan did not look for groups, with the reason.
    """
    (code,) = codes_of("weak_groups")
    check = next((c for c in scanned.checks if c.code == code), None)
    rows, rule = weak_rows(scanned.evidence), scanned.rules.get(code)
    if check is None or rows is None or check.state not in ("clear", "raised"):
        reason = "--only does not include it" if check is None else check.reason
        raise InputError(f"--groups: {code} did not look for weak groups: {reason}.")
    assert isinstance(rule, WeakGroupRule)  # the rule of its code
    return WeakGroups.of(
        scanned.stream,
        [
            KnownGroup(
                text=told(scanned.evidence, rows, group),
                conditions=group.conditions,
                figures={
                    "n": len(group.rows),
                    "accuracy": 1 - group.loss,
                    "low": 1 - group.high,
                    "high": 1 - group.low,
                    "elsewhere": 1 - group.elsewhere,
                },
            )
            for group in rule.confirmed(rows)
        ],
    )
