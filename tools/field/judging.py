"""Judge what a scan said of a planted fault, by its words alone.

Nothing here knows how a rule works: a report is a terminal text and a list of findings, and a fault
brings a pattern of the words that are correct.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tools.field.planting import Fault

NAMED, MENTIONED, MISSED, WRONG = "named", "mentioned", "missed", "wrong cause"
REFUSED, CRASHED, LATE = "refused", "crash", "no end"
VERDICTS = (NAMED, MENTIONED, MISSED, WRONG, REFUSED, CRASHED, LATE)
LABELLED = re.compile(r"^([a-z][\w ]{0,14}?)(?:\s{2,}|:\s+)(\S.*)$")
NO_CAUSE = re.compile(r"^(no|none|not)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Said:
    """What a report says in front.

    Parameters
    ----------
    cause, fix : str
        The texts beside these words on the first screen, or "".
    loud, quiet : tuple of str
        Findings of level warning or error, and notes: code and sentences.
    screen : str
    """

    cause: str
    fix: str
    loud: tuple[str, ...]
    quiet: tuple[str, ...]
    screen: str


def blocks(screen: str) -> list[tuple[str, str]]:
    """Return the labelled paragraphs of a terminal text: ``cause    SND015: ...``."""
    found: list[tuple[str, str]] = []
    for line in screen.splitlines():
        labelled = LABELLED.match(line)
        if labelled:
            found.append((labelled[1].strip(), labelled[2]))
        elif found and line.startswith(" "):
            found[-1] = (found[-1][0], f"{found[-1][1]} {line.strip()}")
        elif line.strip():
            found.append(("", line))
    return found


def said(screen: str, report: dict[str, Any]) -> Said:
    """Return what stands in front of a report."""
    labelled = blocks(screen)
    causes = [text for name, text in labelled if name == "cause" and not NO_CAUSE.match(text)]
    fixes = [text for name, text in labelled if name == "fix"]
    findings = [f for f in report.get("findings", ()) if not f.get("ignored")]
    texts = {level: _texts(findings, level) for level in ("error", "warning", "note")}
    return Said(
        causes[0] if causes else "",
        fixes[0] if fixes and causes else "",
        (*texts["error"], *texts["warning"]),
        tuple(texts["note"]),
        screen,
    )


def _texts(findings: Sequence[dict[str, Any]], level: str) -> list[str]:
    words = ("code", "title", "sentence", "fix", "sites")
    return [" ".join(str(f.get(w, "")) for w in words) for f in findings if f["level"] == level]


def verdict(fault: Fault, report: Said) -> str:
    """Return what came of a fault.

    named        the cause says it, or no cause is stated and a warning or error says it
    mentioned    a note says it, a finding does beside no cause, or the screen does
    wrong cause  a cause is stated, and neither it nor its fix says it
    missed       nothing says it
    """

    def says(text: str) -> bool:
        return re.search(fault.accepted, text.replace("\n", " "), re.IGNORECASE) is not None

    if report.cause:
        return NAMED if says(f"{report.cause} {report.fix}") else WRONG
    if any(map(says, report.loud)):
        return NAMED
    return MENTIONED if any(map(says, (*report.quiet, report.screen))) else MISSED
