"""SND027: linear layers whose outputs lie in fewer dimensions than they could."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.core.instrument import SAMPLE
from sonde.findings.codes._site_rule import Measured, SiteRule, Worst
from sonde.findings.codes.snd002 import spacing
from sonde.findings.evidence.modules.module_facts import ModelEvidence, read_modules
from sonde.findings.evidence.record import Evidence, SiteEvidence, rows_as_float
from sonde.findings.rule import Breaks, Check, Panel, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import counted_as, places, too_few
from sonde.findings.words.text import plural
from sonde.tap.streams.difference import ROUNDING

Pair = tuple[SiteEvidence, SiteEvidence]


@final
@dataclass(frozen=True)
class SND027(SiteRule):
    """Exact rank of a linear layer's outputs against that of its inputs.

    Parameters
    ----------
    note : float, default=0.9
        Rank over the rank that is possible.
    noise : float, default=16
        Unit roundoffs below which a direction is rounding.
    """

    note: float = 0.9
    noise: float = 16.0
    title: ClassVar[str] = "Exact rank ceiling"
    theme: ClassVar[Theme] = "depth"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("rank collapse",)
    breaks: ClassVar[Breaks] = "nothing"
    panel: ClassVar[Panel] = "participation_ratio"
    why: ClassVar[str] = (
        "The layer can be replaced by two smaller layers that give the same numbers."
    )
    fix: ClassVar[str] = "Widen the layer that caps the rank, or feed more independent columns."
    how: ClassVar[str] = (
        "At linear layers whose input is exactly the output of the site before: the number of "
        "eigenvalues of the covariance of rows that are above 1, in units of the rounding error "
        "of each unit. Rounding error: that of the states (s^2 / 12, s the spacing of numbers), "
        "of the weights ((16 u)^2 times the mean variance, u the unit roundoff) and of sums in "
        "float32. The possible rank is the smallest of three numbers: units that vary, rank of "
        "the input, and rows - 1. Low-rank weights that write to a residual stream are not "
        "detected."
    )
    false_positives: ClassVar[str] = "Layers built as low rank on purpose."
    plant: ClassVar[str] = "A weight cut to its twelve largest singular values."
    twin: ClassVar[str] = "A linear layer from 64 to 128 units, whose outputs cannot have rank 128."

    figure_name: ClassVar[str] = "rank_per_possible"
    below: ClassVar[bool] = True

    def measured(self, evidence: Evidence) -> Measured | Check:
        """Count the dimensions before and after every linear layer that follows a site."""
        model = evidence.get(read_modules)
        if not isinstance(model, ModelEvidence):
            return self.not_applicable(
                "no model was run, so the modules between sites are not known"
            )
        pairs = [
            (a, b)
            for a, b in zip(evidence.sites, evidence.sites[1:], strict=False)
            if (facts := model.sites.get(b.schema.key)) and facts.follows and facts.n_inputs
        ]
        if not pairs:
            return self.not_applicable("no linear layer follows another site directly")
        present = min(evidence.n_groups, min(len(b.sample.draw) for _, b in pairs))
        ready = [p for p in pairs if present >= 2 * max(p[0].dim, p[1].dim)]
        if not ready:
            least = min(2 * max(a.dim, b.dim) for a, b in pairs)
            if least > SAMPLE:
                return self.not_applicable(f"layers wider than {SAMPLE // 2:,} are not tested")
            return too_few(self, present, least, counted_as(evidence))
        ranks = {b.name: (rank(b, self.noise), self._possible(a, b)) for a, b in ready}
        ranks = {name: r for name, r in ranks.items() if r[1] > 0}
        if not ranks:
            return self.not_applicable("no unit varies at these layers")
        shares = {name: rank / possible for name, (rank, possible) in ranks.items()}
        return Measured(shares, {"ranks": ranks}, kept=ranks)

    def basis(self, site: SiteEvidence, value: float, evidence: Evidence) -> dict[str, Any]:
        """Return the number of sampled rows."""
        flags = ("rank_deficient",) if value < self.note else ()
        return {"n_rows": len(site.sample.draw), "flags": flags}

    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Describe the number of dimensions of the outputs."""
        site, (rank, possible) = worst.site, worst.kept
        return (
            f"Outputs of {places([site.name])} lie in {plural(rank, 'dimension')} of "
            f"{possible:,} possible ({site.dim:,} units). {plural(worst.figure.n_rows, 'row')}.",
            worst.also(f"Also below {self.note:g}"),
        )

    def more(self, worst: Worst) -> dict[str, Any]:
        """Return the effect, the fraction of dimensions that are missing."""
        return {"effect": 1.0 - worst.value}

    def _possible(self, before: SiteEvidence, site: SiteEvidence) -> int:
        active = int((site.scalars.low < site.scalars.high).sum())
        return min(active, rank(before, self.noise), len(site.sample.draw) - 1)


def rank(site: SiteEvidence, noise: float = 16.0) -> int:
    """Return the number of directions whose variance exceeds the rounding error.

    From the sampled rows in float64: moments add products in the rows' own type, whose rounding is
    larger than the directions that are looked for.
    """
    rows = rows_as_float(site.sample)
    centred = (rows - rows.mean(0)) / _rounding(rows, site.schema.dtype, noise).sqrt()
    product = centred @ centred.T if len(rows) < site.dim else centred.T @ centred
    return int((torch.linalg.eigvalsh(product) / len(rows) > 1).sum())


def _rounding(rows: Float[Tensor, "row dim"], dtype: str, noise: float) -> Float[Tensor, "dim"]:
    """Return the largest variance that rounding causes in a direction, in each unit's scale.

    Rounding of states is independent: over directions its variance spreads up to the edge of
    Marchenko and Pastur. Rounding of weights acts on what varies; rounding of sums, in float32 or
    better, acts on means too.
    """
    unit = ROUNDING.get(dtype, ROUNDING["float32"])
    edge = (1 + math.sqrt(rows.shape[1] / len(rows))) ** 2
    states = spacing(rows.flatten(), dtype).reshape(rows.shape).square().mean(0) / 12
    weights = unit**2 * rows.var(0, correction=0).mean()
    sums = min(unit, ROUNDING["float32"]) ** 2 * rows.square().mean()
    tiny = torch.finfo(rows.dtype).tiny
    return (edge * states + noise**2 * (weights + sums)).clamp(min=tiny)
