"""Activation patching: move states from one run to another to find what distinguishes two inputs.

``ActivationPatching`` runs the model for every point; ``AttributionPatching`` estimates all of them
from a few backwards. Not for one input alone: take an attribution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.chart import Chart, matrix
from sonde.core.errors import InputError
from sonde.core.explainer import Explainer
from sonde.core.few_groups import student_factor
from sonde.core.inputs import Model
from sonde.core.ranges import check_ranges
from sonde.core.result import Result
from sonde.core.site import Site
from sonde.engine.progress import Bar
from sonde.explain._points import Over, Points
from sonde.explain._runs import Goal, Side, States, TwoRuns
from sonde.tap.model.sites import Pattern

Direction = Literal["denoise", "noise"]
Replacement = Literal["run", "zero", "mean", "resample"]
SIDES: dict[str, tuple[Side, Side]] = {
    "denoise": ("corrupt", "clean"),
    "noise": ("clean", "corrupt"),
}
"""The run that is patched, and the one that states come from."""


@final
@dataclass(frozen=True, kw_only=True)
class PatchEffects(Result):
    """Effect of each point of each site on the number that distinguishes two runs.

    ``value`` is the share of the difference that a point brings, mean over pairs: 0 nothing, 1 all;
    it may leave [0, 1]. ``effects`` are the rises of the objective above ``base``; ``base`` and
    ``source`` are the objective of the two runs. ``n_dropped`` pairs have runs that do
    not differ. ``gap``, of estimates, is the root mean square of what they miss of real patches, as
    a share of the difference.
    """

    title: ClassVar[str] = (
        "Fraction of the difference between the two runs that each patch restores"
    )
    value: Float[Tensor, "site point"]  # pyright: ignore[reportGeneralTypeIssues]
    effects: Float[Tensor, "pair site point"]
    base: Float[Tensor, "pair"]
    source: Float[Tensor, "pair"]
    sites: tuple[str, ...]
    n_dropped: int = 0
    gap: float | None = None

    def best(self, n: int = 5) -> list[tuple[str, int, float]]:
        """Return the points with the largest fractions, as (site, point, fraction)."""
        value = self.value
        order = value.flatten().nan_to_num(-torch.inf).argsort(descending=True)[:n].tolist()
        width = value.shape[1]
        return [(self.sites[i // width], i % width, float(value.flatten()[i])) for i in order]

    def chart(self) -> Chart:
        """Return a map of sites and points."""
        rows = [
            {"site": site, "point": j, "share": share}
            for site, row in zip(reversed(self.sites), reversed(self.value.tolist()), strict=True)
            for j, share in enumerate(row)
        ]
        return matrix(self.title, rows, "point", "site", "share", two_sided=True)


@final
@dataclass(frozen=True)
class ActivationPatching(Explainer):
    """Fraction of the difference between two runs that one patched state restores.

    ``(m_patched - m_base) / (m_source - m_base)`` for every site and position, where ``m`` is the
    objective. Each layer's positions run as one batch, from that layer on; states that do not
    differ cost nothing.

    Range        share of the difference, around [0, 1]; 1 = all of it; not clamped.
    Cost         two forwards, and half a forward of ``positions`` examples for each layer.
    Assumes      inputs that belong together position by position.

    Parameters
    ----------
    how : {"denoise", "noise"}, default="denoise"
        ``denoise``: clean states into the corrupted run (what suffices); ``noise``: the other way
        (what is needed).
    over : {"positions", "units", "whole"}, default="positions"
        What of a site is one point.
    replace_by : {"run", "zero", "mean", "resample"}, default="run"
        What comes in: the other run's state; or zeros, the mean over examples and positions, or
        another example's state, of the run that is patched.
    tol : float, default=1e-6
        Pairs whose runs differ by less are dropped, and counted.
    rows : int, default=64
        Examples of one forward.
    seed : int, default=0
        Seed of the states that ``resample`` draws.

    Examples
    --------
    >>> net = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False))
    >>> net[1].weight.data = torch.tensor([[3.0, 1.0]])
    >>> clean, corrupt = torch.ones(1, 2), torch.zeros(1, 2)
    >>> patch = ActivationPatching(over="units")
    >>> patch.explain(net, clean, corrupt=corrupt, site="0").value.tolist()
    [[0.75, 0.25]]

    References
    ----------
    vig2020mediation
    """

    how: Direction = "denoise"
    over: Over = "positions"
    replace_by: Replacement = "run"
    tol: float = 1e-6
    rows: int = 64
    seed: int = 0
    paper: ClassVar[str] = "vig2020mediation"

    def __post_init__(self) -> None:
        check_ranges(self, how=get_args(Direction), over=get_args(Over))
        check_ranges(self, replace_by=get_args(Replacement))

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        corrupt: Any,
        site: Pattern | Sequence[Pattern] = "blocks",
        objective: Goal | None = None,
        progress: bool = False,
    ) -> PatchEffects:
        """Return the effect of each point.

        Parameters
        ----------
        model : Model or nn.Module
            Left as it was; eval mode is set meanwhile.
        inputs, corrupt : Tensor, tuple, dict or InputBatch
            What the model is called with, a pair of clean and corrupted inputs for each row.
        site : pattern or several, default="blocks"
            Every port but ``grad``; those of attentions cost whole forwards.
        objective : Objective, optional
            By default the logit of what the clean run predicts.
        progress : bool, default=False

        Raises
        ------
        InputError
            If the inputs do not belong together.
        SiteError
            If a site never runs.
        """
        runs = TwoRuns(model, inputs, corrupt, objective)
        return self.between(runs, runs.sites(site), progress=progress)

    def between(
        self, runs: TwoRuns, sites: Sequence[Site], *, progress: bool = False
    ) -> PatchEffects:
        """Return the effect of each point in two runs that are already open."""
        base_side, source_side = SIDES[self.how]
        base, old = runs.states(base_side, sites)
        source, new = runs.states(source_side, sites)
        new = {site: self._replacement(runs, old[site], new[site]) for site in sites}
        points = _points(runs, old, self.over)
        effects = torch.zeros(len(base), len(sites), points[sites[0]].n, dtype=torch.float64)
        with Bar("patch", sum(p.n for p in points.values()), shown=progress) as bar:
            for i, site in enumerate(sites):
                moved = points[site].differ(old[site], new[site])
                todo = moved.nonzero().flatten().tolist()
                bar.advance(points[site].n - len(todo))
                swaps = points[site].swapped(old[site], new[site], todo, self.rows)
                for part, values in swaps:
                    numbers = runs.patched(base_side, site, values)
                    effects[:, i, part] = (numbers - base).double().cpu().T
                    bar.advance(len(part))
        conventions = {"method": repr(self), "restart": _restart(runs, base_side, sites)}
        return summed(runs, sites, points, effects, (base, source), self.tol, conventions)

    def _replacement(self, runs: TwoRuns, old: Tensor, new: Tensor) -> Tensor:
        if self.replace_by == "run":
            return new
        if self.replace_by == "zero":
            return torch.zeros_like(old)
        if self.replace_by == "resample":
            if len(old) < 2:
                raise InputError(
                    "ActivationPatching: resample needs two pairs or more, got one. Give more "
                    "pairs, or replace_by='run'."
                )
            generator = torch.Generator().manual_seed(self.seed)
            step = int(torch.randint(1, len(old), (1,), generator=generator))
            return old.roll(step, 0)  # no example meets itself
        mask = runs.call.mask
        has_mask = mask is not None and mask.shape == old.shape[:2]
        kept = old[mask.to(old.device)] if has_mask and mask is not None else old.flatten(0, -2)
        return kept.mean(0).expand_as(old)


@final
@dataclass(frozen=True)
class AttributionPatching(Explainer):
    """First-order estimate of every patch: the difference of the states times the gradient.

    ``(a_source - a_base) . dm/da``: one backward for all points. With ``ig_steps`` the gradient is
    the mean along a way from base to source, which misses less where the model bends.

    Range        share of the difference, as of ``ActivationPatching``; ``effects`` in units of the
                 objective.
    Cost         two forwards and a backward; ``path="input"``: a forward and backward for each
                 step; ``path="site"``: as many for each site.
    Assumes      little curvature between the runs: ``gap`` says by how much the estimates miss
                 ``check`` real patches, drawn at random.
    Differs      from attribution patching as first published, if ``ig_steps > 1``: gradients are
                 averaged along the way.

    Parameters
    ----------
    how : {"denoise", "noise"}, default="denoise"
        Which run the gradient is taken in, as of ``ActivationPatching``.
    over : {"positions", "units", "whole"}, default="positions"
        What is patched at once: a position of a text, a unit, or the whole site.
    ig_steps : int, default=5
        1 is the gradient of the patched run alone; else Gauss-Legendre nodes of the way.
    path : {"input", "site"}, default="input"
        Whether the inputs (embeddings of tokens) go from base to source, or each site's states.
    check : int, default=8
        How many points are patched for ``gap``.
    tol : float, default=1e-6
        Smallest difference of the two runs' objectives that counts as one.
    seed : int, default=0
        Seed of the points that are checked by a real patch.

    Examples
    --------
    >>> net = nn.Sequential(nn.Identity(), nn.Linear(2, 1, bias=False))
    >>> net[1].weight.data = torch.tensor([[3.0, 1.0]])
    >>> clean, corrupt = torch.ones(1, 2), torch.zeros(1, 2)
    >>> found = AttributionPatching(over="units").explain(net, clean, corrupt=corrupt, site="0")
    >>> found.value.tolist(), found.gap
    ([[0.75, 0.25]], 0.0)

    References
    ----------
    nanda2023attribution
    hanna2024faith
    """

    how: Direction = "denoise"
    over: Over = "positions"
    ig_steps: int = 5
    path: Literal["input", "site"] = "input"
    check: int = 8
    tol: float = 1e-6
    seed: int = 0
    paper: ClassVar[str] = "nanda2023attribution"

    def __post_init__(self) -> None:
        check_ranges(self, how=get_args(Direction), over=get_args(Over), path=("input", "site"))
        check_ranges(self, ig_steps=">= 1", check=">= 0")

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        corrupt: Any,
        site: Pattern | Sequence[Pattern] = "blocks",
        objective: Goal | None = None,
    ) -> PatchEffects:
        """Return the estimated effect of each point; see ``ActivationPatching.explain``."""
        runs = TwoRuns(model, inputs, corrupt, objective)
        return self.between(runs, runs.sites(site))

    def between(self, runs: TwoRuns, sites: Sequence[Site]) -> PatchEffects:
        """Return the estimated effect of each point in two runs that are already open."""
        base_side, source_side = SIDES[self.how]
        source, new = runs.states(source_side, sites)
        if self.ig_steps == 1:
            base, old, slopes = runs.gradients(base_side, sites)
        else:
            base, old = runs.states(base_side, sites)
            if self.path == "input":
                slopes = mean_gradients(runs, sites, self.how, self.ig_steps)
            else:
                slopes = _gradients_at(runs, sites, self.how, self.ig_steps, old, new)
        points = _points(runs, old, self.over)
        parts = [points[s].sums(slopes[s] * (new[s] - old[s])).double().cpu() for s in sites]
        effects = torch.stack(parts, 1)
        effects = effects.unflatten(0, (len(base), -1)).sum(1)
        gap = self._gap(runs, sites, points, effects, (base, source), old, new)
        conventions = {"method": repr(self)}
        ends = (base, source)
        return summed(runs, sites, points, effects, ends, self.tol, conventions, gap=gap)

    def _gap(
        self,
        runs: TwoRuns,
        sites: Sequence[Site],
        points: dict[Site, Points],
        effects: Float[Tensor, "pair site point"],
        ends: tuple[Tensor, Tensor],
        old: States,
        new: States,
    ) -> float | None:
        n, base_side = points[sites[0]].n, SIDES[self.how][0]
        generator = torch.Generator().manual_seed(self.seed)
        drawn = torch.randperm(len(sites) * n, generator=generator)[: self.check].sort().values
        missed: list[Tensor] = []
        for i, site in enumerate(sites):
            chosen = drawn[drawn // n == i] % n
            swaps = points[site].swapped(old[site], new[site], chosen.tolist(), 64)
            for part, values in swaps:
                real = (runs.patched(base_side, site, values) - ends[0]).double().cpu()
                missed.append((real.T - effects[:, i, part]).T)
        if not missed:
            return None
        whole = (ends[1] - ends[0]).double().cpu()
        kept = whole.abs() >= self.tol
        shares = torch.cat(missed)[:, kept] / whole[kept]
        return float(shares.square().mean().sqrt()) if shares.numel() else None


def mean_gradients(runs: TwoRuns, sites: Sequence[Site], how: Direction, steps: int) -> States:
    """Return the gradient at sites, averaged over inputs between base and source."""
    base, source = SIDES[how]
    entry, total = runs.entry(), dict[Site, Tensor]()
    ends = (
        [] if entry is None else [runs.states(side, [entry])[1][entry] for side in (base, source)]
    )
    for node, weight in _nodes(steps):
        if entry is None:
            at = runs.between(node if how == "denoise" else 1 - node)
            _, _, slopes = at.gradients(base, sites)
        else:
            state = torch.lerp(ends[0], ends[1], node)
            _, _, slopes = runs.gradients(base, sites, lambda _, x, s=state: s, [entry])
        for site, gradient in slopes.items():
            total[site] = total.get(site, 0) + weight * gradient
    return total


def _nodes(steps: int) -> list[tuple[float, float]]:
    """Return Gauss-Legendre nodes in [0, 1] and their weights."""
    nodes, weights = np.polynomial.legendre.leggauss(steps)
    return [(float(t), float(w)) for t, w in zip((nodes + 1) / 2, weights / 2, strict=True)]


def _gradients_at(
    runs: TwoRuns, sites: Sequence[Site], how: Direction, steps: int, old: States, new: States
) -> States:
    """Return the gradient at each site, averaged over the site's states between base and source."""
    total: States = {}
    for site in sites:
        for node, weight in _nodes(steps):
            state = torch.lerp(old[site], new[site], node)
            _, _, slopes = runs.gradients(SIDES[how][0], [site], lambda _, x, s=state: s, [site])
            total[site] = total.get(site, 0) + weight * slopes[site]
    return total


def summed(
    runs: TwoRuns,
    sites: Sequence[Site],
    points: dict[Site, Points],
    effects: Float[Tensor, "pair site point"],
    ends: tuple[Float[Tensor, "pair"], Float[Tensor, "pair"]],
    tol: float,
    conventions: dict[str, Any],
    gap: float | None = None,
) -> PatchEffects:
    """Return the mean fractions over the pairs that differ and whose point is not padding."""
    base, source = (x.double().cpu() for x in ends)
    has = torch.ones_like(effects, dtype=torch.bool)
    mask, first = runs.call.mask, points[sites[0]]
    if first.over == "positions" and mask is not None and mask.shape[1] == first.n:
        rows = mask.shape[0] // len(base)
        has &= mask[::rows].cpu()[:, None, :]
    mean, se, kept = mean_share(effects, source - base, tol, has)
    return PatchEffects(
        value=mean,
        se=se,
        n=int(kept.sum()),
        direction="higher",
        flags=() if bool(mean.isfinite().all()) else ("dead",),
        conventions={
            **conventions,
            "objective": runs.objective.name,
            "average": "mean over pairs of each pair's fraction",
            **({} if se is not None else {"se": "none: a single pair"}),
        },
        effects=effects,
        base=base,
        source=source,
        sites=tuple(map(str, sites)),
        n_dropped=int((~kept).sum()),
        gap=gap,
    )


def mean_share(
    effects: Float[Tensor, "pair *part"],
    whole: Float[Tensor, "pair"],
    tol: float,
    has: Bool[Tensor, "pair *part"] | None = None,
) -> tuple[Float[Tensor, "*part"], Float[Tensor, "*part"] | None, Bool[Tensor, "pair"]]:
    """Return the mean fraction of each part, its standard error, and the pairs that differ."""
    wide = [-1, *[1] * (effects.ndim - 1)]
    kept = whole.abs() >= tol
    counted = kept.view(wide).expand_as(effects)
    counted = counted if has is None else counted & has
    share = effects / torch.where(kept, whole, 1.0).view(wide)
    n = counted.sum(0)
    mean = (share * counted).sum(0) / n
    if int(kept.sum()) < 2:
        return mean, None, kept
    squares = ((share - mean).square() * counted).sum(0)
    error = torch.where(n > 1, (squares / (n * (n - 1)).clamp(min=1)).sqrt(), torch.nan)
    counts, which = torch.unique(n, return_inverse=True)
    factor = torch.tensor([student_factor(int(c)) for c in counts], dtype=error.dtype)
    return mean, error * factor.to(error.device)[which], kept


def _points(runs: TwoRuns, states: States, over: Over) -> dict[Site, Points]:
    points_of = {site: Points.of(x, site, runs.module, over) for site, x in states.items()}
    sizes = {str(site): points.n for site, points in points_of.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(
            f"patching: expected sites with the same number of {over}, got {sizes}. Trace the "
            "sites one by one, or use over='whole'."
        )
    return points_of


def _restart(runs: TwoRuns, side: Side, sites: Sequence[Site]) -> str:
    if reason := runs.recorded(side).whole_because:
        return f"whole forward passes: {reason}"
    whole = [str(site) for site in sites if site.port not in ("out", "in")]
    return f"whole forward passes at {', '.join(whole)}" if whole else "from each site on"
