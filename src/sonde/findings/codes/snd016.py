"""SND016: a few units that dominate a site."""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import torch

from sonde.findings.codes.snd002 import SND002, rounding_share
from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import Breaks, Check, Explains, Figure, Level, Panel, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, read_command, rows_of, sentence, too_few
from sonde.findings.words.text import about, listed, number, percent

GROUPS = 32


@dataclass(frozen=True)
class Dominance:
    """Dominance of the largest units of a site.

    Parameters
    ----------
    ratio : float
        Largest magnitude over the root mean square of the median unit that varies.
    unit : int
        Unit that holds that magnitude.
    position : int or None
        Position of all rows that hold that unit's largest magnitudes, or None if they share none.
    steady : bool
        Whether that unit hardly changes over rows.
    share : float
        Share of the mean square in the largest 1 % of units.
    units : tuple of int
        The largest 1 % of units.
    fair : float
        ``share`` over the share of all units that ``units`` make up.
    """

    ratio: float
    unit: int
    position: int | None
    steady: bool
    share: float
    units: tuple[int, ...]
    fair: float


@final
@dataclass(frozen=True)
class SND016(Rule):
    """Massive activations and outlier dimensions.

    Parameters
    ----------
    massive : float, default=1000
        Largest magnitude over the median living unit's root mean square.
    share, fair : float
        Share of the mean square in the largest 1 % of units, and how many times their fair share.
    steady : float, default=0.1
        Standard deviation over mean below which a unit acts as a bias.
    """

    massive: float = 1000.0
    share: float = 0.5
    fair: float = 20.0
    steady: float = 0.1
    title: ClassVar[str] = "A few units dominate (massive activations, outlier dimensions)"
    theme: ClassVar[Theme] = "units"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("massive activations",)
    breaks: ClassVar[Breaks] = "nothing"
    panel: ClassVar[Panel] = "median_norm"
    explains: ClassVar[tuple[Explains, ...]] = (Explains(("SND017", "SND021")),)
    why: ClassVar[str] = (
        "These units serve as attention sinks: removing or rounding them breaks models. They "
        "dominate cosines, distances and the scales of 8-bit formats."
    )
    fix: ClassVar[str] = (
        "The answers need no change. Standardise the units before you compare rows, "
        "and keep these units in 16 bits when you quantise."
    )
    how: ClassVar[str] = (
        "Either: max |x| is at least 1000 times the root mean square of the median unit that "
        "varies. Or: the largest 1 % of units hold half of the mean square, and 20 times as "
        "much as if all units were equal. A warning only where rounding (SND002) reaches a "
        "warning at the same site, or where OTHER has such units and DATA has none."
    )
    false_positives: ClassVar[str] = "Common in trained language models, and needed there."
    plant: ClassVar[str] = "A bias of 3,000 on one unit; 20,000 on one unit of position 0."
    twin: ClassVar[str] = (
        "Rows from Student's t distribution with 3 degrees of freedom; 60 % dead units."
    )

    def check(self, evidence: Evidence) -> Check:
        """Measure dominance at every site, on all rows."""
        if evidence.n_groups < GROUPS:
            return too_few(self, evidence.n_groups, GROUPS)
        dominances = {
            s.name: d for s in evidence.sites if (d := dominance(s, self.steady)) is not None
        }
        if not dominances:
            return self.not_applicable("no site has two units that vary")
        hits = [
            s for s in evidence.sites if s.name in dominances and self._is_hit(dominances[s.name])
        ]
        other = self._only_in_other(evidence, bool(hits))
        if not hits and other is None:
            worst = max(dominances, key=lambda name: dominances[name].ratio)
            site = next(s for s in evidence.sites if s.name == worst)
            return self.clear(self._figure(dominances[worst], evidence, site))
        if not hits and other is not None:
            return self._raised([other[0]], {other[0].name: other[1]}, evidence, "warning", True)
        rounded = any(rounding_share(s) >= SND002().precision_warning for s in hits)
        return self._raised(hits, dominances, evidence, "warning" if rounded else "note", False)

    def _is_hit(self, d: Dominance) -> bool:
        return d.ratio >= self.massive or (d.share >= self.share and d.fair >= self.fair)

    def _only_in_other(
        self, evidence: Evidence, in_data: bool
    ) -> tuple[SiteEvidence, Dominance] | None:
        if in_data or evidence.versus is None:
            return None
        for site in evidence.versus.other_sites.values():
            d = dominance(site, self.steady)
            if d is not None and self._is_hit(d):
                return site, d
        return None

    def _raised(
        self,
        hits: list[SiteEvidence],
        found: dict[str, Dominance],
        evidence: Evidence,
        level: Level,
        other: bool,
    ) -> Check:
        worst = max(
            hits, key=lambda s: max(found[s.name].ratio / self.massive, found[s.name].share)
        )
        d = found[worst.name]
        names = [s.name for s in hits]
        return self.raised_with(
            level=level,
            sentence=self._sentence(names, worst, d, evidence, other),
            figure=self._figure(d, evidence, worst),
            sites=tuple(names),
            units=tuple(str(u) for u in self._units(d)[:20]),
            effect=min(1.0, max(d.share, math.log10(max(d.ratio, 1.0)) / 5)),
            next=read_command(worst.name),
            common=level == "note",
        )

    def _units(self, d: Dominance) -> tuple[int, ...]:
        return (d.unit,) if d.ratio >= self.massive else d.units

    def _sentence(
        self, names: list[str], worst: SiteEvidence, d: Dominance, evidence: Evidence, other: bool
    ) -> str:
        common = "only in the other data set" if other else "common"
        if d.ratio >= self.massive:
            at = f", position {d.position}" if d.position is not None else ""
            steady = "; its value hardly varies, so it acts as a bias" if d.steady else ""
            text = (
                f"Unit {d.unit}{at} at {places(names)} reaches {about(d.ratio)} times the "
                f"median unit's size ({common}){steady}."
            )
        else:
            units = listed([str(u) for u in d.units])
            text = (
                f"{'Unit' if len(d.units) == 1 else 'Units'} {units} at {places(names)} "
                f"{'holds' if len(d.units) == 1 else 'hold'} {percent(d.share)} of the mean "
                f"square, {number(d.fair)} times as much as if all units were equal ({common})."
            )
        with_, without = _mean_shares(worst, self._units(d))
        of_mean = (
            f"The mean row has {percent(with_)} of the rows' mean square, and {percent(without)} "
            "without these units."
        )
        return sentence(text, of_mean, f"{rows_of(worst, evidence)}.")

    def _figure(self, d: Dominance, evidence: Evidence, site: SiteEvidence) -> Figure:
        n, g = site.all.scalars.n, evidence.n_groups
        if d.ratio >= self.massive or not self._is_hit(d):
            return Figure(
                "largest_per_median_unit", d.ratio, unit="ratio", threshold=self.massive,
                n_rows=n, n_groups=g,
            )  # fmt: skip
        return Figure(
            "share_of_largest_units", d.share, unit="share", threshold=self.share,
            n_rows=n, n_groups=g,
        )  # fmt: skip


def dominance(site: SiteEvidence, steady: float = 0.1) -> Dominance | None:
    """Return the relative size of the largest units, or None if fewer than two units vary."""
    moments, top = site.all.moments, site.all.extremes
    square = moments.mean.square() + moments.variance
    alive = moments.variance > 0
    if int(alive.sum()) < 2:
        return None
    median = float(square[alive].median().sqrt())
    unit = int(top.largest.argmax())
    count = max(1, round(0.01 * site.dim))
    largest = torch.topk(square, count)
    share = float(largest.values.sum() / square.sum())
    same = top.position[top.unit == unit]
    position = int(same[0]) if len(same) > 1 and bool((same == same[0]).all()) else None
    if site.all.key == site.schema.key:
        position = None
    deviation, mean = float(moments.variance[unit].sqrt()), float(moments.mean[unit].abs())
    return Dominance(
        ratio=float(top.largest[unit]) / median,
        unit=unit,
        position=position,
        steady=deviation < steady * mean,
        share=share,
        units=tuple(sorted(largest.indices.tolist())),
        fair=share * site.dim / count,
    )


def _mean_shares(site: SiteEvidence, units: tuple[int, ...]) -> tuple[float, float]:
    """Return the mean row's share of the rows' mean square, with and without some units.

    It is the mean cosine of two rows only if all rows are equally long.
    """
    kept = torch.ones(site.dim, dtype=torch.bool)
    kept[list(units)] = False
    mean, variance = site.all.moments.mean.cpu(), site.all.moments.variance.cpu()

    def share(chosen: torch.Tensor) -> float:
        centre = float(mean[chosen].square().sum())
        spread = float(variance[chosen].sum())
        return centre / (centre + spread) if centre + spread > 0 else 0.0

    return share(torch.ones_like(kept)), share(kept)
