"""SND017: first and special tokens whose states are much longer than the others."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import Breaks, Check, Figure, Panel, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, rows_of, scan_command, sentence, too_few
from sonde.findings.words.text import number, percent
from sonde.stats.token_norms import FIRST, REST, SPECIAL

BUCKETS = {FIRST: "First tokens", SPECIAL: "Special tokens"}
GROUPS = 32


@final
@dataclass(frozen=True)
class SND017(Rule):
    """Median norm of first positions or special tokens, divided by that of all other tokens.

    Parameters
    ----------
    note : float, default=3
        Ratio of the medians.
    energy : float, default=0.5
        Share of the squared norms above which a mean over tokens mostly reflects these tokens.
    """

    note: float = 3.0
    energy: float = 0.5
    title: ClassVar[str] = "Special tokens dominate (first position, separators)"
    theme: ClassVar[Theme] = "units"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("massive activations",)
    breaks: ClassVar[Breaks] = "nothing"
    panel: ClassVar[Panel] = "median_norm"
    why: ClassVar[str] = "A mean over tokens then mostly reflects tokens that carry no content."
    fix: ClassVar[str] = (
        "Leave the special tokens out when you pool: --reducer last, or --reducer mean over the "
        "other tokens."
    )
    how: ClassVar[str] = (
        "Median norm of rows at the first position, and of other special tokens, over the "
        "median of the rest; at least 3 is a note. A warning if the reducer averages over these "
        "tokens too and they account for more than half of the squared norms."
    )
    false_positives: ClassVar[str] = "Common in trained language models (attention sinks)."
    plant: ClassVar[str] = "200 added to one unit of position 0, in means that keep sinks."
    twin: ClassVar[str] = "The same model with sinks left out, or read at the last token: a note."

    def check(self, evidence: Evidence) -> Check:
        """Compare medians at every site that has tokens."""
        sites = [s for s in evidence.sites if s.all.key.endswith("|tokens")]
        if not sites:
            return self.not_applicable("no site has rows of tokens")
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        ratios = [(s, b, r) for s in sites for b in BUCKETS if (r := _ratio(s, b)) is not None]
        if not ratios:
            return self.not_applicable("every token is the first of its text or a special token")
        site, bucket, ratio = max(ratios, key=lambda f: f[2])
        figure = Figure(
            "norm_per_other_tokens", ratio, unit="ratio", threshold=self.note,
            n_rows=site.all.scalars.n, n_groups=evidence.n_groups,
        )  # fmt: skip
        hits = [f for f in ratios if f[2] >= self.note]
        if not hits:
            return self.clear(figure)
        names = list(dict.fromkeys(s.name for s, b, _ in hits if b == bucket))
        left_out = any(n > 0 for key, n in evidence.counters.items() if key.startswith("sinks|"))
        drowned = [] if left_out else [f for f in hits if self._drowns(f[0], f[1])]
        share = float(site.all.norms.energy_share[bucket])
        text = (
            f"{BUCKETS[bucket]} have {number(ratio)} times the norm of other tokens at "
            f"{places(names)} (common) and account for {percent(share)} of the squared norms."
        )
        mixed = f"The reducer {site.schema.reducer} averages over them too." if drowned else ""
        mixed = "They are left out of means, variances and detectors." if left_out else mixed
        return self.raised_with(
            level="warning" if drowned else "note",
            sentence=sentence(text, mixed, f"{rows_of(site, evidence)}."),
            figure=figure,
            sites=tuple(dict.fromkeys(s.name for s, _, _ in hits)),
            effect=min(1.0, math.log10(ratio) / 3),
            next=scan_command(reducer="last"),
            common=not drowned,
        )

    def _drowns(self, site: SiteEvidence, bucket: int) -> bool:
        share = float(site.all.norms.energy_share[bucket])
        return site.schema.reducer.name == "mean" and share > self.energy


def _ratio(site: SiteEvidence, bucket: int) -> float | None:
    norms = site.all.norms
    if int(norms.n[bucket]) == 0 or int(norms.n[REST]) == 0:
        return None
    rest = float(norms.median[REST])
    return float(norms.median[bucket]) / rest if rest > 0 else None
