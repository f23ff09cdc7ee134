"""Activations reshaped before the final layer: the edit, and the scorer that applies it."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.core.edit import Edit, EditContext
from sonde.core.result import Scorer, infinite_where_nonfinite
from sonde.core.site import Site
from sonde.detect._head import check_head, head_energy
from sonde.detect._metric import check_fitted_width
from sonde.stats import HeadWeightsState, ScalarsState

HEAD_INPUT = Site("head", port="in")


@final
@dataclass(frozen=True)
class Shape(Edit):
    """Prune each row to its largest entries, or rescale it by their fraction of its sum.

    With ``before`` the sum of a row and ``after`` that of its kept entries: ``prune`` keeps them,
    ``fill`` sets them to ``before / n_kept``, ``stretch`` multiplies them by
    ``exp(before / after)``, ``stretch_all`` multiplies every entry. A row whose kept entries have
    no positive sum is left as it is.

    Parameters
    ----------
    how : {"prune", "fill", "stretch", "stretch_all"}
    remove : float
        Fraction of the activations that is removed, in [0, 1).
    strength : float, default=1.0
        Weight of the reshaped row.
    """

    how: Literal["prune", "fill", "stretch", "stretch_all"]
    remove: float
    strength: float = 1.0

    def apply(self, x: Tensor, site: Site, context: EditContext) -> Tensor:
        """Return the reshaped activation; rows lie along the last axis."""
        if self.strength == 0.0:
            return x
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        values, kept = self._kept(wide)
        before, after = wide.sum(-1, keepdim=True), values.sum(-1, keepdim=True)
        alive = after > 0
        factor = torch.exp(before / after.where(alive, torch.ones_like(after)))
        if self.how == "stretch_all":
            shaped = wide * factor
        else:
            new = {
                "prune": values,
                "fill": (before / values.shape[-1]).expand_as(values),
                "stretch": values * factor,
            }[self.how]
            shaped = torch.zeros_like(wide).scatter(-1, kept, new)
        shaped = shaped.where(alive, wide)
        return (shaped if self.strength == 1.0 else wide.lerp(shaped, self.strength)).to(x)

    def n_kept(self, dim: int) -> int:
        """Return how many entries of a row of this width are kept."""
        return max(1, dim - round(dim * self.remove))

    def _kept(
        self, x: Float[Tensor, "*axes dim"]
    ) -> tuple[Float[Tensor, "*axes kept"], Int[Tensor, "*axes kept"]]:
        """Return each row's largest entries and their indices; the first of equal ones."""
        ordered = x.sort(dim=-1, descending=True, stable=True)
        n = self.n_kept(x.shape[-1])
        return ordered.values[..., :n], ordered.indices[..., :n]


@final
@dataclass(frozen=True, kw_only=True)
class ShapedScorer(Scorer):
    """Energy of the final layer's logits for reshaped rows.

    ``edit`` reshapes them; the same edit can be opened on a live model at the input of its head.
    """

    owner: str
    edit: Edit
    head: HeadWeightsState

    def score(self, x: Float[Tensor, "row dim"]) -> Float[Tensor, "row"]:
        """Return the energy of each row after the edit."""
        check_fitted_width(self.owner, x, self.head.weight.shape[1])
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        shaped = self.edit.apply(wide, HEAD_INPUT, EditContext())
        return infinite_where_nonfinite(head_energy(self.head, shaped), x)


def shaped_scorer(
    owner: str, shape: Shape, units: ScalarsState, head: HeadWeightsState
) -> ShapedScorer:
    """Return the scorer of a reshaping, fitted only on the rows' number and range."""
    dim = len(units.mean)
    check_head(owner, head, dim)
    return ShapedScorer(
        value=float(shape.n_kept(dim)),
        n=units.n,
        unit="units of the logits",
        conventions={
            "value": "activations of a row that count as its largest",
            "share": shape.remove,
            "units_below_zero": int((units.low < 0).sum()),
            "se": "not given for a scorer: calibrate its scores",
        },
        owner=owner,
        edit=shape,
        head=head,
    )
