"""Shared parts of the rules about the self-check: tolerances, levels, figures, positions."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from sonde.findings.evidence.modules.module_facts import read_modules
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import Check, Figure, Level, Rule
from sonde.findings.self_check import Deltas, SelfCheck
from sonde.findings.trial import Trial
from sonde.findings.words.places import places
from sonde.findings.words.step import Step
from sonde.findings.words.text import percent, plural

SHAPES = 3.0
NARROW_HINT = (
    "in 16-bit or quantised models only differences above 3 % are detected; rerun with "
    "--dtype float32 to be sure"
)


def checked(evidence: Evidence) -> SelfCheck | None:
    """Return the self-check, or None if no model was run."""
    model = evidence.get(read_modules)
    return None if model is None else model.self_check


def level_of(worst: float, tau: float, error: float) -> Level:
    """Return the level of a difference above the tolerance."""
    return "error" if worst > error and worst > tau else "warning"


def where(sites: list[str]) -> str:
    """Name the first site that differs, or "the answers" if no site differs."""
    if not sites:
        return "the answers"
    names = [s.removesuffix(":out") for s in sites]
    return places(names[:1]) if len(names) == 1 else f"{places(names[:1])} onwards"


def amount(deltas: Deltas, tau: float) -> str:
    """Describe the largest difference and its limit."""
    return (
        f"{percent(deltas.worst)} of the standard deviation between rows (limit {percent(tau)}; "
        f"{plural(deltas.n_rows, 'row')})"
    )


def of_answers(deltas: Deltas, tau: float, sites: Sequence[str]) -> str:
    """Return a sentence on how far the answers move; empty if they hardly move."""
    if deltas.answers <= tau:
        return ""
    if not sites:
        return "The states at all sites do not change: the effect arises after them."
    return f"Answers change by {percent(deltas.answers)} of their standard deviation."


@dataclass(frozen=True)
class ReadingComparison(Rule):
    """The base of rules that judge the distance between two readings of the same rows.

    What the shape of a batch alone does to a row, three times over, counts as rounding.

    Parameters
    ----------
    tolerance, tolerance_16_bit : float
        Largest difference, over the spread of rows, that the order of summation may explain.
    """

    tolerance: float = 1e-3
    tolerance_16_bit: float = 3e-2

    def check(self, evidence: Evidence) -> Check:
        """Compare the readings, if a model was run, at the tolerance of the states' type."""
        self_check = checked(evidence)
        if self_check is None:
            return self.not_applicable("no model was run")
        tau = self.tolerance_16_bit if self_check.is_narrow else self.tolerance
        tau = max(tau, min(SHAPES * self_check.rounding, self.tolerance_16_bit))
        return self.compare(self_check, tau, evidence)

    @abstractmethod
    def compare(self, found: SelfCheck, tau: float, evidence: Evidence) -> Check:
        """Judge the results of the self-check."""

    def alike(self, found: SelfCheck, deltas: Deltas, tau: float) -> Check:
        """Return a passed check, with a hint if 16-bit types could hide differences."""
        return self.clear(figure_of(deltas, tau), NARROW_HINT if found.is_narrow else "")

    def differing(
        self,
        deltas: Deltas,
        tau: float,
        sites: Sequence[str],
        *,
        level: Level,
        sentence: str,
        next: Step | None,
        because_of: str | None = None,
        trial: Trial | None = None,
    ) -> Check:
        """Return a finding at the sites where the readings differ."""
        return self.raised_with(
            level=level,
            sentence=sentence,
            figure=figure_of(deltas, tau),
            sites=tuple(s.removesuffix(":out") for s in sites),
            effect=min(1.0, deltas.worst),
            next=next,
            because_of=because_of,
            trial=trial,
        )


def figure_of(deltas: Deltas, tau: float) -> Figure:
    """Return the largest difference as a figure."""
    return Figure(
        "difference_per_spread", deltas.worst, unit="share", threshold=tau, n_rows=deltas.n_rows,
        n_groups=deltas.n_rows,
    )  # fmt: skip
