"""SND002: a number format too small for the states."""

from dataclasses import dataclass
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.findings.rule import LEVELS, Breaks, Check, Figure, Panel, Rule, Theme
from sonde.findings.symptoms import Symptom
from sonde.findings.words.places import places, reached, rows_of, scan_command, sentence
from sonde.findings.words.text import percent

BITS = {"float64": 53, "float32": 24, "float16": 11, "bfloat16": 8}


@final
@dataclass(frozen=True)
class SND002(Rule):
    """Fraction of the variance due to rounding, and fraction of the number format's range in use.

    Parameters
    ----------
    precision_note, precision_warning, precision_error : float
        Share of a site's variance that is rounding.
    range_note, range_warning : float
        Largest magnitude over the largest number of the format.
    """

    precision_note: float = 1e-3
    precision_warning: float = 0.01
    precision_error: float = 0.25
    range_note: float = 1 / 16
    range_warning: float = 1 / 4
    title: ClassVar[str] = "The number format is too small"
    theme: ClassVar[Theme] = "run"
    symptoms: ClassVar[tuple[Symptom, ...]] = ("not finite", "quantised")
    breaks: ClassVar[Breaks] = "some answers"
    panel: ClassVar[Panel] = "spread"
    why: ClassVar[str] = (
        "Distances, correlations and mean differences at this site are partly rounding noise, "
        "or a slightly larger input would overflow."
    )
    fix: ClassVar[str] = "Load with --dtype float32, or with bfloat16 in place of float16."
    how: ClassVar[str] = (
        "Rounding: sum_j s_j^2 / 12 / sum_j var_j, where s_j is the spacing of representable "
        "numbers at the mean of unit j; this is a lower bound on the fraction of the variance "
        "that is due to rounding. Range: max |x| divided by the largest number of the type of "
        "the states."
    )
    false_positives: ClassVar[str] = (
        "A constant offset that the next layer removes makes this fraction large. It does not "
        "harm the model, but it does harm statistics of these states."
    )
    plant: ClassVar[str] = "Twenty Linear + ReLU with default initialisation; 30,000 in float16."
    twin: ClassVar[str] = "The same network with He initialisation; the 30,000 in bfloat16."

    def check(self, evidence: Evidence) -> Check:
        """Compare both fractions at every site with their limits and report the worst level."""
        if not evidence.sites:
            return self.withheld("no site has finite rows")
        tested = [r for s in evidence.sites for r in self._at(s)]
        hits = [r for r in tested if r[0] is not None]
        if not hits:
            site, share = max(((r[3], r[2]) for r in tested if r[1] == "p"), key=lambda p: p[1])
            figure = self._figure("rounding_share", share, self.precision_note, site, evidence)
            return self.clear(figure)
        level, kind, value, site, limit = max(hits, key=lambda r: (LEVELS.index(r[0]), r[2]))
        names = [r[3].name for r in hits if r[1] == kind]
        rows = f"{rows_of(site, evidence)}, {site.schema.dtype}."
        if kind == "p" and value >= 1:
            text = (
                f"At {places(names)}, neighbouring numbers of this type are further apart than "
                "the standard deviation of the states."
            )
        elif kind == "p":
            text = (
                f"Rounding accounts for {percent(value)} of the variance of states at "
                f"{places(names)} (limit {percent(limit)})."
            )
        else:
            text = (
                f"The largest state at {places(names)} reaches {percent(value)} of the largest "
                f"number of {site.schema.dtype} (limit {percent(limit)})."
            )
        name = "rounding_share" if kind == "p" else "range_share"
        return self.raised_with(
            level=level,
            sentence=sentence(text, rows),
            figure=self._figure(name, value, limit, site, evidence),
            sites=tuple(names),
            effect=min(1.0, value),
            next=scan_command(dtype="float32"),
        )

    def _at(self, site: SiteEvidence) -> list[tuple]:
        share, used = rounding_share(site), range_share(site)
        p = reached(share, self.precision_note, self.precision_warning, self.precision_error)
        r = reached(used, self.range_note, self.range_warning)
        return [
            (p[0] if p else None, "p", share, site, p[1] if p else self.precision_note),
            (r[0] if r else None, "r", used, site, r[1] if r else self.range_note),
        ]

    def _figure(
        self, name: str, value: float, limit: float, site: SiteEvidence, evidence: Evidence
    ) -> Figure:
        return Figure(
            name, value, unit="share", threshold=limit, n_rows=site.all.scalars.n,
            n_groups=evidence.n_groups,
            flags=("lost_precision",) if name == "rounding_share" and value >= limit else (),
        )  # fmt: skip


def rounding_share(site: SiteEvidence) -> float:
    """Return the fraction of a site's variance due to rounding; 0 if no unit varies."""
    moments = site.all.moments
    total = float(moments.variance.sum())
    if total <= 0:
        return 0.0
    step = spacing(moments.mean, site.schema.dtype)
    return float((step.square() / 12).sum()) / total


def spacing(x: Float[Tensor, "dim"], dtype: str) -> Float[Tensor, "dim"]:
    """Return the gap between neighbouring numbers of a type at ``|x|``; 0 at 0."""
    size = x.double().abs()
    _, exponent = torch.frexp(size)  # size = m 2^exponent with m in [0.5, 1)
    step = torch.ldexp(torch.ones_like(size), exponent - BITS.get(dtype, 24))
    return torch.where(size > 0, step, torch.zeros_like(size))


def range_share(site: SiteEvidence) -> float:
    """Return the largest magnitude divided by the largest number of the site's type."""
    largest = float(site.all.extremes.largest.max())
    kind = getattr(torch, site.schema.dtype, torch.float32)
    return largest / torch.finfo(kind).max if kind.is_floating_point else 0.0
