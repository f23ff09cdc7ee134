"""Order causes before consequences: which findings another one explains, and which are void.

A fault at one place raises many codes. Each rule says what it explains, and where; the rest of a
report then shows the origin once, with its consequences beneath it. The word cause is kept for what
was tried: the trials of all findings compete on the same rows (``tournament``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from graphlib import TopologicalSorter

from sonde.findings.catalogue import rule_classes
from sonde.findings.evidence.answers.best_probe import BestProbe, best_probe
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.trials.answer_trials import logit_constant
from sonde.findings.rule import Check, Explains, Finding, Reach
from sonde.findings.tournament import name_cause


@cache
def explanations() -> tuple[tuple[str, Explains], ...]:
    """Return what each code explains, in the order in which explanations are tried.

    A code comes before the codes that it explains, so that an effect is put down to its earliest
    cause. In a circle, the explanation that asks for the largest effect comes first.
    """
    lines_of = {code: cls.explains for code, cls in rule_classes().items() if cls.explains}
    effects = {
        code: {e for some in lines for e in some.effects} for code, lines in lines_of.items()
    }
    circle = {code: min(_circle(code, effects)) for code in lines_of}
    earlier: dict[str, set[str]] = {code: set() for code in circle.values()}
    for code, some in effects.items():
        for effect in some & set(lines_of):
            if circle[effect] != circle[code]:
                earlier[circle[effect]].add(circle[code])
    rank = _generations(earlier)
    lines = [(code, line) for code, some in lines_of.items() for line in some]
    return tuple(sorted(lines, key=lambda x: (rank[circle[x[0]]], -x[1].least, x[0])))


def _circle(code: str, effects: Mapping[str, set[str]]) -> set[str]:
    """Return the codes that explain a code and are explained by it, directly or through others."""
    return {code} | {e for e in _reached(code, effects) if code in _reached(e, effects)}


def _reached(code: str, effects: Mapping[str, set[str]]) -> set[str]:
    reached, rest = set[str](), [code]
    while rest:
        new = effects.get(rest.pop(), set()) - reached
        reached |= new
        rest += new
    return reached


def _generations(earlier: Mapping[str, set[str]]) -> dict[str, int]:
    """Return how many steps each code is away from codes that nothing explains."""
    sorter, rank, generation = TopologicalSorter(earlier), dict[str, int](), 0
    sorter.prepare()
    while sorter.is_active():
        ready = sorter.get_ready()
        rank |= dict.fromkeys(ready, generation)
        sorter.done(*ready)
        generation += 1
    return rank


def name_causes(evidence: Evidence, checks: Sequence[Check]) -> list[Check]:
    """Return the checks with explained findings marked and void ones withheld.

    A finding is explained by at most one other, the earliest that reaches it, and no two
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
    for origin, line in explanations():
        cause = settled.get(origin)
        if cause is None or cause.finding is None or cause.finding.level not in line.levels:
            continue
        if cause.finding.effect < line.least:
            continue
        for code in line.effects or tuple(settled):
            if code in settled and code != origin:
                settled[code] = _explained(settled, code, origin, line, order)
    probe = _best_known(evidence, settled)
    constant = None if probe is None else logit_constant(evidence)
    settled = name_cause(settled, probe, None if constant is None else constant.trial)
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


def _explained(
    settled: dict[str, Check], code: str, origin: str, line: Explains, order: dict[str, int]
) -> Check:
    check = settled[code]
    if line.void:
        if check.state not in ("raised", "clear"):
            return check
        reason = f"{line.void} ({origin})"
        return Check(code, "withheld", reason, None, None, check.tables)
    cause = settled[origin].finding
    finding = check.finding
    if cause is None or finding is None or finding.because_of is not None:
        return check
    if _leads_to(settled, origin, code) or not _reaches(line.reach, cause, finding, order):
        return check
    return replace(check, finding=replace(finding, because_of=origin))


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
