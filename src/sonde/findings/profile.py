"""The numbers and curves of every site, with or without a finding."""

import math
from typing import Any

import torch

from sonde.core.result import Result
from sonde.engine.errorbars import SampleRows, Term, results_with_error
from sonde.findings.evidence.modules.block_updates import update_per_spread
from sonde.findings.evidence.record import Evidence, SiteEvidence
from sonde.measure import (
    EffectiveRank,
    LayerCKA,
    ParticipationRatio,
    Spectrum,
    StableRank,
)
from sonde.stats import Moments, MomentsState

CURVE_POINTS = 64
RANKS = {
    "participation_ratio": ParticipationRatio,
    "stable_rank": StableRank,
    "effective_rank": EffectiveRank,
}

Number = dict[str, float | None]


def number(
    value: float | torch.Tensor | None,
    se: float | torch.Tensor | None = None,
    null: float | torch.Tensor | None = None,
) -> Number:
    """Return a number for JSON: NaN and infinity become None."""
    return {"value": _json(value), "se": _json(se), "null": _json(null)}


def _json(value: float | torch.Tensor | None) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def of_result(result: Result) -> Number:
    """Return a result's value, error and null for JSON."""
    return number(result.value, result.se, result.null)


def site_profile(site: SiteEvidence, evidence: Evidence, error_bars: bool = True) -> dict[str, Any]:
    """Return the JSON of one site: named numbers, and its curves."""
    return {
        "site": site.schema.key,
        "order": site.schema.site.order,
        "dim": site.dim,
        "n_rows": site.n_rows,
        "n_nonfinite": site.n_nonfinite,
        "reducer": str(site.schema.reducer),
        "module": site.schema.module,
        "values": site_values(site, evidence, error_bars),
        "curves": _curves(site),
    }


def site_values(
    site: SiteEvidence, evidence: Evidence, error_bars: bool = False
) -> dict[str, Number]:
    """Return the numbers of one site by name."""
    values: dict[str, Number] = {
        "median_norm": number(site.all.norms.median_all),
        "spread": number(_spread(site.all.moments)),
        "dead_share": number(_dead_share(site)),
    }
    if site.all.update is not None and site.all.received is not None:
        change = update_per_spread(site.all.update, site.all.received)
        values["update_per_spread"] = number(change)
    if site.moments.n > 1:
        ranks = _ranks(site, evidence, error_bars)
        values |= {name: of_result(result) for name, result in zip(RANKS, ranks, strict=True)}
    return values


def _ranks(site: SiteEvidence, evidence: Evidence, error_bars: bool) -> list[Result]:
    """Return the ranks from the moments of the pass, with error bars from the sample.

    A wide site keeps variances only, so its ranks come from its sampled rows.
    """
    if site.is_wide:
        return [kind(source="sample").result(site.sample) for kind in RANKS.values()]
    sample = None
    if error_bars:
        rows = {site.schema.key: {"x": site.sample.rows}}
        sample = SampleRows(rows, site.sample.group, evidence.n_groups, site.sample.n)
    terms = [Term("rows", None, Moments(), (site.schema.key,))]
    ranks = [kind() for kind in RANKS.values()]
    return results_with_error(ranks, {"rows": site.moments}, terms, sample)


def _spread(moments: MomentsState) -> float:
    norm = float(moments.mean.norm())
    return math.nan if norm == 0 else math.sqrt(float(moments.variance.sum())) / norm


def _dead_share(site: SiteEvidence) -> float:
    scalars = site.all.scalars
    return float((scalars.low == scalars.high).double().mean())


def _curves(site: SiteEvidence) -> dict[str, Any]:
    spectrum = Spectrum().result(site.sample if site.is_wide else site.moments)
    if "dead" in spectrum.flags:
        return {}
    index = _log_points(len(spectrum.share))
    share = spectrum.share[[i - 1 for i in index]]
    return {"spectrum": {"x": [float(i) for i in index], "y": share.tolist(), "null": None}}


def _log_points(n: int) -> list[int]:
    if n <= CURVE_POINTS:
        return list(range(1, n + 1))
    points = torch.logspace(0, math.log10(n), CURVE_POINTS).round().int().tolist()
    return sorted(set(points))


def similarity(evidence: Evidence) -> dict[str, Any] | None:
    """Return debiased CKA of all pairs of sites on the samples; None for fewer than two sites."""
    if len(evidence.sites) < 2:
        return None
    result = LayerCKA().result(samples=tuple(s.sample for s in evidence.sites))
    return {
        "sites": [s.schema.key for s in evidence.sites],
        "cka": _matrix(result.value),
        "se": None if result.se is None else _matrix(result.se),
        "null": _json(result.null if isinstance(result.null, float) else 0.0),
        "n_rows": result.n,
    }


def _matrix(values: Any) -> list[list[float | None]]:
    return [[_json(v) for v in row] for row in torch.as_tensor(values).tolist()]


def site_units(site: SiteEvidence, named: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the JSON of a site's units: quantiles of their size, and the named units."""
    moments, scalars = site.all.moments, site.all.scalars
    rms = (moments.variance + moments.mean.square()).sqrt()
    points = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=rms.dtype)
    constant = scalars.low == scalars.high
    dead = constant & (scalars.low == 0)
    return {
        "site": site.schema.key,
        "bands": [_json(v) for v in torch.quantile(rms, points)],
        "n_dead": int(dead.sum()),
        "n_constant": int((constant & ~dead).sum()),
        "named": named,
    }


def unit_facts(site: SiteEvidence, unit: int, codes: list[str]) -> dict[str, Any]:
    """Return known facts about a unit that a finding names."""
    moments, scalars = site.all.moments, site.all.scalars
    rms = (moments.variance[unit] + moments.mean[unit].square()).sqrt()
    return {
        "unit": unit,
        "rms": _json(rms),
        "zero_share": _json(scalars.zeros[unit] / max(1, scalars.n)),
        "max": _json(site.all.extremes.largest[unit]),
        "codes": codes,
    }
