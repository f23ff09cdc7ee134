"""DATA against OTHER: separation at each site, and alarms on rows of OTHER."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.hashing import base_hashes, draws
from sonde.core.instrument import score_needs
from sonde.core.plan import Split
from sonde.findings.evidence.answers.labels import class_name
from sonde.findings.evidence.once import once
from sonde.findings.evidence.record import DataEvidence, Evidence, SiteEvidence
from sonde.findings.evidence.shared_rows import SharedRows, one_per_group, shared_rows
from sonde.findings.evidence.versus.alarms import Alarms, fuse
from sonde.findings.evidence.versus.column_moves import columns_section
from sonde.findings.evidence.versus.label_comparison import labels_of_both
from sonde.stats import CalibratedScorer, HashSampleState
from sonde.stats.auroc import auroc
from sonde.stats.auroc_bounds import auroc_bounds, rank_p_value, separation
from sonde.stats.linear_classifiers import fitted_on, metric_times

LEAST_GROUPS = 50
LEVEL = 0.001
CONFIDENCE = 0.95


@dataclass(frozen=True, eq=False)
class VersusEvidence:
    """Evidence from a second pass over OTHER, and detectors fitted on half of DATA.

    Parameters
    ----------
    other_sites : mapping of site key to SiteEvidence
    other_columns : mapping of column to HashSampleState
    other_data : DataEvidence
    scorers : mapping of (method, site key) to Scorer
        Fitted on the groups of DATA that a split with ``held`` and the seed of DATA does not hold
        out. Their own calibrations are not used: the sampled rows that were held out calibrate the
        fused score.
    alpha : float, default=0.01
        Promised rate of false alarms.
    held : float, default=0.5
        Share of DATA's groups that was held out.
    mended : callable or None, default=None
        Runs the model on rows of OTHER with the changes of columns undone (``column_gain``).
    asked : tuple of (method, site key), default=()
        The detectors that were to be fitted; some may lack rows, labels or logits.
    other_counters : mapping
        Of OTHER, as those of ``Evidence``.
    """

    other_sites: Mapping[str, SiteEvidence]
    other_columns: Mapping[str, HashSampleState]
    other_data: DataEvidence
    scorers: Mapping[tuple[str, str], Any]
    alpha: float = 0.01
    held: float = 0.5
    mended: Callable[..., Any] | None = None
    asked: tuple[tuple[str, str], ...] = ()
    other_counters: Mapping[str, int] = field(default_factory=dict[str, int])

    @cached_property
    def other(self) -> Evidence:
        """The evidence of OTHER alone."""
        return Evidence(tuple(self.other_sites.values()), self.other_columns, self.other_data,
                        self.other_counters)  # fmt: skip

    def rows_at(self, key: str) -> tuple[Float[Tensor, "row dim"], list[str]] | None:
        """Return OTHER's sampled rows at a site and their ids, or None if OTHER lacks the site."""
        keys = [s.schema.key for s in self.other.sites]
        if key not in keys:
            return None
        shared = shared_rows(self.other)
        order = shared.order
        ids = [""] * len(shared.group) if order is None else self.other.ids_of(order)
        return shared.x(keys.index(key)), [str(i) for i in ids]


@dataclass(frozen=True)
class SiteShift:
    """AUROC of DATA against OTHER at one site; ``p`` is Bonferroni-corrected over sites."""

    name: str
    key: str
    auroc: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, eq=False)
class DataComparison:
    """DATA against OTHER.

    Parameters
    ----------
    sites : tuple of SiteShift
        In order of execution.
    length_auroc : float or None
        AUROC of the length of the input alone.
    n_data, n_other : int
        Groups.
    """

    sites: tuple[SiteShift, ...]
    length_auroc: float | None
    n_data: int
    n_other: int

    @property
    def best(self) -> SiteShift:
        """The site with the highest AUROC."""
        return max(self.sites, key=lambda s: s.auroc)

    def first(self, above: float) -> SiteShift | None:
        """Return the first site with a lower bound above a value and a small ``p``."""
        return next((s for s in self.sites if s.low > above and s.p < LEVEL), None)


@once
def compare(evidence: Evidence) -> DataComparison | None:
    """Compare DATA with OTHER; None without OTHER or with fewer than 50 groups.

    At each site a direction is fitted in closed form on half of the groups (by hash: a group that
    is in both data sets is on one side only). The AUROC is over one row of each remaining group.
    """
    versus = evidence.versus
    if versus is None or min(evidence.n_groups, versus.other.n_groups) < LEAST_GROUPS:
        return None
    own, theirs = shared_rows(evidence), shared_rows(versus.other)
    keys = [s.schema.key for s in evidence.sites]
    both = [(i, s) for i, s in enumerate(versus.other.sites) if s.schema.key in keys]
    sites = []
    for j, site in both:
        i = keys.index(site.schema.key)
        wide = evidence.sites[i].moments.scatter.ndim == 1
        scores = held_out_scores(own.x(i), theirs.x(j), own.group, theirs.group, wide)
        sites.append(_shift(site, *scores, len(both)))
    if not sites:
        return None
    return DataComparison(
        tuple(sites), _length_auroc(own, theirs), evidence.n_groups, versus.other.n_groups
    )


def held_out_scores(
    x: Float[Tensor, "row dim"],
    y: Float[Tensor, "row2 dim"],
    group: Int[Tensor, "row"],
    group2: Int[Tensor, "row2"],
    wide: bool,
) -> tuple[Float[Tensor, "kept"], Float[Tensor, "kept2"]]:
    """Return held-out scores along a direction from ``x`` to ``y``, fitted on half the groups.

    One row of each group of the other half is scored.
    """
    fit_x, fit_y = _first_half(group), _first_half(group2)
    rows = torch.cat([x[fit_x], y[fit_y]])
    label = torch.cat([torch.zeros(int(fit_x.sum())), torch.ones(int(fit_y.sum()))]).long()
    fitted = fitted_on(rows, label, wide)
    if len(fitted.labels) < 2:
        return torch.zeros(1), torch.zeros(1)
    gap = (fitted.mean[1] - fitted.mean[0])[:, None]
    direction = metric_times(fitted.pooled, fitted.n_labelled, gap)[:, 0]
    x, y = x[~fit_x] - fitted.mean[0], y[~fit_y] - fitted.mean[0]
    own, other = one_per_group(group[~fit_x]), one_per_group(group2[~fit_y])
    return (x @ direction)[own], (y @ direction)[other]


def _first_half(group: Int[Tensor, "row"]) -> Bool[Tensor, "row"]:
    return torch.remainder(group, 2) == 0


def _shift(site: SiteEvidence, mine: Tensor, theirs: Tensor, n_sites: int) -> SiteShift:
    value = auroc(mine, theirs).value
    low, high = auroc_bounds(value, len(mine), len(theirs), LEVEL / n_sites)
    p = min(1.0, rank_p_value(mine, theirs) * n_sites)
    return SiteShift(site.name, site.schema.key, value, low, high, p)


@once
def matched_shift(evidence: Evidence) -> dict[str, Any] | None:
    """Return the best site's AUROC between DATA and OTHER with equal counts of each label.

    Then different shares of labels cannot tell them apart. None if labels are not known, or if
    fewer than 50 groups of a side are left.
    """
    comparison = compare(evidence)
    if comparison is None or evidence.versus is None:
        return None
    sides = [shared_rows(side) for side in (evidence, evidence.versus.other)]
    names = [_label_names(side) for side in sides]
    kept: list[list[int]] = [[], []]
    for name in sorted(set(names[0]) & set(names[1])):
        n = min(len(names[0][name]), len(names[1][name]))
        for side in range(2):
            kept[side] += names[side][name][:n]
    if min(len(torch.unique(s.group[k])) for s, k in zip(sides, kept, strict=True)) < LEAST_GROUPS:
        return None
    keys = [[site.schema.key for site in side.evidence.sites] for side in sides]
    at = [named.index(comparison.best.key) for named in keys]
    rows = [s.x(i)[sorted(k)] for s, i, k in zip(sides, at, kept, strict=True)]
    groups = [s.group[sorted(k)] for s, k in zip(sides, kept, strict=True)]
    wide = evidence.sites[at[0]].moments.scatter.ndim == 1
    scores = held_out_scores(rows[0], rows[1], groups[0], groups[1], wide)
    shift = _shift(sides[1].evidence.sites[at[1]], *scores, 1)
    n_rows = min(map(len, groups))
    return {"site": shift.key, "auroc": shift.auroc, "low": shift.low, "high": shift.high,
            "n_rows": n_rows}  # fmt: skip


def _label_names(side: SharedRows) -> dict[str, list[int]]:
    """Return the rows of each label by its name."""
    label, by_name = side.column("label"), dict[str, list[int]]()
    for i, k in enumerate([] if label is None else label.tolist()):
        if k >= 0:
            by_name.setdefault(class_name(side.evidence.data, k), []).append(i)
    return by_name


def _length_auroc(mine: SharedRows, theirs: SharedRows) -> float | None:
    a, b = mine.column("length"), theirs.column("length")
    if a is None or b is None or len(torch.unique(torch.cat([a, b]))) < 2:
        return None
    return separation(a[one_per_group(mine.group)], b[one_per_group(theirs.group)])


@dataclass(frozen=True, eq=False)
class DetectorScores:
    """Scores of every usable detector, on held-out rows of DATA and on OTHER."""

    own: Mapping[tuple[str, str], Float[Tensor, "row"]]
    own_group: Int[Tensor, "row"]
    other: Mapping[tuple[str, str], Float[Tensor, "row2"]]
    other_group: Int[Tensor, "row2"]


@once
def scored(evidence: Evidence) -> DetectorScores | str:
    """Return the detectors' scores on both data sets, or the reason for their absence."""
    versus = evidence.versus
    if versus is None:
        return "there is no second data set (--versus OTHER)"
    if not versus.scorers:
        return "no detector could be fitted on half of DATA"
    own_rows, theirs = shared_rows(evidence), shared_rows(versus.other)
    held = _held_rows(evidence, versus.held)
    if held is None:
        return "the order of the rows is not known, so no rows can be held out"
    usable = [name for name in versus.scorers if _can_score(name, versus, own_rows, theirs)]
    if not usable:
        return "OTHER, or DATA, lacks the sites or columns that the detectors score"
    own = {name: _scores(versus.scorers[name], own_rows, name[1])[held] for name in usable}
    other = {name: _scores(versus.scorers[name], theirs, name[1]) for name in usable}
    return DetectorScores(own, own_rows.group[held], other, theirs.group)


@once
def alarms(evidence: Evidence) -> Alarms | str:
    """Return the calibrated alarms on OTHER, or the reason for their absence."""
    detectors = scored(evidence)
    if isinstance(detectors, str):
        return detectors
    return fuse(
        detectors.own,
        detectors.own_group,
        detectors.other,
        detectors.other_group,
        evidence.versus.alpha,
    )


def detector_rows(evidence: Evidence) -> list[dict[str, Any]]:
    """Return each detector's separation of OTHER from held-out rows of DATA, by site.

    One row of each group counts. A detector that could not be fitted has no AUROC.
    """
    detectors = scored(evidence)
    rows = []
    for method, key in evidence.versus.asked:
        row: dict[str, Any] = {"method": method, "site": key}
        row |= dict.fromkeys(("auroc", "low", "high"))
        if isinstance(detectors, DetectorScores) and (method, key) in detectors.own:
            own = detectors.own[method, key][one_per_group(detectors.own_group)]
            other = detectors.other[method, key][one_per_group(detectors.other_group)]
            value = auroc(own, other).value
            low, high = auroc_bounds(value, len(own), len(other), (1 - CONFIDENCE) / 2)
            row |= {"auroc": value, "low": low, "high": high}
        rows.append(row)
    return rows


def _held_rows(evidence: Evidence, share: float) -> Bool[Tensor, "row"] | None:
    """Return the shared rows of DATA that no detector was fitted on."""
    order = shared_rows(evidence).order
    if order is None:
        return None
    keys = [evidence.data.group_keys[i] for i in order.tolist()]
    base = base_hashes(keys, "split", evidence.data.seed)
    zero = torch.zeros(len(base), dtype=torch.int64).numpy()
    return Split(share, evidence.data.seed).is_held(draws(base, zero, zero))


def _inner(scorer: Any) -> Any:
    return scorer.scorer if isinstance(scorer, CalibratedScorer) else scorer


def _can_score(
    name: tuple[str, str], versus: VersusEvidence, mine: SharedRows, theirs: SharedRows
) -> bool:
    keys = [{s.schema.key for s in rows.evidence.sites} for rows in (mine, theirs)]
    needs = [c for c in score_needs(_inner(versus.scorers[name])) if c != "x"]
    have = all(rows.column(c) is not None for c in needs for rows in (mine, theirs))
    return have and all(name[1] in k for k in keys)


def _scores(scorer: Any, rows: SharedRows, key: str) -> Float[Tensor, "row"]:
    site = [s.schema.key for s in rows.evidence.sites].index(key)
    columns = [rows.x(site) if c == "x" else rows.column(c) for c in score_needs(_inner(scorer))]
    scores = _inner(scorer).score(*columns).detach().cpu().double()
    return torch.nan_to_num(scores, nan=math.inf, posinf=math.inf, neginf=-math.inf)


def versus_section(evidence: Evidence) -> dict[str, Any] | None:
    """Return the report's section on OTHER, or None without OTHER."""
    if evidence.versus is None:
        return None
    comparison, alarm = compare(evidence), alarms(evidence)
    sites = () if comparison is None else comparison.sites
    section: dict[str, Any] = {
        "n_data": evidence.n_groups,
        "n_other": evidence.versus.other.n_groups,
        "sites": [
            {"site": s.key, "auroc": s.auroc, "low": s.low, "high": s.high, "p": s.p} for s in sites
        ],
        "length_auroc": None if comparison is None else comparison.length_auroc,
        "best": None if comparison is None else comparison.best.key,
        "detectors": detector_rows(evidence),
        "alarm": None,
        "lead": None,
        "scores": None,
        "rows": [],
        "columns": columns_section(evidence),
        "labels": labels_of_both(evidence),
        "matched": matched_shift(evidence),
    }
    if isinstance(alarm, Alarms):
        shared = shared_rows(evidence.versus.other)
        assert shared.order is not None
        ids, order = evidence.versus.other.ids_of(shared.order), shared.order.tolist()
        section["alarm"] = alarm.total.facts()
        section["lead"] = None if alarm.lead is None else alarm.lead.facts()
        section |= alarm.surest.section(ids, order)
    return section
