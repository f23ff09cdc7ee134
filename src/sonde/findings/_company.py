"""What the rules about the self-check share: levels by tolerance, figures, places."""

from sonde.findings._places import places
from sonde.findings._text import percent
from sonde.findings.evidence import Evidence
from sonde.findings.modules import ModelEvidence
from sonde.findings.rule import Figure, Level
from sonde.findings.self_check import Deltas, SelfCheck

NARROW_HINT = "in 16 bit only faults above 3 % are seen; rerun with --dtype float32 to be sure"


def checked(evidence: Evidence) -> SelfCheck | None:
    """Return the self-check, or None where no model was run."""
    return evidence.model.self_check if isinstance(evidence.model, ModelEvidence) else None


def tolerated(wide: float, narrow: float, found: SelfCheck) -> float:
    """Return the difference that counts as rounding in the type of the states."""
    return narrow if found.is_narrow else wide


def level_of(worst: float, tau: float, error: float) -> Level:
    """Return the level of a difference above the tolerance."""
    return "error" if worst > error and worst > tau else "warning"


def figure_of(deltas: Deltas, tau: float) -> Figure:
    """Return the largest difference as a figure."""
    return Figure(
        "difference_per_spread", deltas.worst, unit="share", threshold=tau, n_rows=deltas.n_rows,
        n_groups=deltas.n_rows,
    )  # fmt: skip


def where(sites: list[str]) -> str:
    """Return the first site that differs, and whether all later ones do."""
    names = [s.removesuffix(":out") for s in sites]
    return places(names[:1]) if len(names) == 1 else f"{places(names[:1])} onwards"


def amount(deltas: Deltas, tau: float) -> str:
    """Return the size of a difference and its limit in words."""
    return (
        f"{percent(deltas.worst)} of the spread between rows (limit {percent(tau)}; "
        f"{deltas.n_rows} rows)"
    )
