"""SND021: norms that explode or vanish with depth."""

from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import Breaks, Check, Figure, Panel, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import log_effect, places, reached, read_command, sentence, too_few
from sonde.findings.words.text import about, number, plural
from sonde.stats.log_histogram import BINS, log_centres

GROUPS = 32
GRID = tuple(log_centres()[[BINS // 2 + 1, -1]].tolist())
"""Smallest and largest median that a histogram of norms tells; beyond lies a bound."""


@final
@dataclass(frozen=True)
class SND021(Rule):
    """Largest divided by smallest median row norm among sites of one module class.

    Parameters
    ----------
    note, warning : float
        Ratio of the median norms, each divided by the root of the width.
    """

    note: float = 100.0
    warning: float = 1000.0
    title: ClassVar[str] = "Norms explode or vanish"
    theme: ClassVar[Theme] = "depth"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("explosion",)
    breaks: ClassVar[Breaks] = "nothing"
    panel: ClassVar[Panel] = "median_norm"
    why: ClassVar[str] = (
        "Gradients grow or vanish by the same factor, and values overflow or underflow."
    )
    fix: ClassVar[str] = (
        "Put a norm before each block, or divide the residual weights by the square root of "
        "twice the number of blocks, and train again."
    )
    how: ClassVar[str] = (
        "Median norm of all rows at every site, divided by the root of the width; the largest "
        "of these over the smallest, among sites whose modules are of one class. A few rows "
        "with huge values do not affect the median. The answers of a regression are left out: "
        "they have the unit of the targets."
    )
    false_positives: ClassVar[str] = (
        "Sites of one class with different purposes, such as a head of logits."
    )
    plant: ClassVar[str] = "Sixteen ReLU layers with weights of scale 4 / sqrt(inputs)."
    twin: ClassVar[str] = "The same with scale 1.414 / sqrt(inputs)."

    def check(self, evidence: Evidence) -> Check:
        """Compare the sites of one module class."""
        if len(evidence.sites) < 2:
            return self.not_applicable("needs two sites")
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        kinds: dict[tuple[str, str], list[SiteEvidence]] = {}
        for site in evidence.sites:
            if _size(site) > 0 and not _is_of_targets(site, evidence):
                kinds.setdefault((site.schema.module, site.schema.site.port), []).append(site)
        several = [sites for sites in kinds.values() if len(sites) > 1]
        if not several:
            return self.not_applicable("no two sites have modules of one class")
        kind = max(several, key=lambda sites: _ratio(sites))
        small, large = min(kind, key=_size), max(kind, key=_size)
        ratio = _ratio(kind)
        level = reached(ratio, self.note, self.warning)
        figure = Figure(
            "largest_per_smallest_norm", ratio, unit="ratio",
            threshold=level[1] if level else self.note, n_rows=large.all.scalars.n,
            n_groups=evidence.n_groups,
        )  # fmt: skip
        if level is None:
            return self.clear(figure)
        first, last = sorted((small, large), key=lambda s: s.schema.site.order)
        verb = "grow" if last is large else "shrink"
        least = "at least " if _is_below(small) or _is_above(large) else ""
        text = (
            f"States {verb} {least}{about(ratio)} times from {places([first.name])} to "
            f"{places([last.name])}: median norm, divided by the root of the width, "
            f"{_words(first)} to {_words(last)} (limit {number(level[1])} times)."
        )
        return self.raised_with(
            level=level[0],
            sentence=sentence(text, f"{plural(len(kind), 'site')} compared."),
            figure=figure,
            sites=(first.name, last.name),
            effect=log_effect(ratio, self.note, 1e6),
            next=read_command(last.name),
        )


def _is_of_targets(site: SiteEvidence, evidence: Evidence) -> bool:
    """Return whether a site holds the answers of a regression, in the unit of its targets."""
    answers = evidence.columns.get("logits")
    if evidence.data.target is None or answers is None or answers.rows.ndim != 2:
        return False
    return site is evidence.sites[-1] and site.dim == answers.rows.shape[1]


def _size(site: SiteEvidence) -> float:
    return float(site.all.norms.median_all) / site.dim**0.5


def _is_below(site: SiteEvidence) -> bool:
    return bool(site.all.norms.median_all <= GRID[0])


def _is_above(site: SiteEvidence) -> bool:
    return bool(site.all.norms.median_all >= GRID[1])


def _words(site: SiteEvidence) -> str:
    """Describe a norm, or its bound if it lies outside the histogram."""
    bound = "at most " if _is_below(site) else "at least " if _is_above(site) else ""
    return f"{bound}{about(_size(site))}"


def _ratio(sites: list[SiteEvidence]) -> float:
    sizes = [_size(s) for s in sites]
    return max(sizes) / min(sizes)
