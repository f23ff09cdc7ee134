"""SND025: blocks that hardly change their input."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

from sonde.findings.codes._site_rule import Measured, SiteRule, Worst
from sonde.findings.evidence.modules.block_updates import sampled_ends, update_per_spread
from sonde.findings.evidence.modules.module_facts import ModelEvidence, read_modules
from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import Breaks, Check, Panel, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, rows_of, too_few
from sonde.findings.words.text import number, percent, plural

GROUPS = 32


@final
@dataclass(frozen=True)
class SND025(SiteRule):
    """Change made by a block over the standard deviation of its input, median over units.

    Parameters
    ----------
    note : float, default=0.05
        Change over spread.
    share : float, default=0.25
        Share of the blocks beyond which it is a warning.
    several : int, default=2
        Least number of such blocks for a warning, unless a block does nothing at all.
    """

    note: float = 0.05
    share: float = 0.25
    several: int = 2
    title: ClassVar[str] = "A block that does almost nothing"
    theme: ClassVar[Theme] = "depth"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("useless block",)
    breaks: ClassVar[Breaks] = "nothing"
    panel: ClassVar[Panel] = "update_per_spread"
    why: ClassVar[str] = "The block costs time and memory and hardly changes its input."
    fix: ClassVar[str] = "Remove the block, or start its last weights above zero and train again."
    how: ClassVar[str] = (
        "Median over units of rms(out - in) / std(in), for blocks with parameters whose input "
        "is the output of the site before, and for the first block. Below 0.05 the input alone "
        "explains 99.7 % of the output. Blocks whose input has another shape, such as "
        "embeddings, are not compared. The change is not measured relative to the norm of the "
        "whole row: one huge unit would make it small at every later block."
    )
    false_positives: ClassVar[str] = (
        "Similarity is no proof: a small change can matter. A residual branch that was "
        "initialised to zero and is not yet trained changes nothing; this is no fault."
    )
    plant: ClassVar[str] = "A block's projections times 0.02; all zero."
    twin: ClassVar[str] = "The same blocks at random initialisation."

    figure_name: ClassVar[str] = "update_per_spread"
    unit: ClassVar[str] = "ratio"
    below: ClassVar[bool] = True

    def measured(self, evidence: Evidence) -> Measured | Check:
        """Compare the change with the input's standard deviation at every block."""
        model = evidence.get(read_modules)
        if not isinstance(model, ModelEvidence):
            return self.not_applicable(
                "no model was run, so the modules between sites are not known"
            )
        blocks = self._blocks(evidence, model)
        values = {s.name: v for s in blocks if (v := _change(s)) is not None}
        if not values:
            return self.not_applicable(
                "no block has equal input and output width and follows another site"
            )
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        return Measured(values, {"values": values})

    def basis(self, site: SiteEvidence, value: float, evidence: Evidence) -> dict[str, Any]:
        """Return the number of rows, and an interval if the site before has the same rows."""
        place, low, high = evidence.sites.index(site), None, None
        if place:
            before = evidence.sites[place - 1]
            low, high = sampled_ends(before, site, value, evidence.n_groups)
        return {"n_rows": site.all.scalars.n, "low": low, "high": high}

    def more(self, worst: Worst) -> dict[str, Any]:
        """Return a warning if several blocks are idle or one does nothing, else a note."""
        least = max(self.several, self.share * len(worst.found.values))
        severe = len(worst.names) >= least or worst.value == 0
        return {"level": "warning" if severe else "note", "effect": 1.0 - worst.value / self.note}

    @staticmethod
    def _blocks(evidence: Evidence, model: ModelEvidence) -> list[SiteEvidence]:
        """Return the sites of modules with parameters that follow another site, or run first."""
        blocks: list[SiteEvidence] = []
        for site in evidence.sites:
            facts = model.sites.get(site.schema.key)
            if facts and facts.n_parameters and (facts.follows or facts.is_first):
                blocks.append(site)
        return blocks

    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Describe how little these blocks change their input, compared with the others."""
        idle, figure = worst.names, worst.figure
        others = sorted(v for name, v in worst.found.values.items() if name not in idle)
        ends = ""
        if figure.low is not None and figure.high is not None:
            ends = f" ({number(100 * max(0.0, figure.low))}-{number(100 * figure.high)} %)"
        one = len(idle) == 1
        text = (
            f"{places(idle)} {'changes what it receives' if one else 'change what they receive'} "
            f"by {'' if one else 'as little as '}{percent(worst.value)}{ends} of its standard "
            f"deviation; a change below {percent(self.note)} counts as almost nothing"
        )
        rest = ""
        if others:
            low, high = number(100 * others[0]), number(100 * others[-1])
            across = f"{low}-{high}" if low != high else low
            rest = f"; {plural(len(others), 'other block')} {across} %"
        return f"{text}{rest}.", f"{rows_of(worst.site, evidence)}."


def _change(site: SiteEvidence) -> float | None:
    update, received = site.all.update, site.all.received
    return None if update is None or received is None else update_per_spread(update, received)
