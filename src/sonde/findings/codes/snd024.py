"""SND024: tokens or patches of an example that become nearly identical."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.findings.codes._site_rule import Measured, Reached, SiteRule, Worst
from sonde.findings.evidence.modules.module_facts import ModelEvidence, read_modules
from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import Breaks, Check, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import log_effect, places, rows_of, too_few
from sonde.findings.words.text import percent

GROUPS = 32


@final
@dataclass(frozen=True)
class SND024(SiteRule):
    """Fraction of the variance of token rows that lies inside examples, median over units.

    Parameters
    ----------
    note, warning : float
        Share of the variance.
    late : float, default=2/3
        Depth from which on a model that pools its tokens afterwards gets a note at most.
    """

    note: float = 0.01
    warning: float = 0.001
    late: float = 2 / 3
    title: ClassVar[str] = "Tokens of an example become nearly identical (over-smoothing)"
    theme: ClassVar[Theme] = "depth"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("rank collapse",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = "From this layer on, the tokens of an example can hardly be distinguished."
    fix: ClassVar[str] = (
        "Pool the rows of an earlier layer, or add residual connections and train again."
    )
    how: ClassVar[str] = (
        "Median over units of 1 - variance of example means / variance of rows, over all tokens "
        "or patches. A value of 0.001 means that the tokens of an example differ by 3 % of the "
        "standard deviation of all rows."
    )
    false_positives: ClassVar[str] = (
        "Models that pool all tokens afterwards lose nothing: a note at most in late layers."
    )
    plant: ClassVar[str] = "Attention blocks without a skip connection."
    twin: ClassVar[str] = "A trained vision transformer with mean pooling."

    figure_name: ClassVar[str] = "variance_inside_examples"
    below: ClassVar[bool] = True

    def measured(self, evidence: Evidence) -> Measured | Check:
        """Compare variance inside and between examples."""
        values = {s.name: v for s in evidence.sites if (v := within_share(s)) is not None}
        if not values:
            return self.not_applicable("no example has more than one row")
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        return Measured(values, {"values": values})

    def level(self, site: SiteEvidence, value: float, evidence: Evidence) -> Reached:
        """Return the level; at most a note if the model pools its tokens afterwards."""
        level = super().level(site, value, evidence)
        return ("note", self.note) if level and self._is_late(site, evidence) else level

    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Describe how much variance is left inside examples."""
        site = worst.site
        what = "tokens" if site.all.key.endswith("tokens") else "positions"
        return (
            f"Inside an example, {what} account for {percent(worst.value)} of the variance at "
            f"{places(worst.names)} (limit {percent(worst.limit)}). {rows_of(site, evidence)}.",
            "The model pools them afterwards." if self._is_late(site, evidence) else "",
        )

    def more(self, worst: Worst) -> dict[str, Any]:
        """Return the effect, which is 1 at a fraction of a millionth."""
        return {"effect": 1.0 - log_effect(worst.value, 1e-6, self.note)}

    def _is_late(self, site: SiteEvidence, evidence: Evidence) -> bool:
        model = evidence.get(read_modules)
        if not isinstance(model, ModelEvidence) or not model.pools:
            return False
        at = [s.schema.key for s in evidence.sites].index(site.schema.key)
        return at >= self.late * len(evidence.sites)


def within_share(site: SiteEvidence) -> float | None:
    """Return the median fraction of variance inside examples; None with one row per example."""
    groups = site.all.groups
    if groups is None or groups.rows.n <= groups.n_examples:
        return None
    alive = groups.rows.scatter > 0
    return float(groups.within_share[alive].median()) if bool(alive.any()) else None
