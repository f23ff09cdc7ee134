"""The form of a finding: a sentence with a number, a site, a reason and a next step."""

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, ClassVar, Literal

from sonde.findings.evidence.record import Evidence
from sonde.findings.symptoms import Symptom
from sonde.findings.trial import Trial
from sonde.findings.words.step import Step

Level = Literal["note", "warning", "error"]
CheckState = Literal["raised", "clear", "withheld", "not_applicable", "failed"]
Theme = Literal["run", "units", "depth", "labels", "data", "versus"]
Reach = Literal["anywhere", "same", "same or later"]
Breaks = Literal["nothing", "some answers", "all answers", "perhaps all answers", "guesses"]
Panel = Literal[
    "", "median_norm", "spread", "participation_ratio", "update_per_spread", "dead_share"
]
Section = Literal["", "answers", "labels", "mislabelled", "weak_groups"]

LEVELS: tuple[Level, ...] = ("note", "warning", "error")
SERIOUS: tuple[Level, ...] = ("warning", "error")


@dataclass(frozen=True)
class Explains:
    """Findings that a finding explains, and the conditions under which it does.

    Parameters
    ----------
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

    effects: tuple[str, ...]
    reach: Reach = "anywhere"
    levels: tuple[Level, ...] = LEVELS
    least: float = 0.0
    void: str = ""


@dataclass(frozen=True)
class Figure:
    """The number that a check is based on, with its interval and threshold.

    ``confidence`` is how often such an interval contains the true value.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    null: float | None = None
    threshold: float | None = None
    direction: Literal["above", "below"] = "above"
    p: float | None = None
    n_rows: int = 0
    n_groups: int = 0
    flags: tuple[str, ...] = ()
    confidence: float = 0.95

    def crosses(self) -> bool:
        """Return whether the interval contains the threshold, so that the level is borderline."""
        if self.threshold is None or self.low is None or self.high is None:
            return False
        return self.low < self.threshold < self.high


@dataclass(frozen=True)
class Gap:
    """The gap between the answers before a change and the best answers known to be possible.

    Parameters
    ----------
    where : str
        What gives these answers: the site of a probe, or the inputs.
    possible : float
        Their score on the rows of the trial: accuracy, R^2, or the negative loss.
    closed : float
        Fraction of the gap that the change closes.
    """

    where: str
    possible: float
    closed: float


@dataclass(frozen=True)
class Location:
    """What a finding accuses, by names that a program can compare.

    Parameters
    ----------
    tensors : tuple of str
        Inputs by the names of the model's arguments.
    columns : tuple of str or int
        Columns or channels of these inputs: names, or positions from 0.
    modules : tuple of str
        Paths of modules.
    rows : (int, int) or None
        First row, and first row after the last, by planned order. None: all rows, or the examples.
    answers : bool
        Whether answers or targets are accused, not what comes before them.
    """

    tensors: tuple[str, ...] = ()
    columns: tuple[str | int, ...] = ()
    modules: tuple[str, ...] = ()
    rows: tuple[int, int] | None = None
    answers: bool = False


@dataclass(frozen=True)
class Finding:
    """A statement of a report about all sites and units with a common cause.

    Parameters
    ----------
    code, level : str
    sentence : str
        Names the fault, the place, the figure, the comparison and the rows; at most 240 characters.
    figure : Figure
        Figure of the worst site.
    sites, units, classes : tuples of str
        Where it was seen.
    examples : tuple of int
        Examples by planned order, most telling first.
    figures : tuple of float
        The number by which each example was counted; empty if there are no such numbers.
    partners : tuple of int
        The example of DATA that each example resembles; empty if none was looked for.
    of_other : bool
        Whether the examples belong to OTHER.
    effect : float
        Size in [0, 1], for the order within a level.
    next : Step or None
        The command that looks closer, or mends the fault.
    borderline, common : bool
        Whether the interval contains the threshold; whether many good models show this finding.
    because_of : str or None
        Code of the finding that explains this finding; a report folds this finding under it.
    fix : str
        What removes the fault on these data, with the gain if it was measured; empty if the rule's
        general ``fix`` applies.
    trial : Trial or None
        What that change made of rows held out from the choice; None if it was not made.
    is_cause, is_part : bool
        Whether this change is the cause; whether it is the largest known part of the cause.
    gap : Gap or None
        How far the change comes towards the best known answers; None if these are not known.
    location : Location or None
        What is accused, for programs that read the report; None if only the sentence tells it.
    """

    code: str
    level: Level
    sentence: str
    figure: Figure
    sites: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    examples: tuple[int, ...] = ()
    figures: tuple[float, ...] = ()
    partners: tuple[int, ...] = ()
    of_other: bool = False
    classes: tuple[str, ...] = ()
    effect: float = 0.0
    next: Step | None = None
    borderline: bool = False
    common: bool = False
    because_of: str | None = None
    fix: str = ""
    trial: Trial | None = None
    is_cause: bool = False
    is_part: bool = False
    gap: Gap | None = None
    location: Location | None = None


@dataclass(frozen=True)
class Check:
    """Outcome of one rule on the whole scan.

    ``tables`` holds further results that the report shows elsewhere, e.g. the accuracy at every
    site.
    """

    code: str
    state: CheckState
    reason: str = ""
    figure: Figure | None = None
    finding: Finding | None = None
    tables: dict[str, Any] = field(default_factory=dict)


class Rule(ABC):
    """A rule with one code. Subclasses are frozen dataclasses whose fields are thresholds.

    Attributes
    ----------
    code, title : str
        ``SND011``, the name of the class, and what it is about, as a phrase.
    theme : str
        Section of the catalogue.
    why : str
        Why it matters, one sentence.
    how : str
        The rule and its formula, for people who check us.
    false_positives : str
        What else can raise it.
    plant, twin : str
        The fault that a test plants and the healthy neighbour that must stay clear.
    symptoms : tuple of str
        What a user sees before a scan, by the names in ``symptoms``.
    breaks : str
        Whether it can be the reason for some wrong answers (or for correct answers that cannot be
        trusted), or can reduce all answers to guesses. ``perhaps all answers`` is a suspicion that
        is named if nothing else explains guesses; ``guesses`` says that the model guesses.
    explains : tuple of Explains
        Findings that it explains.
    panel : str
        Statistic of the depth profile on which it is marked.
    section : str
        Section of the report that it decides on: if the check is withheld, so is the section.
    before_constants : bool
        Whether its changes, of input forms or parts, must have been tried before a constant on a
        logit can be the cause.
    spoils_rows : bool
        Whether its warnings list all rows whose inputs hold values that nobody measured: a change
        of the model must help the other rows too, to be the cause.
    reads_checks : bool
        Whether it judges the checks of all other rules, and therefore runs after them.
    watches_modules : bool
        Whether it asks which modules run during the pass, so that they are watched from its start.
    """

    code: ClassVar[str]
    title: ClassVar[str]
    theme: ClassVar[Theme]
    why: ClassVar[str]
    how: ClassVar[str]
    fix: ClassVar[str] = ""
    false_positives: ClassVar[str] = ""
    plant: ClassVar[str] = ""
    twin: ClassVar[str] = ""
    symptoms: ClassVar[tuple[Symptom, ...]] = ()
    breaks: ClassVar[Breaks] = "nothing"
    explains: ClassVar[tuple[Explains, ...]] = ()
    panel: ClassVar[Panel] = ""
    section: ClassVar[Section] = ""
    before_constants: ClassVar[bool] = False
    spoils_rows: ClassVar[bool] = False
    reads_checks: ClassVar[bool] = False
    watches_modules: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        cls.code = cls.__name__

    @abstractmethod
    def check(self, evidence: Evidence) -> Check:
        """Return this rule's check of the evidence. An exception becomes the state ``failed``."""

    def thresholds(self) -> dict[str, int | float]:
        """Return the thresholds by name."""
        return asdict(self)  # type: ignore[call-overload]

    def moved(self) -> dict[str, int | float]:
        """Return the thresholds that differ from their defaults."""
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)  # type: ignore[arg-type]
            if getattr(self, f.name) != f.default
        }

    def clear(self, figure: Figure | None = None, reason: str = "", **tables: Any) -> Check:
        """Return a passed check, with the figure that the rule measured."""
        return Check(self.code, "clear", reason, figure, None, tables)

    def withheld(self, reason: str, **tables: Any) -> Check:
        """Return a withheld check: the rule cannot judge, for this reason."""
        return Check(self.code, "withheld", reason, None, None, tables)

    def not_applicable(self, reason: str) -> Check:
        """Return a check that does not apply, with the reason."""
        return Check(self.code, "not_applicable", reason)

    def raised(self, finding: Finding, **tables: Any) -> Check:
        """Return a check with a finding; its level is lowered if the interval is borderline."""
        return Check(self.code, "raised", "", finding.figure, _borderline(finding), tables)

    def raised_with(self, level: Level, sentence: str, figure: Figure, **more: Any) -> Check:
        """Return a check with a finding of these fields and without tables, like ``raised``."""
        return self.raised(Finding(self.code, level, sentence, figure, **more))


def _borderline(finding: Finding) -> Finding:
    if not finding.figure.crosses():
        return finding
    lower = LEVELS[max(0, LEVELS.index(finding.level) - 1)]
    return replace(finding, level=lower, borderline=True)
