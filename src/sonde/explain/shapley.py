"""Attribution by removing parts: one at a time, or in combination with other parts.

``Occlusion`` takes each part away from the whole; ``Shapley`` averages what a part adds over all
sets of the others, so that parts add up to the rise from the baseline.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.explain._places import ExamplePlaces
from sonde.explain.attribution import ROUNDING, Attributor, Parts
from sonde.explain.baseline import Baseline
from sonde.explain.objective import FixedObjective
from sonde.tap.streams.site_function import SiteFunction

EXACT = 12
"""Up to so many parts all sets are tried: 4,096 forwards."""
Value = Callable[[Bool[Tensor, "set part"]], Float[Tensor, "row set"]]
"""The objective of each example with the parts of each set alone, the others at the baseline."""
Shares = tuple[Float[Tensor, "row part"], Float[Tensor, "row"]]
"""The Shapley values, and the objective without any part."""


@dataclass(frozen=True)
class PartTest(Attributor):
    """Attribution to parts of an input: positions, or groups of positions.

    Parameters
    ----------
    baseline : Baseline, optional
        What stands where a part is taken away; by default zero, of pictures a
        blur.
    groups : Int[Tensor, "place"], optional
        The part that each place belongs to, 0 to n - 1, the same for each example; by default every
        place (pixel, token, unit of a row) is a part. Places of a part share its figure evenly.
    """

    baseline: Baseline = field(default_factory=Baseline)
    groups: Int[Tensor, "place"] | None = None

    def _grouped(self, places: ExamplePlaces) -> tuple[Int[Tensor, "place"], int]:
        if self.groups is None:
            return torch.arange(places.n), places.n
        group = self.groups.long().flatten()
        n = int(group.max()) + 1 if len(group) else 0
        if len(group) != places.n or n < 1 or len(torch.unique(group)) != n:
            raise InputError(
                f"{type(self).__name__}: expected a group number from 0 to n - 1 for each of "
                f"{places.n} positions, got {len(group)} numbers of "
                f"{len(torch.unique(group))} groups."
            )
        return group, n

    def _parts_of(
        self,
        phi: Float[Tensor, "row part"],
        size: Float[Tensor, "row"],
        places: ExamplePlaces,
        group: Int[Tensor, "place"],
        base: Float[Tensor, "row"] | None = None,
    ) -> Parts:
        """Return the attribution of each part at its positions, in the shape of the site.

        The objective counts as independent of the site (``is_reached`` is false) where no figure
        exceeds the rounding of objectives of this ``size``.
        """
        is_reached = not bool((phi.abs() <= ROUNDING * size.abs().amax()).all())
        each = (phi / torch.bincount(group, minlength=phi.shape[1]))[:, group]
        return Parts(places.spread(each), base, is_reached)


@final
@dataclass(frozen=True)
class Occlusion(PartTest):
    """Fall of the objective when one part is removed from the whole input.

    Range        objective; signed; does not add up where parts work together.
    Cost         a forward for each part.
    Assumes      that the model copes with a part at the baseline.

    Parameters
    ----------
    baseline : Baseline, optional
        Values that take the place of a removed part.
    groups : Int[Tensor, "place"], optional
        Part of each place: places of one number are removed together; None makes each place a part.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> net.weight.data = torch.tensor([[3.0, -2.0]])
    >>> Occlusion(Baseline("zero")).explain(net, torch.tensor([[1.0, 5.0]])).value.tolist()
    [[3.0, -10.0]]

    References
    ----------
    zeiler2014visualizing
    """

    paper: ClassVar[str] = "zeiler2014visualizing"

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        places = ExamplePlaces.of(function, self.baseline)
        group, n = self._grouped(places)
        whole = objective.of(function.outputs).detach().double().cpu()
        left = places.number_of_sets(function, objective, ~torch.eye(n, dtype=torch.bool)[:, group])
        return self._parts_of(whole[:, None] - left, whole, places, group)


@final
@dataclass(frozen=True)
class Shapley(PartTest):
    """Shapley values: the gain in the objective from each part, averaged over sets of other parts.

    ``sum_S |S|! (n - |S| - 1)! / n! (v(S + i) - v(S))`` where ``v(S)`` is the objective with the
    parts outside ``S`` at the baseline: the only shares that add up, treat equal parts alike and
    give nothing to a part that does nothing. Up to 12 parts every set is tried; above, random
    orders of the parts, each with its reverse.

    Range        objective; signed; adds up to the rise from the baseline, in random orders too.
    Cost         2^n forwards up to 12 parts; else ``2 n_orders n``.
    Assumes      that the model copes with parts at the baseline.

    Parameters
    ----------
    baseline : Baseline, optional
        Values that take the place of parts outside a set.
    groups : Int[Tensor, "place"], optional
        Part of each place: places of one number come and go together; None makes each place a part.
    n_orders : int, default=100
        Pairs of an order and its reverse, above 12 parts.
    seed : int, default=0
        Seed of the random orders, above 12 parts.

    Examples
    --------
    >>> class Product(torch.nn.Module):
    ...     def forward(self, x):
    ...         return x.prod(1, keepdim=True)
    >>> Shapley(Baseline("zero")).explain(Product(), torch.tensor([[2.0, 3.0]])).value.tolist()
    [[3.0, 3.0]]

    References
    ----------
    shapley1953value, mitchell2022sampling
    """

    n_orders: int = 100
    seed: int = 0
    adds_up: ClassVar[bool] = True
    paper: ClassVar[str] = "shapley1953value"
    examples: ClassVar[tuple[dict[str, Any], ...]] = ({"n_orders": 3},)

    def __post_init__(self) -> None:
        check_ranges(self, n_orders=">= 1")

    def _parts(self, function: SiteFunction, objective: FixedObjective) -> Parts:
        places = ExamplePlaces.of(function, self.baseline)
        group, n = self._grouped(places)

        def value(kept: Bool[Tensor, "set part"]) -> Float[Tensor, "row set"]:
            return places.number_of_sets(function, objective, kept[:, group])

        phi, base = _exact(value, n) if n <= EXACT else self._sampled(value, n)
        return self._parts_of(phi, base, places, group, base)

    def _sampled(self, value: Value, n: int) -> Shares:
        """Return the mean over random orders of the parts and over the reverse of each order."""
        generator = torch.Generator().manual_seed(self.seed)
        total: Tensor | None = None
        base: Tensor | None = None
        for _ in range(self.n_orders):
            order = torch.randperm(n, generator=generator)
            for one in (order, order.flip(0)):
                rank = torch.empty(n, dtype=torch.int64)
                rank[one] = torch.arange(n)
                kept = rank[None] < torch.arange(n + 1)[:, None]
                values = value(kept)
                added = torch.zeros(len(values), n, dtype=torch.float64)
                added[:, one] = values.diff(dim=1)
                total = added if total is None else total + added
                base = values[:, 0]
        assert total is not None  # there is an order
        assert base is not None
        return total / (2 * self.n_orders), base


def _exact(value: Value, n: int) -> Shares:
    """Return the mean over all sets. Set ``i`` holds the parts whose bits are 1 in ``i``."""
    number = torch.arange(2**n)
    kept = (number[:, None] >> torch.arange(n)) & 1 == 1
    values = value(kept)
    size = kept.sum(1)
    phi = torch.zeros(len(values), n, dtype=torch.float64)
    for part in range(n):
        without = number[~kept[:, part]]
        shares = [1.0 / (n * math.comb(n - 1, int(s))) for s in size[without]]
        weight = torch.tensor(shares, dtype=torch.float64)
        added = values[:, without + 2**part] - values[:, without]
        phi[:, part] = added @ weight
    return phi, values[:, 0]
