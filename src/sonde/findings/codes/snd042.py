"""SND042: rows that are nearly copies of another row."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.inputs.near_pairs import NearPairs
from sonde.findings.evidence.inputs.unusual_rows import (
    NEAR_NEEDS,
    NEAR_UNITS,
    near_duplicates,
    rows_are_parts,
)
from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.evidence.shared_rows import examples_at, shared_rows
from sonde.findings.rule import Breaks, Check, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import rows_command, too_few
from sonde.findings.words.text import number, percent, plural


@final
@dataclass(frozen=True)
class SND042(Rule):
    """Rows whose nearest neighbour is far nearer than their fifth-nearest neighbour.

    Parameters
    ----------
    least : float, default=3.0
        Rows of a note.
    warning : float, default=0.02
        Fraction of the rows of a warning: fewer copies hardly change a score.
    many : float, default=10.0
        Rows of a warning.
    level : float, default=0.001
        Probability of as many near rows by chance below which they are reported.
    """

    least: float = 3.0
    warning: float = 0.02
    many: float = 10.0
    level: float = 0.001

    title: ClassVar[str] = "Near-duplicate rows"
    theme: ClassVar[Theme] = "data"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("shared rows", "duplicates")
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "Rows that are nearly copies count twice and land on both sides of a split, which makes "
        "scores look better than they are."
    )
    fix: ClassVar[str] = "Keep one of each pair, and split into training and test set by groups."
    how: ClassVar[str] = (
        "Sampled rows are compared at the first and the last site with at least eight units. A "
        "row counts if its nearest row of another group and with other content is nearer than "
        "eps times the distance of its fifth nearest row. Pairs of the first site must also lie "
        "within half of the fifth's distance at the last site (equal rows within a hundredth), "
        "and rows that are equal at the last site must be equal at the first. If a row is the "
        "last token of a text, only the last site and texts of different lengths are compared. If "
        "d is the dimension estimated from the second and fifth neighbour, a uniform density has "
        "4 n eps^d such rows; eps is 0.1, or less so that 0.01 rows are expected. Raised for at "
        "least 3 rows with a Poisson probability below 0.001 over these sites; a warning from 10 "
        "rows and 2 % on. Rows that are near, but not equal, must have near inputs too, unless "
        "these are texts or differ in size: within a quarter of the fifth nearest's distance."
    )
    false_positives: ClassVar[str] = (
        "Rows with very heavy tails or few distinct values; saturated states, which coincide at "
        "the ends of their range."
    )
    plant: ClassVar[str] = "Rows copied with noise of 0.2 % of a unit's standard deviation."
    twin: ClassVar[str] = "The same with noise of 10 %."

    def check(self, evidence: Evidence) -> Check:
        """Search for near pairs at the first and the last site."""
        n = len(shared_rows(evidence).group)
        if n < NEAR_NEEDS:
            return too_few(self, n, NEAR_NEEDS, "rows")
        if rows_are_parts(evidence):
            return self.not_applicable(
                "a row is one token or patch, and rows of texts with the same beginning are equal; "
                "--reducer mean compares whole texts"
            )
        pairs_at = near_duplicates(evidence)
        if not pairs_at:
            return self.not_applicable(f"no site has {NEAR_UNITS} units or more")
        at, pairs = min(pairs_at.items(), key=lambda item: (item[1].p, -len(item[1]), item[0]))
        share = len(pairs) / n
        p = min(1.0, pairs.p * len(pairs_at))
        severe = share >= self.warning and len(pairs) >= self.many
        figure = Figure(
            "near_duplicate_share",
            share,
            unit="share",
            null=pairs.expected / n,
            threshold=max(self.warning, self.many / n) if severe else self.least / n,
            p=p,
            n_rows=n,
            n_groups=n,
        )
        if len(pairs) < self.least or p >= self.level:
            n_near = len(pairs) + pairs.n_alike
            if n_near >= self.least and pairs.chance(n_near) * len(pairs_at) < self.level:
                return self.withheld(_alike(pairs.n_alike))
            return self.clear(figure, _unseen(evidence, n))
        raised = [
            i
            for i, q in pairs_at.items()
            if len(q) >= self.least and q.p * len(pairs_at) < self.level
        ]
        sites = tuple(evidence.sites[i].schema.key for i in raised)
        return self.raised_with(
            "warning" if severe else "note",
            self._sentence(evidence.sites[at], pairs, share, n),
            figure,
            sites=sites,
            examples=tuple(examples_at(evidence, pairs.row.tolist())),
            figures=tuple(pairs.ratio.tolist()),
            partners=tuple(examples_at(evidence, pairs.partner.tolist())),
            effect=min(1.0, share),
            next=rows_command(self.code),
        )

    def _sentence(self, site: SiteEvidence, pairs: NearPairs, share: float, n: int) -> str:
        near = number(100 * float(pairs.ratio.median())) if len(pairs) else "0"
        return (
            f"{plural(len(pairs), 'row')} of {n:,} ({percent(share)}) at {site.name} have "
            f"another row at {near} % of the distance of their fifth nearest row (median; limit "
            f"{percent(pairs.eps)}); {number(pairs.expected, 1)} rows are expected by chance."
        )


def _alike(n: int) -> str:
    return (
        f"{plural(n, 'row')} {'is' if n == 1 else 'are'} near a row of equal length, and the "
        "last tokens of texts with equal length and ending can be similar whatever precedes "
        "them; --reducer mean avoids this"
    )


def _unseen(evidence: Evidence, n: int) -> str:
    seen = evidence.sites[0].sample
    if seen.is_everything:
        return ""
    share = math.prod((n / seen.n, n / seen.n))
    return f"{percent(share)} of the pairs were compared ({n:,} sampled rows)"
