"""SND034: rows whose label is probably wrong."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

from scipy.stats import binom

from sonde.findings.evidence.answers.labels import LabelEvidence, LabelRule
from sonde.findings.evidence.inputs.suspect_labels import OneWay, one_way, suspect_labels
from sonde.findings.evidence.inputs.unusual_rows import (
    chance_of_depth,
    doubtful_labels,
    doubtful_rows,
)
from sonde.findings.evidence.record import Evidence
from sonde.findings.evidence.shared_rows import examples_at
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Section, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command
from sonde.findings.words.text import percent, plural, shortened
from sonde.metrics import WrongLabels
from sonde.stats.intervals import clopper_pearson


@final
@dataclass(frozen=True)
class SND034(LabelRule):
    """Fraction of rows whose neighbours and held-out probe agree on another label.

    Parameters
    ----------
    note, warning : float
        Least fraction of listed rows of a note and of a warning.
    usual : float, default=0.006
        Largest fraction of such rows in healthy data.
    level : float, default=0.001
        Probability of as many clear rows at that fraction below which they are reported.
    precision : float, default=0.5
        Least fraction of the first rows of the order that are expected to be wrong.
    least : float, default=10.0
        Least number of wrong labels, at the lower end of its interval, of a note by number alone.
    border : float, default=0.01
        p-value of the depth at the first site below which rows lie between two classes.
    certain : float, default=0.01
        Least fraction of wrong labels, at the lower end of the interval of their estimated number,
        of a warning.
    """

    note: float = 0.01
    warning: float = 0.02
    usual: float = 0.006
    level: float = 0.001
    precision: float = 0.5
    least: float = 10
    border: float = 0.01
    certain: float = 0.01

    title: ClassVar[str] = "Rows whose label is probably wrong"
    theme: ClassVar[Theme] = "labels"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("label errors",)
    breaks: ClassVar[Breaks] = "some answers"
    section: ClassVar[Section] = "mislabelled"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND069",), levels=SERIOUS),)
    why: ClassVar[str] = (
        "Wrong labels teach the wrong thing and make every score on this data lower than it is."
    )
    fix: ClassVar[str] = "Inspect the rows listed, and correct or drop those with a wrong label."
    how: ClassVar[str] = (
        "At the site whose states predict labels best, a row is listed if none of its 10 "
        "nearest rows of other groups has its label, at least 9 of them share another label, "
        "and the held-out classifier predicts that other label too. Healthy data show up to 0.6 "
        "% of such rows, so the finding is raised only if their count is improbable at that "
        "fraction. Further rows are then listed: at least six of their neighbours share another "
        "label, at most 2 have the row's label, and the model predicts that other class at "
        "least as confidently as it does on average for rows of that class; the level follows "
        "from all rows listed. It stays a note if the rows lie nearer to the border of the other "
        "class at the first site than rows of that class that meet the same criteria (1 %, by "
        "their mean rank): rows between two classes do, rows with a wrong label do not. It also "
        "stays a note unless the estimated number of wrong labels is at least 1 % of the rows at "
        "the lower end of its interval: rows that the model gets wrong lie among another class, "
        "too. A note as well if the estimated number of wrong labels is at least 2 % of the rows "
        "and 10 at the lower end of its interval, and at least half of as many first rows of the "
        "order are expected to be wrong. The report also orders labels to check first, by the "
        "probability "
        "that the probe, the neighbours and the model's own answers give to each label, and "
        "prints how many labels are wrong, with an interval, and how many of some deliberately "
        "exchanged labels come first in this order. Labels "
        "that are wrong in one direction are tested on the rows that the held-out classifier "
        "assigns to one class: at least 20 % of them are labelled as another class, more than "
        "the reverse, and they lie as far on the first class's side as its own rows (medians "
        "within a quarter), on each half of the groups; p below 0.001 over all pairs of "
        "classes, among rows that lie as far as 19 of 20 rows of the class. If the classifier "
        "shows no such pair and the model's own answers are not significantly less accurate, "
        "the same test uses these answers, provided that the classifier disagrees with most of "
        "the rows' labels."
    )
    false_positives: ClassVar[str] = (
        "Rare kinds of a class that look like another one to this model; classes that overlap."
    )
    plant: ClassVar[str] = "One label in twenty is replaced by another one."
    twin: ClassVar[str] = "The true labels."

    def judged(self, evidence: Evidence, found: LabelEvidence) -> Check:
        """Count doubtful labels at the best site."""
        found_way = one_way(evidence)
        if found_way is not None:
            return self._in_one_direction(evidence, found, found_way)
        doubt = doubtful_labels(evidence)
        count, clear, n = len(doubt.row), doubt.n_clear, doubt.n
        share = clear / n
        low, high = clopper_pearson(clear, n)
        p = float(binom.sf(clear - 1, n, self.usual))
        figure = Figure(
            "doubtful_labels", share, low, high, "share", null=self.usual, threshold=self.note,
            p=p, n_rows=n, n_groups=found.n_groups,
        )  # fmt: skip
        if share < self.note or p >= self.level:
            wrong = suspect_labels(evidence).count
            least = max(self.warning * n, self.least)
            if wrong.low >= least and wrong.precision >= self.precision:
                return self._by_their_number(evidence, found, wrong)
            seen = "no row was listed" if clear == 0 else f"{plural(clear, 'row')} listed"
            if share >= self.note:
                seen += f", which can be chance (p = {p:.2g}, not below {self.level:g})"
            return self.clear(figure, seen)
        # Chance does not explain the clear rows, so the rows that the model doubts count as well.
        low, high = clopper_pearson(count, n)
        is_at_border = chance_of_depth(evidence) < self.border
        are_errors = suspect_labels(evidence).count.low < self.certain * n
        severe = count / n >= self.warning and not is_at_border and not are_errors
        threshold = self.warning if severe else self.note
        figure = replace(figure, value=count / n, low=low, high=high, threshold=threshold)
        examples = examples_at(evidence, doubtful_rows(evidence))
        site = found.sites[found.best]
        sentence = (
            f"{plural(count, 'row')} of {n:,} ({percent(count / n)}) at {site.name} lie among "
            "rows of one other class and are classified as that class; up to "
            f"{percent(self.usual)} is normal."
        )
        if is_at_border:
            sentence += (
                f" At {found.sites[0].name} they lie nearer to its border than its own rows: "
                "classes that overlap look like this, too."
            )
        elif are_errors:
            sentence += " They may as well be errors of the model: see the estimated number."
        return self.raised_with(
            "warning" if severe else "note",
            sentence,
            figure,
            sites=(site.key,),
            examples=tuple(examples),
            figures=tuple(doubtful_labels(evidence).share.tolist()),
            effect=min(1.0, count / n),
            next=rows_command(self.code),
        )

    def _by_their_number(
        self, evidence: Evidence, found: LabelEvidence, wrong: WrongLabels
    ) -> Check:
        n, number = found.n_rows, round(wrong.number)
        rows = wrong.order[:number]
        figure = Figure(
            "wrong_labels", wrong.number / n, wrong.low / n, wrong.high / n, "share",
            null=0.0, threshold=self.warning, p=wrong.p, n_rows=n, n_groups=found.n_groups,
        )  # fmt: skip
        sentence = (
            f"An estimated {number} labels of {n:,} are wrong (95 % interval {round(wrong.low)} to "
            f"{round(wrong.high)}). Few of them are clear; of the first {number} rows of the list, "
            f"{round(wrong.precision * number)} are expected to be wrong."
        )
        return self.raised_with(
            "note",
            sentence,
            figure,
            sites=(found.sites[found.best].key,),
            examples=tuple(examples_at(evidence, found.where[rows].tolist())),
            effect=min(1.0, wrong.number / n),
            next=rows_command(self.code),
        )

    def _in_one_direction(self, evidence: Evidence, found: LabelEvidence, way: OneWay) -> Check:
        site, n = found.sites[found.best], len(way.rows)
        of, called = (shortened(found.names[k], 20) for k in (way.of, way.called))
        low, high = clopper_pearson(n, round(n / way.share))
        figure = Figure(
            "wrong_in_one_direction", way.share, low, high, "share", null=way.back,
            threshold=0.2, p=way.p, n_rows=found.n_rows, n_groups=found.n_groups,
        )  # fmt: skip
        sentence = (
            f"{percent(way.share)} of the rows whose states resemble {of!r} at {site.name} are "
            f"labelled {called!r} ({plural(n, 'row')}; the reverse: {percent(way.back)}). Their "
            f"labels are wrong, or one kind of {called!r} resembles {of!r}."
        )
        return self.raised_with(
            "warning",
            sentence,
            figure,
            sites=(site.key,),
            examples=tuple(examples_at(evidence, found.where[way.rows].tolist())),
            classes=(found.names[way.of], found.names[way.called]),
            effect=min(1.0, n / found.n_rows),
            next=rows_command(self.code),
        )
