"""Order causes before consequences: which findings another one explains, and which are void.

A fault at one place raises many codes. One table says what explains what, and where; the rest of a
report then shows the origin once, with its consequences beneath it. The word cause is kept for what
was tried: the trials of all findings compete on the same rows (``tournament``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sonde.findings.evidence.answers.best_probe import BestProbe, best_probe
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.answer_trials import logit_constant
from sonde.findings.rule import Check, Finding, Level
from sonde.findings.tournament import name_cause

Reach = Literal["anywhere", "same", "same or later"]


@dataclass(frozen=True)
class Cause:
    """A known cause: a row of the table below.

    Parameters
    ----------
    cause : str
        Code that explains.
    effects : tuple of str
        Codes that it explains; empty = all others.
    reach : {"anywhere", "same", "same or later"}
        Where all sites of an effect must lie for it to be explained: anywhere, at sites of the
        cause, or at the first of these and after.
    levels : tuple of str
        Levels of the cause at which it explains anything.
    least : float
        Smallest effect of the cause at which it explains anything.
    void : str
        If given, effects are withheld for this reason, whether raised or clear.
    """

    cause: str
    effects: tuple[str, ...]
    reach: Reach = "anywhere"
    levels: tuple[Level, ...] = ("note", "warning", "error")
    least: float = 0.0
    void: str = ""


_LOOK: tuple[Level, ...] = ("warning", "error")
_NO_FUNCTION = "the state is not a function of the row"

_OF_PARTS = (
    *("SND003", "SND012", *(f"SND0{n}" for n in range(20, 25)), "SND026", "SND028", "SND029"),
    *("SND031", "SND033", "SND037", "SND039", "SND046", *(f"SND0{n}" for n in range(61, 68))),
    "SND069",
)

TABLE: tuple[Cause, ...] = (
    Cause("SND005", ("SND004", "SND006"), levels=_LOOK),
    Cause("SND019", ("SND007", "SND008"), levels=_LOOK),
    Cause("SND008", ("SND007",), levels=_LOOK),
    *(
        Cause(code, ("SND042", "SND051", "SND052", "SND053"), levels=_LOOK, void=_NO_FUNCTION)
        for code in ("SND004", "SND005", "SND006", "SND007")
    ),
    Cause(
        "SND036",
        ("SND031", "SND032", "SND033", "SND034"),
        void="the labels cannot be predicted from these states",
    ),
    Cause("SND001", (), "same or later", levels=_LOOK),
    Cause(
        "SND049",
        ("SND015", "SND034", "SND037", "SND044", "SND046", "SND047", "SND061", "SND063", "SND069"),
        levels=_LOOK,
    ),
    *(
        Cause(code, ("SND069",), levels=_LOOK)
        for code in (
            *("SND012", "SND015", "SND033", "SND034", "SND036", "SND037", "SND038", "SND039"),
            "SND046",
        )
    ),
    *(
        Cause(code, ("SND068", "SND070"), levels=_LOOK)
        for code in ("SND001", "SND015", "SND019", "SND038")
    ),
    Cause("SND070", ("SND068",)),
    *(Cause(code, _OF_PARTS) for code in ("SND070", "SND068")),
    Cause("SND067", ("SND026", "SND028", "SND029", "SND037", "SND064", "SND066"), least=0.2),
    Cause("SND028", ("SND064", "SND066", "SND067")),
    Cause("SND066", ("SND029", "SND037", "SND064", "SND067"), levels=_LOOK),
    Cause("SND028", ("SND029", "SND037", "SND026"), least=0.2),
    Cause("SND029", ("SND028", "SND037", "SND026")),
    Cause("SND038", ("SND037", "SND039", "SND046")),
    Cause("SND003", ("SND012", "SND037", "SND039")),
    Cause("SND020", ("SND037", "SND039", "SND046")),
    Cause("SND015", ("SND012", "SND037", "SND039", "SND046")),
    Cause("SND012", ("SND037", "SND039", "SND046"), levels=_LOOK),
    Cause("SND037", ("SND039",)),
    *(
        Cause(code, ("SND061", "SND062", "SND063", "SND064"))
        for code in ("SND012", "SND015", "SND037", "SND038", "SND039", "SND046")
    ),
    Cause("SND011", ("SND014", "SND022", "SND023", "SND025"), "same or later", levels=("error",)),
    Cause("SND022", ("SND014",), "same"),
    Cause("SND016", ("SND017", "SND021")),
    Cause("SND023", ("SND002", "SND011"), "same or later"),
    Cause("SND055", ("SND051", "SND052"), levels=_LOOK),
    Cause("SND041", ("SND042", "SND044"), least=0.01),
    Cause("SND047", ("SND044",)),
    Cause("SND013", ("SND042",), "same or later"),
)


def name_causes(evidence: Evidence, checks: Sequence[Check]) -> list[Check]:
    """Return the checks with explained findings marked and void ones withheld.

    A finding is explained by at most one other, the first in the table that reaches it, and no two
    findings explain each other. At most one finding is the cause.

    Parameters
    ----------
    evidence : Evidence
        Whose sites give the order.
    checks : sequence of Check
    """
    order = {s.schema.key: i for i, s in enumerate(evidence.sites)}
    keys = {s.name: s.schema.key for s in evidence.sites}
    settled = {c.code: _named(c, keys) for c in checks}
    for line in TABLE:
        cause = settled.get(line.cause)
        if cause is None or cause.finding is None or cause.finding.level not in line.levels:
            continue
        if cause.finding.effect < line.least:
            continue
        for code in line.effects or tuple(settled):
            if code in settled and code != line.cause:
                settled[code] = _explained(settled, code, line, order)
    known = _best_known(evidence, settled)
    constant = None if known is None else logit_constant(evidence)
    settled = name_cause(settled, known, None if constant is None else constant.trial)
    return [settled[c.code] for c in checks]


def _best_known(evidence: Evidence, settled: Mapping[str, Check]) -> BestProbe | None:
    """Return the best answers known to be possible, if a change of answers was tried."""
    trials = [c.finding.trial for c in settled.values() if c.finding is not None]
    kinds = {t.measure for t in trials if t is not None and t.holds}
    return best_probe(evidence) if kinds & {"accuracy", "error", "loss"} else None


def _named(check: Check, keys: dict[str, str]) -> Check:
    finding = check.finding
    if finding is None:
        return check
    sites = tuple(keys.get(s, s) for s in finding.sites)
    return replace(check, finding=replace(finding, sites=sites))


def _explained(settled: dict[str, Check], code: str, line: Cause, order: dict[str, int]) -> Check:
    check = settled[code]
    if line.void:
        if check.state not in ("raised", "clear"):
            return check
        reason = f"{line.void} ({line.cause})"
        return Check(code, "withheld", reason, None, None, check.tables)
    cause = settled[line.cause].finding
    finding = check.finding
    if cause is None or finding is None or finding.because_of is not None:
        return check
    if _leads_to(settled, line.cause, code) or not _reaches(line.reach, cause, finding, order):
        return check
    return replace(check, finding=replace(finding, because_of=line.cause))


def _leads_to(settled: dict[str, Check], code: str, target: str) -> bool:
    """Return whether following causes from ``code`` arrives at ``target``."""
    seen: set[str] = set()
    while code not in seen and code in settled:
        seen.add(code)
        finding = settled[code].finding
        if finding is None or finding.because_of is None:
            return False
        code = finding.because_of
        if code == target:
            return True
    return False


def _reaches(reach: Reach, cause: Finding, finding: Finding, order: dict[str, int]) -> bool:
    if reach == "anywhere":
        return True
    if not finding.sites or not cause.sites:
        return False
    if reach == "same":
        return set(finding.sites) <= set(cause.sites)
    first = min(order.get(s, len(order)) for s in cause.sites)
    return all(order.get(s, -1) >= first for s in finding.sites)
