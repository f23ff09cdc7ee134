"""Studies: claims, their estimates over seeds, and the verdicts.

A study repeats an experiment of a paper at a size that runs on one core, on real data or with
planted truth, with a null arm in which there is nothing to find.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sonde import InputError
from sonde_studies.arms import SEPARATOR, Arms, stages, unequal, unsaid
from sonde_studies.nulls import BLIND

if TYPE_CHECKING:
    from sonde_studies._kept_seeds import KeptSeeds

Verdict = Literal["holds", "holds the other way", "not at this size", "undecided", "not tested"]
Figures = Mapping[str, float]
Tick = Callable[[str], None]

LEVEL, POWER = 0.95, 0.8
NULL_LEVEL = 0.99
"""Of a null arm's interval: every study has one, and at 95 % one in twenty misses its bar."""
LEAST_SEEDS, MOST_SEEDS = 3, 30
BETWEEN = " | "


@dataclass(frozen=True)
class Claim:
    """A claim of a paper as one number that should exceed a bar.

    Parameters
    ----------
    key : str
        Name of the figure that ``Study.run`` returns, e.g. a difference of two arms.
    text : str
        The claim in our words.
    figure : str
        What the number is, with its unit.
    above : float, default=0.0
        The claim holds if the whole interval lies above this.
    premise : str, default=""
        Key of another claim of the study. Unless that claim holds, this claim was not tested.
    arms : pair of str, optional
        The two arms that are compared, as the study's ``Arms`` name them. If they were given
        unequal updates, rows, parameters or bytes, the sentence or figure has to say so.
    """

    key: str
    text: str
    figure: str
    above: float = 0.0
    premise: str = ""
    arms: tuple[str, str] | None = None


@dataclass(frozen=True)
class Outcome:
    """An estimate over seeds; each seed is one independent repetition.

    Parameters
    ----------
    values : tuple of float
        One for each seed.
    above : float
        The bar of the claim; for a null arm what is expected.
    level : float, default=0.95
        Of the interval.
    """

    values: tuple[float, ...]
    above: float = 0.0
    level: float = LEVEL

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def deviation(self) -> float:
        """Standard deviation over seeds; 0 for one seed."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def half_width(self) -> float:
        """Half width of the interval by Student's t; infinite for one seed."""
        return _t(1 - (1 - self.level) / 2, len(self.values)) * self._error

    @property
    def interval(self) -> tuple[float, float]:
        """The confidence interval at ``level``."""
        return self.mean - self.half_width, self.mean + self.half_width

    @property
    def detectable(self) -> float:
        """The smallest distance from the bar that this design detects with 80 % power."""
        n = len(self.values)
        return (_t(1 - (1 - self.level) / 2, n) + _t(POWER, n)) * self._error

    @property
    def matters(self) -> float:
        """The smallest effect that matters."""
        return smallest_that_matters(*self.interval, len(self.values), self.level)

    @property
    def verdict(self) -> Verdict:
        """Return the verdict: the side of the bar on which the interval lies."""
        return verdict_of(*self.interval, self.above, len(self.values), self.level)

    @property
    def covers(self) -> bool:
        """Whether the interval contains the bar, as it should for a null arm."""
        low, high = self.interval
        return low <= self.above <= high

    @property
    def _error(self) -> float:
        n = len(self.values)
        return stdev(self.values) / math.sqrt(n) if n > 1 else math.inf


def verdict_of(low: float, high: float, above: float, n: int, level: float = LEVEL) -> Verdict:
    """Return the verdict on a claim from its confidence interval.

    A claim holds the other way if the interval lies below both the bar and 0. It is undecided if
    the interval contains the bar and reaches past the smallest effect that matters: more seeds will
    tell. Every other interval says that no effect as large as claimed was found at this size.

    Parameters
    ----------
    low, high : float
        Ends of the interval.
    above : float
        The bar.
    n : int
        Number of seeds.
    level : float, default=0.95
        Of the interval.
    """
    if low > above:
        return "holds"
    if high < min(above, 0.0):
        return "holds the other way"
    matters = smallest_that_matters(low, high, n, level)
    settled = n >= MOST_SEEDS or low == high or high < above + matters
    return "not at this size" if settled else "undecided"


def smallest_that_matters(low: float, high: float, n: int, level: float = LEVEL) -> float:
    """Return the interval's width with ``MOST_SEEDS`` seeds and equal standard deviation.

    At 95 % it is 0.75 standard deviations between seeds: an effect as large has the right sign in
    three of four single runs.

    Parameters
    ----------
    low, high : float
        Ends of the interval of ``n`` seeds.
    n : int
    level : float, default=0.95
        Of the interval.
    """
    most, here = (_t(1 - (1 - level) / 2, k) / math.sqrt(k) for k in (MOST_SEEDS, n))
    return (high - low) * most / here


@cache
def _t(quantile: float, n: int) -> float:
    from scipy.stats import t  # pyright: ignore[reportMissingTypeStubs]

    return float(t.ppf(quantile, n - 1)) if n > 1 else math.inf


class Study(ABC):
    """The experiment of one paper. Subclasses are final and have a file each.

    Attributes
    ----------
    name : str
        The word of ``sonde study``.
    title : str
        The question in one line.
    paper : str
        Key in ``docs/papers.bib``; empty where the study is ours.
    fidelity : str
        Official or reconstructed formula; whether the original chose anything on test data.
    data : str
        What it runs on.
    place : str, default="small"
        Name of the kind of models and data in ``sonde_studies.places``, which states the cost.
    seconds : float, default=20.0
        Processor time of one seed. A study that takes more than 20 s has to state it.
    claims : tuple of Claim
    null : Claim
        The arm with nothing to find; its interval should hold ``above``.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str] = ""
    fidelity: ClassVar[str]
    data: ClassVar[str]
    place: ClassVar[str] = "small"
    seconds: ClassVar[float] = 20.0
    claims: ClassVar[tuple[Claim, ...]]
    null: ClassVar[Claim]

    @abstractmethod
    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Return the results of one repetition: of every claim, the null, and the arms.

        Arms named ``row | column`` are shown as a grid.

        Parameters
        ----------
        seed : int
            Draws everything: data, weights, splits.
        tiny : bool
            A size that only shows that it runs.
        tick : callable
            Told what is being done, for the progress line.
        """


@dataclass(frozen=True)
class StudyTable:
    """Results of a study.

    Parameters
    ----------
    study : Study
    seeds : tuple of int
    figures : dict of str to tuple of float
        Every figure, one value for each seed.
    tiny : bool
    """

    study: Study
    seeds: tuple[int, ...]
    figures: dict[str, tuple[float, ...]]
    tiny: bool = False
    seconds: float = field(default=0.0, compare=False)
    """Processor time of all seeds together, those of earlier runs as well."""

    def outcome(self, claim: Claim) -> Outcome:
        """Return the result of a claim, or of the null arm, over the seeds."""
        level = NULL_LEVEL if claim is self.study.null else LEVEL
        return Outcome(self.figures[claim.key], claim.above, level)

    def verdict(self, claim: Claim) -> Verdict:
        """Return the verdict on a claim; "not tested" unless its premise holds."""
        premises = (c for c in self.study.claims if c.key == claim.premise)
        stands = all(self.verdict(premise) == "holds" for premise in premises)
        return self.outcome(claim).verdict if stands else "not tested"

    @property
    def null_verdict(self) -> str:
        """Return whether the null arm is as expected, and whether it could have found a fault.

        The arm is blind if it is two runs that are equal by construction. It is weak if the
        smallest effect that it would have seen is larger than the largest effect of a claim, and
        than the smallest effect of a claim that matters.
        """
        null, premises = self.outcome(self.study.null), {c.premise for c in self.study.claims}
        found = (self.outcome(c) for c in self.study.claims if c.key not in premises)
        largest = max(max(abs(claim.mean - claim.above), claim.matters) for claim in found)
        said = "as expected" if null.covers else "not as expected"
        blind = self.study.name in BLIND
        return said + ", weak" * (null.detectable > largest) + ", blind" * blind

    def json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        study = self.study
        return {
            "study": study.name,
            "title": study.title,
            "paper": study.paper,
            "fidelity": study.fidelity,
            "data": study.data,
            "place": study.place,
            "seconds_stated": study.seconds,
            "seeds": list(self.seeds),
            "tiny": self.tiny,
            "seconds": round(self.seconds, 1),
            "claims": [self._entry(c) | {"verdict": self.verdict(c)} for c in study.claims],
            "null": self._entry(study.null) | {"verdict": self.null_verdict},
            "figures": {k: list(v) for k, v in self.figures.items()},
        }

    def _entry(self, claim: Claim) -> dict[str, Any]:
        outcome = self.outcome(claim)
        low, high = outcome.interval
        numbers = {"mean": outcome.mean, "low": low, "high": high, "detectable": outcome.detectable}
        return asdict(claim) | {k: v if math.isfinite(v) else None for k, v in numbers.items()}


def run_study(
    study: Study,
    seeds: Sequence[int],
    tiny: bool = False,
    tick: Tick = lambda _: None,
    kept: Path | None = None,
) -> StudyTable:
    """Run a study once for each seed.

    Parameters
    ----------
    study : Study
    seeds : sequence of int
    tiny : bool, default=False
        A size that only shows that it runs.
    tick : callable, optional
        Told what is being done.
    kept : path, optional
        A file of finished seeds, ``NAME.seeds.json``. It is written after each seed, and what the
        same code wrote there is not run again.

    Raises
    ------
    InputError
        If a seed is given twice, or there are fewer than three.
    """
    from sonde_studies._kept_seeds import KeptSeeds

    if len(seeds) < LEAST_SEEDS or len(set(seeds)) < len(seeds):
        raise InputError(
            f"study {study.name}: expected at least {LEAST_SEEDS} different seeds, got "
            f"{list(seeds)}. An interval needs repetitions."
        )
    before = None if kept is None else KeptSeeds(kept, tiny)
    found, seconds = zip(*(_timed(study, seed, tiny, tick, before) for seed in seeds), strict=True)
    columns = {key: _column(found, key) for key in dict.fromkeys(k for f in found for k in f)}
    return StudyTable(study, tuple(seeds), columns, tiny, sum(seconds))


def _column(found: Sequence[Mapping[str, float]], key: str) -> tuple[float, ...]:
    """Return a figure of each seed; what an arm was given is 0 in a seed that did without it."""
    return tuple(f.get(key, 0.0) if key.startswith(SEPARATOR) else f[key] for f in found)


def _timed(
    study: Study, seed: int, tiny: bool, tick: Tick, kept: "KeptSeeds | None"
) -> tuple[dict[str, float], float]:
    """Return a seed's figures and its seconds, those that are kept or new ones."""
    if kept is not None and (known := kept.get(seed)) is not None:
        tick(f"{study.name}, seed {seed}: known from an earlier run")
        return known
    began = time.process_time()
    figures = {k: float(v) for k, v in figures_of(study, seed, tiny, tick).items()}
    seconds = time.process_time() - began
    if kept is not None:
        kept.keep(seed, figures, seconds)
    return figures, seconds


def figures_of(study: Study, seed: int, tiny: bool, tick: Tick) -> Figures:
    """Return the figures of one seed, with what each arm was given.

    Parameters
    ----------
    study : Study
    seed : int
    tiny : bool
        A size that only shows that it runs.
    tick : callable
        Told what is being done.

    Raises
    ------
    InputError
        If a claim has no figure or premise, or compares unequal arms without saying so.
    """
    given = Arms()
    with stages(given) as begin:

        def begin_and_tick(what: str) -> None:
            begin(what)
            tick(f"{study.name}, seed {seed}: {what}")

        figures = {**study.run(seed, tiny, begin_and_tick)}
    figures = {**given.figures(), **figures}
    missing = {c.key for c in (*study.claims, study.null)} - set(figures)
    missing |= {c.premise for c in study.claims if c.premise} - {c.key for c in study.claims}
    if missing:
        raise InputError(
            f"study {study.name}: expected a figure for each claim and a claim for each "
            f"premise, got none for {sorted(missing)}. Return it from run, or take the name away."
        )
    for claim in (*study.claims, study.null):
        if claim.arms is not None:
            differences = unequal(*claim.arms, figures)
            if silent := unsaid(f"{claim.text} {claim.figure}", differences):
                told = ", ".join(f"{differences[what]:.2g} times the {what}" for what in silent)
                raise InputError(
                    f"study {study.name}: expected equal arms, or a sentence that says how they "
                    f"differ, got {claim.arms[0]!r} with {told} of {claim.arms[1]!r} in the claim "
                    f"{claim.key!r}. Make them equal, or say it."
                )
    return figures
