"""Test whether the model uses a direction that changes the answer when it is patched.

A patch along a direction can work through two parts that do nothing by themselves: one that varies
with the inputs but is read by nobody, and one that is read but never varies. Not for the residual
stream alone, where everything is read later: give all readers, and see ``conventions["readers"]``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sonde.core.errors import InputError, ShapeError
from sonde.core.explainer import Explainer
from sonde.core.inputs import Model
from sonde.core.result import Result
from sonde.explain._runs import Goal, TwoRuns
from sonde.explain.patching import SIDES, Direction, mean_share
from sonde.tap.model.sites import Pattern

PARTS = ("direction", "row part", "null part", "site", "random")
QUANTILES = (0.001, 0.999)


@final
@dataclass(frozen=True, kw_only=True)
class SubspaceVerdict(Result):
    """Effect of a direction, and of each of its parts.

    ``value`` is the effect of the direction as a share of what the whole site brings. ``verdict``
    is ``illusory`` or ``not shown``, never that a direction is real. ``effects`` are the mean
    effects of ``PARTS`` in units of the objective: the direction, its part that readers see, its
    part that none of them sees (0 by construction), the whole site, and a random direction.
    ``null_share`` is the squared length of the unseen part; ``driving_share`` how much of the swing
    comes from it; ``variance`` and ``separation`` (d' between the two runs) are of the row and the
    null part; ``out_of_range`` is the share of patched coordinates outside the range of the rows.
    """

    title: ClassVar[str] = "Effect of a direction, as a fraction of the effect of its site"
    verdict: Literal["illusory", "not shown"]
    effects: dict[str, float]
    null_share: float
    driving_share: float
    variance: tuple[float, float]
    separation: tuple[float, float]
    out_of_range: float
    row_part: Float[Tensor, "dim"]
    null_part: Float[Tensor, "dim"]


@final
@dataclass(frozen=True)
class SubspacePatch(Explainer):
    """Patch along one direction, and along its parts that the next layers do and do not read.

    With unit ``v`` and the stack ``W`` of everything that reads the site next, ``v = v_row +
    v_null`` where ``W v_null = 0``. ``h_b + v v'(h_s - h_b)`` may owe its effect to a swing of
    ``v_null . h`` that pushes a dormant ``v_row``: then ``v_row`` alone does little and hardly
    differs between the runs. The verdict is ``illusory`` if the direction has more than ``most`` of
    the site's effect, ``v_row`` less than ``least`` of the direction's, and its d' is less than
    ``quiet`` times the direction's.

    Range        share of the site's effect; 1 = all; not clamped.
    Cost         two forwards, and five of the rest of the model.
    Assumes      readers that are given one by one: composed into one they split every direction.
                 Two pairs or more, for d'.
    Differs      from the paper: effects are compared along unit directions, and the thresholds are
                 ours.

    Parameters
    ----------
    how : {"denoise", "noise"}, default="denoise"
        Which run is patched: states of the source come into the base run (``denoise``), or the
        reverse (``noise``).
    most, least, quiet : float, default=0.5, 0.5, 0.25
        Bounds of the verdict ``illusory``, which are fractions of the site's effect, of the
        direction's effect and of the direction's d'.
    rtol : float, default=1e-5
        Singular values of the readers below this share of the largest count as 0.
    tol : float, default=1e-6
        Smallest difference of the two runs' objectives that counts as one.
    seed : int, default=0
        Seed of the random direction that gives the null.

    References
    ----------
    makelov2024illusion
    """

    how: Direction = "denoise"
    most: float = 0.5
    least: float = 0.5
    quiet: float = 0.25
    rtol: float = 1e-5
    tol: float = 1e-6
    seed: int = 0
    paper: ClassVar[str] = "makelov2024illusion"

    def explain(
        self,
        model: Model | nn.Module,
        inputs: Any,
        *,
        corrupt: Any,
        direction: Float[Tensor, "dim"],
        readers: Float[Tensor, "_out _dim"] | Sequence[Float[Tensor, "_out _dim"]],
        site: Pattern = "",
        objective: Goal | None = None,
        position: int | None = None,
    ) -> SubspaceVerdict:
        """Return the effect of the direction at a site, and of its parts.

        Parameters
        ----------
        model, inputs, corrupt, objective
            As of ``ActivationPatching.explain``.
        direction : Float[Tensor, "dim"]
            Need not have unit length.
        readers : Float[Tensor, "out dim"] or several
            Weights of every layer that reads the site next, such as an MLP's down projection.
        site : pattern
        position : int, optional
            The position that is patched; by default all positions.

        Raises
        ------
        ShapeError
            If direction, readers and site have different widths.
        InputError
            If the direction is zero, or nothing reads it.
        """
        runs = TwoRuns(model, inputs, corrupt, objective)
        (at,) = runs.sites(site)
        base_side, source_side = SIDES[self.how]
        base, old = runs.states(base_side, [at])
        source, new = runs.states(source_side, [at])
        v = direction.double()
        weights = _stacked(readers, len(v), old[at].shape[-1])
        if not bool(v.any()) or not bool(v.isfinite().all()):
            raise InputError("SubspacePatch: expected a finite direction that is not zero.")
        v = v / v.norm()
        row, null = _parts(v, weights, self.rtol)
        generator = torch.Generator().manual_seed(self.seed)
        random = torch.randn(len(v), generator=generator, dtype=torch.float64)
        ways = {"direction": v, "row part": row, "null part": null, "random": random}
        effects: dict[str, Tensor] = {}
        for name in PARTS:
            moved = new[at] if name == "site" else _patched(old[at], new[at], ways[name])
            values = _only(old[at], moved, position)
            effects[name] = (runs.patched(base_side, at, values)[0] - base).double().cpu()
        rows = tuple(_states_at_position(x[at], position, runs.call.mask) for x in (old, new))
        return self._judged(runs, str(at), effects, rows, (v, row, null), source - base)

    def _judged(
        self,
        runs: TwoRuns,
        site: str,
        effects: dict[str, Tensor],
        rows: tuple[Tensor, ...],
        parts: tuple[Tensor, Tensor, Tensor],
        whole: Tensor,
    ) -> SubspaceVerdict:
        v, row, null = parts
        mean = {name: float(effect.mean()) for name, effect in effects.items()}
        share, _, kept = mean_share(effects["direction"], effects["site"], self.tol)
        of_row, _, _ = mean_share(effects["row part"], effects["direction"], self.tol)
        distances = [_separation(rows, part) for part in parts]
        is_dormant = distances[1] < self.quiet * distances[0]
        is_illusory = float(share) > self.most and float(of_row) < self.least and is_dormant
        old, new = rows
        swing = (new - old) @ v
        driven = float(((new - old) @ null).abs().sum() / swing.abs().sum().clamp(min=1e-300))
        flags = () if bool(torch.isfinite(share)) else ("dead",)
        return SubspaceVerdict(
            value=float(share),
            n=int(kept.sum()),
            direction="higher",
            flags=flags,
            conventions={
                "method": repr(self),
                "objective": runs.objective.name,
                "site": site,
                "average": "mean over pairs of each pair's fraction",
                "se": "none: a verdict on these pairs",
                "readers": "no kernel: every direction is read" if not bool(null.any()) else "",
            },
            verdict="illusory" if is_illusory else "not shown",
            effects=mean,
            null_share=float(null.square().sum()),
            driving_share=driven,
            variance=(_variance(rows, row), _variance(rows, null)),
            separation=(distances[1], distances[2]),
            out_of_range=_out_of_range(old, _patched(old, new, v), torch.cat(rows)),
            row_part=row,
            null_part=null,
        )


def _stacked(
    readers: Tensor | Sequence[Tensor], width: int, site_width: int
) -> Float[Tensor, "_out _dim"]:
    several = [readers] if isinstance(readers, Tensor) else list(readers)
    widths = {width, site_width, *(w.shape[-1] for w in several)}
    if not several or len(widths) > 1:
        raise ShapeError(
            "SubspacePatch: expected a direction, readers (out, dim) and a site of the same "
            f"width, got a direction of {width}, readers of "
            f"{[tuple(w.shape) for w in several]} and a site of {site_width}."
        )
    return torch.cat([w.detach().double().cpu() for w in several])


def _parts(
    v: Float[Tensor, "dim"], weights: Float[Tensor, "out dim"], rtol: float
) -> tuple[Float[Tensor, "dim"], Float[Tensor, "dim"]]:
    """Return the parts of a direction inside and outside the row space of the readers' weights."""
    _, sizes, right = torch.linalg.svd(weights, full_matrices=False)
    seen = right[sizes > rtol * sizes.max().clamp(min=1e-300)]
    row = seen.T @ (seen @ v)
    null = v - row
    clean = [torch.where(p.norm() < 1e-9, torch.zeros_like(p), p) for p in (row, null)]
    return clean[0], clean[1]


def _patched(
    old: Float[Tensor, "*axes dim"], new: Float[Tensor, "*axes dim"], way: Float[Tensor, "dim"]
) -> Float[Tensor, "*axes dim"]:
    """Return the states with the component along a direction taken from other states."""
    if not bool(way.any()):
        return old
    unit = (way / way.norm()).to(old)
    return old + ((new - old) @ unit).unsqueeze(-1) * unit


def _only(old: Tensor, new: Tensor, position: int | None) -> Tensor:
    if position is None or old.ndim < 3:
        return new
    patched = old.clone()
    patched[:, position] = new[:, position]
    return patched


def _states_at_position(
    x: Tensor, position: int | None, mask: Bool[Tensor, "row pos"] | None
) -> Float[Tensor, "row dim"]:
    if x.ndim > 2 and position is not None:
        x = x[:, position]
    elif x.ndim > 2 and mask is not None and mask.shape == x.shape[:2]:
        x = x[mask.to(x.device)]
    return x.reshape(-1, x.shape[-1]).double().cpu()


def _separation(rows: tuple[Tensor, ...], part: Tensor) -> float:
    """Return d' between the two runs along a part; 0 if the part does not vary.

    It is infinite if the part differs between the runs but varies within neither run.
    """
    a, b = (x @ part for x in rows)
    apart = float((a.mean() - b.mean()).abs())
    both = torch.cat([a - a.mean(), b - b.mean()])
    spread = float(both.square().sum() / max(len(both) - 2, 1)) ** 0.5
    scale = float(torch.cat(rows).abs().max()) * 1e-9
    if apart <= scale and spread <= scale:
        return 0.0
    return apart / spread if spread > scale else float("inf")


def _variance(rows: tuple[Tensor, ...], part: Tensor) -> float:
    return float((torch.cat(rows) @ part).var(correction=0))


def _out_of_range(old: Tensor, patched: Tensor, rows: Tensor) -> float:
    """Return the fraction of changed coordinates outside the marginal range of the rows."""
    ends = torch.tensor(QUANTILES, dtype=rows.dtype)
    low, high = torch.quantile(rows, ends, dim=0)
    margin = 1e-9 * (high - low).clamp(min=1.0)
    out = (patched < low - margin) | (patched > high + margin)
    changed = (patched - old).abs() > margin
    return float((out & changed).sum() / changed.sum().clamp(min=1))
