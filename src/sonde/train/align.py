"""Pull a model's states towards a teacher's states, at any site of each.

For generative models trained beside a strong encoder, in the first part of the training. A small
classifier gains no speed from another classifier as its teacher.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal, final, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import (
    cosine_similarity,
    interpolate,
    layer_norm,
    mse_loss,
    normalize,
    smooth_l1_loss,
)

from sonde.core.autocast import in_float32
from sonde.core.errors import InputError
from sonde.core.ranges import check_ranges
from sonde.stats.divergence import kl_divergence
from sonde.tap.training.ranks import of_all_ranks

Distance = Literal["cosine", "mse", "smooth_l1", "relational", "kl", "cross_entropy", "focus"]
Grid = tuple[int, int]
OF_MAPS = ("cross_entropy", "focus")


@final
class Align(nn.Module):
    """Distance between the rows of a site and of a target site, which gets no gradients.

    ``cosine``: mean of ``-cos(P(x), y)``. ``mse``, ``smooth_l1``: against the target's rows after a
    layer norm. ``relational``: mean over pairs of rows of ``(cos(x_i, x_j) - cos(y_i, y_j))^2``,
    for which the widths may differ. ``kl``: ``T^2 KL(y || x)`` of logits at temperature ``T``. Two
    distances compare attention maps (example, head, query, key) and leave out queries that see a
    single key. ``cross_entropy``: against the target's probabilities. ``focus``: ``-ln`` of the
    attention on the keys that ``y`` marks, (example, key) or (example, query, key).

    Range        [-1, 1] for ``cosine``, else [0, inf); lower = more alike.
    Cost         one product of rows and projector; ``relational`` O(rows^2 dim).
    Assumes      rows of both sites in the same order.
    Differs      from the papers: a probability that underflowed counts as the smallest normal
                 number in the logarithm, and gets no gradient.
    Batching     mean; ``relational``: pair.

    Parameters
    ----------
    distance : {"cosine", "mse", "smooth_l1", "relational", "kl", "cross_entropy", "focus"}
        "cosine" by default.
    projector : {"none", "linear", "mlp"}, default="none"
        Learned map P of the rows of ``x``; its input width is found at the first call.
    width : int, optional
        Width of the target, needed for a projector.
    hidden : int, default=2048
        Width of the two inner layers of the "mlp".
    temperature : float, default=1.0
        Divisor of the logits for ``kl``, above 0.
    grids : pair of (int, int), optional
        Height and width of the places of both sites, if rows are places (reducer "patches"): rows
        of ``x`` are interpolated to the target's places.
    resample : {"after", "before"}, default="after"
        Whether rows are interpolated after the projector or before it.
    heads : {"first", "mean"}, default="first"
        How to match different numbers of heads: take the first heads of the site that has more, or
        the mean over all heads of each site.
    prefix : int, default=0
        Tokens of each target example in front of its places that ``x`` lacks, as a class token.
    gather : bool, default=True
        If several processes train, take the rows of all of them, so that gradients are those of
        one process with the whole batch. False if the rows given are those of all processes.

    References
    ----------
    yu2024repa
    """

    paper: ClassVar[str] = "yu2024repa"
    variants: ClassVar[Mapping[str, str]] = {
        "distance='cross_entropy'": "wang2025haste",
        "distance='relational'": "tian2025urepa",
        "grids=((2, 2), (4, 4))": "tian2025urepa",
        "distance='kl'": "roth2024fantastic",
        "distance='focus'": "mads2024",
    }
    batching: str = "mean"
    examples: ClassVar[tuple[dict, ...]] = (
        {},
        {"distance": "smooth_l1"},
        {"distance": "relational"},
        {"distance": "kl", "temperature": 2.0},
        {"distance": "cross_entropy"},
    )

    def __init__(
        self,
        distance: Distance = "cosine",
        projector: Literal["none", "linear", "mlp"] = "none",
        width: int | None = None,
        hidden: int = 2048,
        temperature: float = 1.0,
        grids: tuple[Grid, Grid] | None = None,
        resample: Literal["after", "before"] = "after",
        heads: Literal["first", "mean"] = "first",
        prefix: int = 0,
        gather: bool = True,
    ) -> None:
        super().__init__()
        self.gather = gather
        if projector != "none" and width is None:
            raise InputError(
                "Align: expected width, the width of the target, with a projector. Pass it."
            )
        if prefix and grids is None:
            raise InputError(
                "Align: expected grids with prefix, since the number of the target's tokens is "
                "computed from the grids."
            )
        self.distance, self.temperature = distance, temperature
        self.grids, self.resample, self.heads, self.prefix = grids, resample, heads, prefix
        check_ranges(
            self,
            distance=get_args(Distance),
            temperature="> 0",
            resample=("after", "before"),
            heads=("first", "mean"),
        )
        self.batching = "pair" if distance == "relational" else "mean"
        layers: list[nn.Module] = []
        if projector == "linear":
            layers = [nn.LazyLinear(width or 0)]
        elif projector == "mlp":
            inner = nn.Linear(hidden, hidden)
            layers = [nn.LazyLinear(hidden), nn.SiLU(), inner, nn.SiLU()]
            layers.append(nn.Linear(hidden, width or 0))
        self.projector = nn.Sequential(*layers)

    @of_all_ranks("x", "y", "mask", "weight")
    @in_float32
    def forward(
        self,
        x: Float[Tensor, "row *axes"],
        y: Float[Tensor, "row2 *axes2"] | Bool[Tensor, "row2 *query key"],
        mask: Bool[Tensor, "..."] | None = None,
        weight: Float[Tensor, "row"] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the distance of rows to their targets.

        Parameters
        ----------
        x : Float[Tensor, "row dim"] or Float[Tensor, "example head query key"]
        y : as ``x``, or Bool[Tensor, "example key"] or Bool[Tensor, "example query key"]
        mask : Bool[Tensor, "..."], optional
            For attention maps: True where a query may see a key; broadcasts to ``x``.
        weight : Float[Tensor, "row"], optional
            Weight of each row, as ``Select`` makes it.
        """
        if self.distance in OF_MAPS:
            return self._of_maps(x, y, mask)
        rows, target = self._at_places(x, y.detach())
        if self.distance == "relational":
            own, other = (normalize(part, dim=1) for part in (rows, target))
            return (own @ own.T - other @ other.T).square().mean()
        if rows.shape[1:] != target.shape[1:]:
            raise InputError(
                f"Align: expected rows as wide as the target, {target.shape[1]}, got "
                f"{rows.shape[1]}. Pass projector='linear', width={target.shape[1]}, or "
                "distance='relational'."
            )
        each = self._distances(rows, target)
        return each.mean() if weight is None else (each * weight).sum() / weight.sum()

    def _distances(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the distance of each row to its target."""
        if self.distance == "cosine":
            return -cosine_similarity(x, y, dim=1, eps=1e-12)
        if self.distance == "kl":
            own, its = ((part / self.temperature).log_softmax(1) for part in (x, y))
            return self.temperature**2 * kl_divergence(its, own)
        y = layer_norm(y, y.shape[1:])
        if self.distance == "mse":
            return mse_loss(x, y, reduction="none").mean(1)
        return smooth_l1_loss(x, y, reduction="none", beta=2.0).mean(1)

    def _at_places(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return projected rows and targets, at the target's positions if there are grids."""
        if self.grids is None:
            return self.projector(x), y
        (high, wide), (high2, wide2) = self.grids
        n, n2 = high * wide, high2 * wide2 + self.prefix
        if len(x) % n or len(y) % n2 or len(x) // n != len(y) // n2:
            raise InputError(
                f"Align: expected {n} rows and {n2} targets for each example, got {len(x)} and "
                f"{len(y)} rows. Read both sites by the reducer 'patches', and pass their grids."
            )
        rows = self.projector(x) if self.resample == "after" else x
        grid = rows.reshape(-1, high, wide, rows.shape[1]).movedim(3, 1)
        at = interpolate(grid, (high2, wide2), mode="bilinear", align_corners=False)
        rows = at.movedim(1, 3).flatten(0, 2)
        rows = rows if self.resample == "after" else self.projector(rows)
        return rows, y.reshape(-1, n2, y.shape[1])[:, self.prefix :].flatten(0, 1)

    def _of_maps(self, x: Tensor, y: Tensor, mask: Tensor | None) -> Tensor:
        """Return the mean over queries and heads, without queries that see only one key."""
        if x.ndim != 4:
            raise InputError(
                "Align: expected maps of attention (example, head, query, key), got shape "
                f"{tuple(x.shape)}. Name a site with port probs."
            )
        seen = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
        if self.distance == "focus":
            region = (y[:, None] if y.ndim == 3 else y[:, None, None]).bool() & seen
            counted = (seen.expand_as(x).sum(-1) > 1) & region.expand_as(x).any(-1)
            each = -_log((x * region).sum(-1))
        else:
            x, target = self._same_heads(x, y.detach())
            seen = seen[:, : x.shape[1]] if seen.shape[1] > 1 else seen
            counted = seen.expand_as(x).sum(-1) > 1
            each = -torch.where(seen, target * _log(x), 0.0).sum(-1)
        return each[counted].mean() if bool(counted.any()) else 0.0 * x.sum()

    def _same_heads(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return the attention maps of both sites with equal numbers of heads."""
        if x.shape[::2] != y.shape[::2] or x.shape[3] != y.shape[3]:
            raise InputError(
                f"Align: expected maps of the same examples, queries and keys, got shapes "
                f"{tuple(x.shape)} and {tuple(y.shape)}."
            )
        if x.shape[1] == y.shape[1] and self.heads == "first":
            return x, y
        if self.heads == "mean":
            return x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        n = min(x.shape[1], y.shape[1])
        return x[:, :n], y[:, :n]


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=torch.finfo(p.dtype).tiny).log()
