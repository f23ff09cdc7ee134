"""Merge experts of a mixture with similar router scores, weighted by selection frequency.

``shared`` holds each merged expert once, in memory and in files, and ``size`` compresses it. For a
mixture whose experts overlap; experts that were trained far apart do not average.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import (  # pyright: ignore[reportMissingTypeStubs]
    linear_sum_assignment,
)
from torch import Tensor

from sonde.compress._grid import method_of
from sonde.compress.expert_use import STACKED, ExpertUse, Mixture, expert_use, mixtures
from sonde.compress.low_rank_weights import thin_factors
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.tap import require_measured_on
from sonde.weights import Change, Examples, Exchange, Rewrite, RewritePlan, SharedStack


@final
@dataclass(frozen=True)
class MergeExperts(Rewrite):
    """Give experts with similar router scores equal weights: their mean, weighted by use.

    The most used experts of the whole model stay apart, one in each layer at least. Every other
    expert joins the expert of its layer whose scores are most alike over tokens, by their cosine.
    First its hidden units are permuted to match the expert that it joins, so that the sum of
    products of their weights is largest. The router keeps a score for each old expert: a token that
    picks two of one group gets the merged expert with the sum of both weights.

    With ``size`` below 1 each matrix of a remaining expert becomes the nearest matrix of a low rank
    (singular values are cut) plus the columns in which it differs most from that matrix.

    Range        experts alone change; all experts of a group are equal bit for bit.
    Cost         one pass over the data; an assignment of hidden units, O(hidden^3), for each expert
                 that joins another.
    Assumes      a mixture of transformers with experts in stacked tensors, gated, without biases.
    Differs      from the paper: permutations match weights, not activations; columns are chosen by
                 their squared error, not by gradients; nothing is trained afterwards.

    Parameters
    ----------
    keep : float, default=0.5
        Share of experts that stay apart, in (0, 1]; 1 merges nothing.
    within : {"model", "layer"}, default="model"
        Where experts are ranked: one layer may keep more than another, or all keep the same share.
    by : {"routing", "random"}, default="routing"
        ``random`` draws which experts stay apart and whom the others join: a control.
    mean : {"use", "even"}, default="use"
        Weights of the experts in the mean: how often each is used (``use``), or equal (``even``).
    align : bool, default=True
        Permute an expert's hidden units to match those of the expert that it joins.
    capacity : int, optional
        Most experts of a group.
    seed : int, default=0
        Seed of the choice ``random``.
    shared : bool, default=False
        Store each merged expert once; it is unpacked when a token picks it. Otherwise its weights
        are written into every place of its group.
    size : float, default=1.0
        Share of a remaining expert's numbers that are stored, in (0, 1]; below 1 all experts are
        compressed, and ``shared``.
    residual : float, default=0.0
        Share of these numbers that go to whole columns, as the paper has it. Low rank alone keeps
        answers better (study ``merged-experts``).

    References
    ----------
    li2024mcsmoe
    """

    keep: float = 0.5
    within: Literal["model", "layer"] = "model"
    by: Literal["routing", "random"] = "routing"
    mean: Literal["use", "even"] = "use"
    align: bool = True
    capacity: int | None = None
    seed: int = 0
    shared: bool = False
    size: float = 1.0
    residual: float = 0.0
    paper: ClassVar[str] = "li2024mcsmoe"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"keep": 0.3, "within": "layer", "by": "random", "mean": "even", "capacity": 3},
        {"shared": True},
        {"size": 0.6, "residual": 0.4},
    )

    def __post_init__(self) -> None:
        check_ranges(self, keep="(0, 1]", capacity=">= 1", size="(0, 1]", residual="[0, 1]")

    def reads(self) -> dict[str, Examples]:
        """Read examples, or the recorded choices of routers on them."""
        return {"calibration": Examples(summed=ExpertUse)}

    def check(self, model: Model) -> None:
        """Raise if a model has no experts that can be merged."""
        mixtures("MergeExperts", model.module)

    def planned(self, model: Model, calibration: Inputs | ExpertUse) -> RewritePlan:
        """Return the merged experts.

        Raises
        ------
        InputError
            If the model has no such experts, or groups of ``capacity`` cannot hold them.
        StateError
            If routers were read on another model.
        """
        layers = mixtures("MergeExperts", model.module)
        use = calibration if isinstance(calibration, ExpertUse) else expert_use(model, calibration)
        require_measured_on(model.module, use.model, "MergeExperts.plan: the routers", "expert_use")
        changes: dict[str, Change] = {}
        apart = self._apart([use.share(i) for i in range(len(layers))])
        draw = torch.Generator().manual_seed(self.seed)
        for i, (one, stay) in enumerate(zip(layers, apart, strict=True)):
            if len(stay) == one.size and self.size == 1:
                continue
            like = use.likeness(i)
            if self.by == "random":
                like = torch.rand(like.shape, generator=draw, dtype=torch.float64)
            head = heads_of(like, stay, use.share(i), self.capacity)
            merged = self._merged(one, head, use.share(i))
            for name, old, new in zip(STACKED, _stacks(one), merged, strict=True):
                changes[f"{one.name}.{name}"] = self._change(name, new.to(old.dtype), head)
        n_before = sum(one.size for one in layers)
        word = method_of("MergeExperts", asdict(self))
        n_after = float(sum(len(stay) for stay in apart))
        return RewritePlan.of(model, changes, word, n_experts=float(n_before), n_kept=n_after)

    def _change(
        self, leaf: str, stack: Float[Tensor, "expert out in"], head: Int[Tensor, "expert"]
    ) -> Change:
        """Return the change to merged matrices, stored in each place or once for each group."""
        if not self.shared and self.size == 1:
            return Exchange(stack)
        heads, slot = head.unique(return_inverse=True)
        parts = [thin_and_columns(stack[h], self.size, self.residual) for h in heads.tolist()]
        return SharedStack(leaf, slot, *(torch.stack(part) for part in zip(*parts, strict=True)))

    def _apart(self, shares: Sequence[Float[Tensor, "expert"]]) -> list[Int[Tensor, "kept"]]:
        """Return the experts of each layer that are not merged, the most used first."""
        draw = torch.Generator().manual_seed(self.seed)
        if self.by == "random":
            shares = [torch.rand(s.shape, generator=draw, dtype=torch.float64) for s in shares]
        order = [s.argsort(descending=True, stable=True) for s in shares]
        if self.within == "layer":
            return [o[: max(1, round(self.keep * len(o)))] for o in order]
        n = max(len(shares), round(self.keep * sum(map(len, shares))))
        rest = torch.cat([s[o[1:]] for s, o in zip(shares, order, strict=True)])
        layer = torch.cat([torch.full((len(o) - 1,), i) for i, o in enumerate(order)])
        more = layer[rest.argsort(descending=True, stable=True)[: n - len(shares)]]
        return [o[: 1 + int((more == i).sum())] for i, o in enumerate(order)]

    def _merged(
        self, one: Mixture, head: Int[Tensor, "expert"], share: Float[Tensor, "expert"]
    ) -> tuple[Tensor, Tensor]:
        """Return both stacks, with each expert replaced by the mean of its group."""
        up, down = (x.to(torch.float64, copy=True) for x in _stacks(one))
        for e in (head != torch.arange(len(head))).nonzero()[:, 0].tolist():
            if self.align:
                order = matching(up[head[e]], down[head[e]], up[e], down[e])
                up[e] = up[e].unflatten(0, (2, -1))[:, order].flatten(0, 1)
                down[e] = down[e][:, order]
        new_up, new_down = up.clone(), down.clone()
        for h in head.unique().tolist():
            group = (head == h).nonzero()[:, 0]
            if len(group) == 1:
                continue
            weight = share[group] if self.mean == "use" else torch.ones(len(group)).double()
            weight = weight if bool(weight.sum() > 0) else torch.ones_like(weight)
            weight = (weight / weight.sum()).to(up)
            new_up[group] = torch.einsum("e,e...->...", weight, up[group])
            new_down[group] = torch.einsum("e,e...->...", weight, down[group])
        return new_up, new_down


def thin_and_columns(
    w: Float[Tensor, "out in"], size: float, residual: float
) -> tuple[
    Float[Tensor, "out rank"],
    Float[Tensor, "rank in"],
    Int[Tensor, "kept"],
    Float[Tensor, "out kept"],
]:
    """Return the factors of a matrix of low rank, and the columns with the largest residual.

    A stored column counts ``out + 1`` numbers, with its place. If the numbers reach for the whole
    matrix, all columns are stored and the rank is 0.
    """
    n_out, n_in = w.shape
    most = size * n_out * n_in
    kept = min(n_in, int(residual * most / (n_out + 1)))
    rank = min(n_out, n_in, int((most - kept * (n_out + 1)) / (n_out + n_in)))
    if size == 1 or kept == n_in:
        rank, kept = 0, n_in
    left, right = thin_factors(w.double(), rank)
    left, right = left.to(w), right.to(w)
    rest = w.double() - left.double() @ right.double()
    columns = rest.square().sum(0).topk(kept).indices.sort().values
    return left, right, columns, rest[:, columns].to(w)


def heads_of(
    like: Float[Tensor, "expert expert"],
    stay: Int[Tensor, "kept"],
    share: Float[Tensor, "expert"],
    capacity: int | None,
) -> Int[Tensor, "expert"]:
    """Return the group of each expert; an unmerged expert is its own group.

    The most used experts choose first; a full group takes no more experts.
    """
    head = torch.arange(len(like))
    if capacity is not None and capacity * len(stay) < len(like):
        raise InputError(
            f"MergeExperts.plan: expected groups with room for {len(like)} experts, got "
            f"{len(stay)} of at most {capacity}. Raise keep or capacity."
        )
    room = dict.fromkeys(stay.tolist(), len(like) if capacity is None else capacity - 1)
    for e in share.argsort(descending=True, stable=True).tolist():
        if e in stay:
            continue
        free = torch.tensor([h for h in sorted(room) if room[h] > 0])
        head[e] = free[like[e, free].argmax()]
        room[int(head[e])] -= 1
    return head


def matching(
    up: Float[Tensor, "both dim"],
    down: Float[Tensor, "dim hidden"],
    up2: Float[Tensor, "both dim"],
    down2: Float[Tensor, "dim hidden"],
) -> Int[Tensor, "hidden"]:
    """Return the order of an expert's hidden units that best matches another expert's units.

    Maximises the sum of products of all weights of a unit: gate, input and output.
    """
    first, second = (
        torch.cat([*a.chunk(2), b.T], 1).double().cpu() for a, b in ((up, down), (up2, down2))
    )
    _, order = linear_sum_assignment((first @ second.T).numpy(), maximize=True)
    return torch.from_numpy(np.asarray(order))


def _stacks(one: Mixture) -> tuple[Tensor, Tensor]:
    up, down = (one.experts.get_parameter(name).detach() for name in STACKED)
    return up, down
