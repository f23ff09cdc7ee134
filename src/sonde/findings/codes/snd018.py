"""SND018: states that take few, evenly spaced values."""

from dataclasses import dataclass
from typing import Any, ClassVar, final

import numpy as np
import torch

from sonde.findings.codes._site_rule import Measured, SiteRule, Worst
from sonde.findings.codes.snd002 import BITS
from sonde.findings.evidence.modules.narrow_sites import is_input
from sonde.findings.evidence.record import Evidence, SiteEvidence, as_array
from sonde.findings.rule import Breaks, Check, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import is_averaged, places, too_few
from sonde.findings.words.text import percent, plural

LEAST_VALUES = 4
NARROW = {torch.bfloat16: BITS["bfloat16"], torch.float16: BITS["float16"]}


@final
@dataclass(frozen=True)
class SND018(SiteRule):
    """Units whose values lie on a grid much coarser than the number format's own.

    Parameters
    ----------
    values : int, default=256
        Most distinct non-zero values of such a unit.
    whole, within : float
        Least share of the gaps that are whole multiples of the smallest gap, and how far a multiple
        may be from a whole number.
    coarser : float, default=1.5
        Least size of the smallest gap, in spacings of the number format at the largest value.
    units : float, default=0.5
        Least share of units on a grid, among the units that are looked at, for a note.
    rows, active : int
        Least rows, and least non-zero values in a unit.
    """

    values: int = 256
    whole: float = 0.95
    within: float = 0.01
    coarser: float = 1.5
    units: float = 0.5
    rows: int = 256
    active: int = 64
    title: ClassVar[str] = "States lie on a grid (quantised?)"
    theme: ClassVar[Theme] = "units"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("quantised",)
    breaks: ClassVar[Breaks] = "nothing"
    why: ClassVar[str] = (
        "Activations were rounded to a few levels, so similar rows become identical."
    )
    fix: ClassVar[str] = "If rounding matters, load the weights without quantisation."
    how: ClassVar[str] = (
        "In at least half of the units, the sampled rows take at most 256 distinct non-zero "
        "values; at least 95 % of the gaps between these values are whole multiples of the "
        "smallest gap, within 1 %; and that gap is coarser than the spacing of the number "
        "format. This detects quantised activations, not quantised weights."
    )
    false_positives: ClassVar[str] = (
        "Whole-number inputs, also after a Flatten, and embeddings of bytes lie on a grid too "
        "and are not tested. Values that a 16-bit format can represent count as rounded to that "
        "format, so rounding to 256 levels with a power of two as step cannot be distinguished "
        "from bfloat16."
    )
    plant: ClassVar[str] = "Eight-bit rounding after a ReLU."
    twin: ClassVar[str] = "bfloat16 values, also if stored as float32."

    figure_name: ClassVar[str] = "units_on_a_grid"

    def measured(self, evidence: Evidence) -> Measured | Check:
        """Test the sampled values of every unit."""
        sites = [s for s in evidence.sites if _is_judged(s, evidence)]
        if not sites:
            return self.not_applicable("no site has rows that are states of single positions")
        most = max(len(s.sample.draw) for s in sites)
        if most < self.rows:
            return too_few(self, most, self.rows, "rows")
        shares = {s.name: share for s in sites if (share := self._share(s)) is not None}
        if not shares:
            return self.withheld(f"no unit has {self.active} values other than zero")
        return Measured(shares)

    def limits(self) -> dict[str, float]:
        """Return the smallest fraction of units that is a note."""
        return {"note": self.units}

    def basis(self, site: SiteEvidence, value: float, evidence: Evidence) -> dict[str, Any]:
        """Return the number of sampled rows."""
        return {"n_rows": len(site.sample.draw), "flags": ("sampled",)}

    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Describe how many units take few distinct values."""
        return (
            f"{percent(worst.value)} of the units at {places(worst.names)} take at most "
            f"{self.values} evenly spaced values (quantised activations).",
            f"{plural(worst.figure.n_rows, 'row')} tested.",
        )

    def _share(self, site: SiteEvidence) -> float | None:
        rows = as_array(site.sample)
        usable = [j for j in range(site.dim) if np.count_nonzero(rows[:, j]) >= self.active]
        if not usable:
            return None
        bits = BITS.get(site.schema.dtype, 24)
        return sum(self._on_grid(rows[:, j], bits) for j in usable) / len(usable)

    def _on_grid(self, column: np.ndarray, bits: int) -> bool:
        values = np.unique(column[column != 0])
        if not LEAST_VALUES <= len(values) <= self.values:
            return False
        gaps = np.diff(values)
        smallest, bits = gaps.min(), min(bits, _held_bits(values))
        own = 2.0 ** (np.floor(np.log2(np.abs(values).max())) - bits + 1)
        multiple = gaps / smallest
        whole = np.abs(multiple - np.round(multiple)) <= self.within
        return bool(smallest >= self.coarser * own and whole.mean() >= self.whole)


def _is_judged(site: SiteEvidence, evidence: Evidence) -> bool:
    return not (is_averaged(site) or is_input(site, evidence) or "Embedding" in site.schema.module)


def _held_bits(values: np.ndarray) -> int:
    """Return the precision in bits of the narrowest float type that holds all values exactly."""
    x = torch.from_numpy(values)
    held = [bits for kind, bits in NARROW.items() if torch.equal(x.to(kind).double(), x)]
    return min(held, default=BITS["float64"])
