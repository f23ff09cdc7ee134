"""SND013: units of bounded activations that are saturated."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.findings.codes._site_rule import Measured, Reached, SiteRule, Worst
from sonde.findings.evidence.modules.module_facts import ModelEvidence, read_modules
from sonde.findings.evidence.record import Evidence, SiteEvidence, rows_as_float
from sonde.findings.rule import Breaks, Check, Explains, Panel, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import (
    counted_as,
    is_averaged,
    least_groups_for_silence,
    places,
    rows_of,
    too_few,
)
from sonde.findings.words.text import percent, plural

CUT = {"ReLU6": (0.0, 6.0), "Hardtanh": (-1.0, 1.0), "Hardsigmoid": (0.0, 1.0)}
GATES = ("gate", "gating", "attn", "attention", "lstm", "gru", "squeeze", "router", ".se.")


@final
@dataclass(frozen=True)
class SND013(SiteRule):
    """Units whose activation passes almost none of its gradient.

    Parameters
    ----------
    passes : float, default=0.05
        Mean derivative, relative to its largest, below which a unit is saturated.
    note, warning : float
        Share of the units of a site.
    """

    passes: float = 0.05
    note: float = 0.1
    warning: float = 0.5
    title: ClassVar[str] = "Saturated units"
    theme: ClassVar[Theme] = "units"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("dead units",)
    breaks: ClassVar[Breaks] = "nothing"
    panel: ClassVar[Panel] = "dead_share"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND042",), reach="same or later"),)
    why: ClassVar[str] = "Such a unit passes almost no gradient, and its output is nearly binary."
    fix: ClassVar[str] = (
        "Scale the inputs of the layer as in training; if it saturates in training too, put a "
        "norm before its activation."
    )
    how: ClassVar[str] = (
        "The mean derivative follows from the mean m and the variance v of a unit's output: 1 - "
        "v - m^2 for tanh, 4 (m - v - m^2) for a sigmoid, relative to the steepest point; for "
        "ReLU6, hardtanh and hardsigmoid it is one minus the fraction of rows at either end of "
        "the range. A unit counts as saturated below 0.05."
    )
    false_positives: ClassVar[str] = (
        "Gates are meant to close, so for gates this is a note at most."
    )
    plant: ClassVar[str] = "Weights times 10 before a tanh."
    twin: ClassVar[str] = "A trained tanh net."

    figure_name: ClassVar[str] = "saturated_units"

    def measured(self, evidence: Evidence) -> Measured | Check:
        """Compute the mean derivative of every unit at sites of bounded activations."""
        bounded = [s for s in evidence.sites if _kind(s) is not None]
        if not bounded:
            return self.not_applicable("no site is a tanh, sigmoid or clipped activation")
        g = evidence.n_groups
        sites = [s for s in bounded if g >= least_groups_for_silence(s.dim)]
        if not sites:
            least = min(least_groups_for_silence(s.dim) for s in bounded)
            return too_few(self, g, least, counted_as(evidence))
        slopes = {s.name: d for s in sites if (d := slope(s, evidence)) is not None}
        if not slopes:
            return self.not_applicable(
                "rows are means over positions, which hide saturated positions"
            )
        shares = {n: float((d < self.passes).double().mean()) for n, d in slopes.items()}
        return Measured(shares, if_raised={"shares": shares})

    def level(self, site: SiteEvidence, value: float, evidence: Evidence) -> Reached:
        """Return the level, which is a note at most for gates."""
        reached_level = super().level(site, value, evidence)
        if reached_level and any(word in f".{site.name.lower()}." for word in GATES):
            return "note", self.note
        return reached_level

    def said(self, worst: Worst, evidence: Evidence) -> tuple[str, ...]:
        """Describe how many units are saturated."""
        site, count = worst.site, round(worst.value * worst.site.dim)
        return (
            f"{count:,} of {plural(site.dim, 'unit')} at {places([site.name])} ({_kind(site)}) "
            f"{'passes' if count == 1 else 'pass'} on less than {percent(self.passes)} of "
            f"{'its' if count == 1 else 'their'} gradient ({percent(worst.value)} of units; above "
            f"{percent(worst.limit)} counts). {rows_of(site, evidence)}.",
            worst.also(),
        )


def _kind(site: SiteEvidence) -> str | None:
    name = site.schema.module
    if site.schema.site.port != "out":
        return None
    return name if name in ("Tanh", "Sigmoid") or name in CUT else None


def slope(site: SiteEvidence, evidence: Evidence) -> Float[Tensor, "dim"] | None:
    """Return each unit's mean derivative relative to its maximum; None if rows are averages."""
    kind = _kind(site)
    if is_averaged(site) and (kind in CUT or site.all.key == site.schema.key):
        return None
    mean, variance = site.all.moments.mean, site.all.moments.variance
    if kind == "Tanh":
        return 1 - variance - mean.square()
    if kind == "Sigmoid":
        return 4 * (mean - variance - mean.square())
    low, high = _ends(site, evidence)
    rows = rows_as_float(site.sample)
    return 1 - ((rows <= low) | (rows >= high)).double().mean(0)


def _ends(site: SiteEvidence, evidence: Evidence) -> tuple[float, float]:
    model = evidence.get(read_modules)
    facts = model.sites.get(site.schema.key) if isinstance(model, ModelEvidence) else None
    ends = CUT[site.schema.module] if facts is None or facts.ends is None else facts.ends
    # States in 16 bit stop at the number next to an end.
    return tuple(float(torch.tensor(e, dtype=getattr(torch, site.schema.dtype))) for e in ends)  # type: ignore[return-value]
