"""SND001: states that are NaN, infinite or too large to square."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.codes._company import checked
from sonde.findings.evidence.record import Evidence
from sonde.findings.rule import SERIOUS, Breaks, Check, Explains, Figure, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, read_command, sentence
from sonde.findings.words.text import plural, shortened
from sonde.run.comparing.broken_rows import chance_of_counts
from sonde.tap.model.sites import ENTRY


@final
@dataclass(frozen=True)
class SND001(Rule):
    """Rows with NaN, infinity or huge numbers, at the first site where they appear.

    Parameters
    ----------
    error : int, default=1
        Least number of such rows at a site for an error.
    """

    error: int = 1
    title: ClassVar[str] = "Non-finite states"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("not finite",)
    breaks: ClassVar[Breaks] = "all answers"
    explains: ClassVar[tuple[Explains, ...]] = (
        Explains((), reach="same or later", levels=SERIOUS),
        Explains(("SND068", "SND070"), levels=SERIOUS),
    )
    why: ClassVar[str] = (
        "Nothing computed from such a row is meaningful; it is left out of all other statistics."
    )
    fix: ClassVar[str] = (
        "Load with --dtype float32 or bfloat16 if float16 overflows; else look for a division by "
        "zero or a logarithm of zero in the first layer named."
    )
    how: ClassVar[str] = (
        "Rows of real tokens that hold a NaN, an infinity, or a number too large to square "
        "(above 1e15; in float64 above 1e60) are counted at every site of DATA and of OTHER. A "
        "single such row is reported. Fisher's exact test compares the fractions in DATA and "
        "OTHER. Padded positions are not counted here: the self-check looks for NaN at padded "
        "positions, in one padded batch of up to eight texts, and reports it as a note."
    )
    false_positives: ClassVar[str] = (
        "None known: attention masks, which may contain -inf, are not counted. Some models "
        "compute NaN at padded positions because nothing can be attended to there; that is a "
        "note."
    )
    plant: ClassVar[str] = "One infinite weight; the logarithm of a negative number."
    twin: ClassVar[str] = "The same net without the fault; NaN at padded positions alone is a note."

    def check(self, evidence: Evidence) -> Check:
        """Count rows per site, over pooled rows and tokens, of DATA and then of OTHER."""
        bad, total = _counts(evidence)
        hit = [name for name, count in bad.items() if count >= self.error]
        n_rows = sum(v for k, v in evidence.counters.items() if k.startswith("rows|"))
        if not hit:
            figure = Figure("nonfinite_rows", 0.0, unit="rows", threshold=0.0, n_rows=n_rows)
            return self._of_other(evidence) or self._padding(evidence, figure)
        first = hit[0]
        count, n = bad[first], total[first]
        text = (
            f"{count:,} of {plural(n, 'row')} {'holds' if count == 1 else 'hold'} NaN, "
            f"infinity or a number too large to square at {shortened(first)}"
        )
        more = "" if len(hit) == 1 else f", the first of {len(hit)} such sites"
        figure = Figure(
            "nonfinite_rows", float(count), unit="rows", threshold=0.0, n_rows=n,
            n_groups=evidence.n_groups, flags=("nonfinite",),
        )  # fmt: skip
        return self.raised_with(
            level="error",
            sentence=sentence(
                f"{text}{more}.",
                "These rows are left out of all other statistics.",
                _beside(evidence, first),
            ),
            figure=figure,
            sites=tuple(hit),
            effect=count / max(1, n),
            next=read_command(first),
        )

    def _of_other(self, evidence: Evidence) -> Check | None:
        """Raise an error if only OTHER has non-finite rows; None without OTHER or such rows."""
        if evidence.versus is None:
            return None
        other = evidence.versus.other
        bad, total = _counts(other)
        hit = [name for name, count in bad.items() if count >= self.error]
        if not hit:
            return None
        first = hit[0]
        text = (
            f"{bad[first]:,} of {plural(total[first], 'row')} of OTHER hold NaN, infinity or a "
            f"number too large to square at {shortened(first)}; no row of DATA does"
        )
        advice = "The comparison of DATA and OTHER leaves these rows out."
        return self.raised_with(
            level="error",
            sentence=sentence(f"{text}{_chance(evidence, first)}.", advice),
            figure=Figure(
                "nonfinite_rows", float(bad[first]), unit="rows", threshold=0.0,
                n_rows=total[first], n_groups=other.n_groups, flags=("nonfinite",),
            ),
            sites=tuple(hit),
            of_other=True,
            effect=bad[first] / max(1, total[first]),
        )  # fmt: skip

    def _padding(self, evidence: Evidence, figure: Figure) -> Check:
        """Raise a note if only padded positions were non-finite in the self-check; else pass."""
        self_check = checked(evidence)
        if self_check is None or not self_check.padding:
            return self.clear(figure)
        names = [key.removesuffix(":out") for key in self_check.padding]
        text = f"Padded positions hold NaN or infinity at {places(names)}; no real token does."
        seen = f"{plural(self_check.n_rows, 'text')} padded in the self-check."
        return self.raised_with(
            level="note",
            sentence=sentence(text, seen),
            figure=figure,
            sites=tuple(names),
            next=read_command(names[0]),
        )


def _beside(evidence: Evidence, site: str) -> str:
    """Return the count of non-finite rows of OTHER at a site; empty without OTHER."""
    if evidence.versus is None:
        return ""
    bad, total = _counts(evidence.versus.other)
    rows = plural(total.get(site, 0), "row")
    return f"In OTHER, {bad.get(site, 0):,} of {rows} do{_chance(evidence, site)}."


def _chance(evidence: Evidence, site: str) -> str:
    """Return the p-value that both fractions are equal; each group counts as one row."""
    if evidence.versus is None:
        return ""
    counts: list[tuple[int, int]] = []
    for side in (evidence, evidence.versus.other):
        bad, total = (count_of.get(site, 0) for count_of in _counts(side))
        n = min(total, side.n_groups)
        counts.append((round(bad * n / max(1, total)), n))
    return f" (Fisher's exact test of both fractions: p = {chance_of_counts(*counts):.2g})"


def _counts(evidence: Evidence) -> tuple[dict[str, int], dict[str, int]]:
    """Return the counts of non-finite rows and of all rows, by site in order of execution.

    Sites without a finite row have no evidence and come last.
    """
    sites = [s.schema.key for s in evidence.sites]
    kinds = [k[10:] for k in evidence.counters if k.startswith("nonfinite|")]
    kinds = [k for k in kinds if not k.endswith(f"|{ENTRY}")]
    listed = dict.fromkeys(k.split("|")[0] for k in kinds)
    order = [*sites, *(k for k in listed if k not in sites)]
    bad: dict[str, int] = {}
    total: dict[str, int] = {}
    for site in order:
        name = site.removesuffix(":out")
        for kind in kinds:
            if kind != site and not kind.startswith(f"{site}|"):
                continue
            count = evidence.counters[f"nonfinite|{kind}"]
            if count > bad.get(name, 0) or name not in total:
                bad[name] = max(count, bad.get(name, 0))
                total[name] = evidence.counters.get(f"rows|{kind}", 0)
    return bad, total
