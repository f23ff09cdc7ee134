"""Round weights to shared codebooks, learned together for the layer's outputs.

For two to four bits without a grid: the values of a codebook lie where weights are. The layer is
unpacked at each use; a grid of four bits has a kernel, see ``GPTQ``.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sonde.compress._each_layer import each_layer
from sonde.compress._grid import method_of
from sonde.compress._layers import Weighted
from sonde.compress.gptq import loss_of
from sonde.compress.grams import LayerGrams, parts_of
from sonde.core.errors import InputError
from sonde.core.inputs import Inputs, Model
from sonde.core.ranges import check_ranges
from sonde.weights import Coded, Examples, Rewrite, RewritePlan, pack

SIGNATURE, SWEEPS, RUNS = 16, 60, 256
"""Quantiles by which rows are compared, rounds of clustering, runs that numbers are cut into."""
REACH = 2
"""Entries to each side that a weight may move to in one step."""


@final
@dataclass(frozen=True)
class WeightCodebook(Rewrite):
    """Replace each weight by an entry of its row's codebook, times the row's scale.

    Rows of similar distribution share a codebook of ``2^bits`` entries. It starts at the clusters
    of the scaled weights, weighted by the squares of the inputs. Then mapping and codebook are
    learned together, to lower the error of the outputs ``tr(E H E^T)``: the score of entry ``k``
    for a weight at entry ``m`` changes by
    ``-rate * g * sign(B_k - B_m) * exp(-|B_k - B_m| / gap)``, with ``g`` the gradient of the error.
    The gain of a jump grows with its length; the factor that falls with length keeps the search
    near. Codebooks go down their own gradient by an exact line search. A row whose error rises
    keeps its mapping.

    Range        linear layers become ``CodebookLinear``; a convolution that is named stays one.
    Cost         one pass over the data; O(steps out dim^2) for each layer.
    Assumes      inputs of the kind that the model will meet.
    Differs      from the paper: the loss is each layer's output error, not the task's; rows keep
                 their places, and the codebook of each is stored.

    Parameters
    ----------
    bits : int or None, default=3
        1 to 8; None changes nothing.
    books : int, default=8
        Codebooks of a layer, at most one for each row.
    steps : int, default=40
        Number of optimisation steps.
    rate : float, default=0.1
        Step size of the scores, relative to the largest gradient of a row.
    learn : {"joint", "book", "none"}, default="joint"
        Mapping and codebook, codebooks alone, or neither: plain clusters.
    layers : sequence of str, optional
        Patterns of layers' names; all linear layers by default, but those tied to an embedding.

    References
    ----------
    jlcm2024
    """

    bits: int | None = 3
    books: int = 8
    steps: int = 40
    rate: float = 0.1
    learn: Literal["joint", "book", "none"] = "joint"
    layers: Sequence[str] | None = None
    paper: ClassVar[str] = "jlcm2024"
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {},
        {"bits": 2, "books": 2, "steps": 3, "layers": ("*",)},
        {"learn": "none"},
    )

    def __post_init__(self) -> None:
        if self.bits is not None and (self.bits != int(self.bits) or not 1 <= self.bits <= 8):
            raise InputError(
                f"WeightCodebook: expected whole bits from 1 to 8, or None, got {self.bits}."
            )
        check_ranges(self, books="[1, 256]")

    def reads(self) -> dict[str, Examples]:
        """Read examples, or the moments of layers' inputs over them."""
        return {"calibration": Examples(summed=LayerGrams)}

    def planned(self, model: Model, calibration: Inputs | LayerGrams) -> RewritePlan:
        """Return the codes and the codebooks."""
        word = method_of("WeightCodebook", asdict(self))
        if self.bits is None:
            return RewritePlan.of(model, {}, word)
        how = (self.layers, self._one)
        changes, figures = each_layer("WeightCodebook", model, calibration, *how)
        return RewritePlan.of(model, changes, word, **figures)

    def _one(
        self, layer: Weighted, model: Model, grams: LayerGrams
    ) -> tuple[Coded, dict[str, float]]:
        assert self.bits is not None
        w = layer.matrix()
        size = w.abs().amax(1)
        scale = torch.where(size > 0, size, 1.0).bfloat16()
        parts = list(parts_of(layer, model, grams))
        power = torch.cat([h.diagonal().expand(len(rows), -1) for rows, h in parts])
        flat = w / scale.double()[:, None]
        owner = _alike(flat, min(self.books, len(w)))
        book = torch.stack([
            clusters(flat[owner == i].flatten(), power[owner == i].flatten(), 2**self.bits)
            for i in range(int(owner.max()) + 1)
        ])  # fmt: skip
        learned = _Learned(flat, scale.double(), owner, book, parts)
        start = learned.loss()
        if self.learn != "none":
            for _ in range(self.steps):
                if self.learn == "joint":
                    learned.move_codes(self.rate)
                learned.move_book()
        half = learned.book.half()
        kept = _Learned(flat, scale.double(), owner, half.double(), parts, learned.codes)
        codes = pack(kept.codes.to(torch.uint8), self.bits)
        change = Coded(codes, half, owner.to(torch.uint8), scale, w.shape[1], turned=layer.turned)
        return change, {"loss": kept.loss(), "loss_start": start}


class _Learned:
    """Codes and codebooks of a layer, while they are learned."""

    def __init__(
        self,
        flat: Float[Tensor, "out in"],
        scale: Float[Tensor, "out"],
        owner: Int[Tensor, "out"],
        book: Float[Tensor, "book entry"],
        parts: list[tuple[Tensor, Tensor]],
        codes: Int[Tensor, "out in"] | None = None,
    ) -> None:
        self.flat, self.scale, self.owner, self.book, self.parts = flat, scale, owner, book, parts
        gaps = (flat[..., None] - book[owner][:, None]).abs()
        self.codes = gaps.argmin(-1) if codes is None else codes
        self.gap = (book[:, 1:] - book[:, :-1]).mean(1).clamp(min=1e-12)
        # as many times a gap as a weight lies from each entry: the nearest has the highest score
        self.scores = -gaps / self.gap[owner][:, None, None]

    def values(self, codes: Tensor) -> Float[Tensor, "out in"]:
        """Return the weight that codes decode to, without scales."""
        return self.book[self.owner].gather(1, codes)

    def loss(self) -> float:
        """Return the output error."""
        return float(self._losses(self.codes)[0].sum())

    def _losses(self, codes: Tensor) -> tuple[Float[Tensor, "out"], Float[Tensor, "out in"]]:
        """Return the output error of each row, and half its gradient for unscaled weights."""
        error = (self.flat - self.values(codes)) * self.scale[:, None]
        losses, pull = torch.empty_like(self.scale), torch.empty_like(error)
        for rows, h in self.parts:
            losses[rows] = loss_of(error[rows], h)
            pull[rows] = error[rows] @ h
        return losses, -pull * self.scale[:, None]

    def move_codes(self, rate: float) -> None:
        """Take a gradient step on the scores, and use the best entries if a row's error falls."""
        losses, slope = self._losses(self.codes)
        slope = slope / slope.abs().amax(1, keepdim=True).clamp(min=1e-300)
        n = self.book.shape[1]
        for way in (-1, 1):
            for far in range(1, REACH + 1):
                other = (self.codes + way * far).clamp(0, n - 1)
                reach = (self.values(other) - self.values(self.codes)).abs()
                near = torch.exp(-reach / self.gap[self.owner][:, None])
                inside = (self.codes + way * far >= 0) & (self.codes + way * far < n)
                step = torch.where(inside, -rate * slope * way * near, 0.0)
                self.scores.scatter_add_(2, other[..., None], step[..., None])
        proposed = self.scores.argmax(-1)
        better = self._losses(proposed)[0] < losses
        self.codes = torch.where(better[:, None], proposed, self.codes)

    def move_book(self) -> None:
        """Take gradient steps on the codebooks, as long as the error falls."""
        _, slope = self._losses(self.codes)
        places = self.owner[:, None] * self.book.shape[1] + self.codes
        down = torch.zeros(self.book.numel(), dtype=slope.dtype, device=slope.device)
        down.index_add_(0, places.flatten(), -slope.flatten())
        counts = places.flatten().bincount(minlength=len(down)).clamp(min=1)
        down = (down / counts).reshape(self.book.shape)
        moved = down[self.owner].gather(1, self.codes)
        wide, curve = moved * self.scale[:, None], 0.0
        for rows, h in self.parts:
            curve += float(loss_of(wide[rows], h).sum())
        if curve > 0:
            self.book = self.book - float((slope * moved).sum()) / curve * down


def _alike(flat: Float[Tensor, "out in"], n_groups: int) -> Int[Tensor, "out"]:
    """Return the group of each row, by seeded clustering of the rows' quantiles."""
    shares = torch.linspace(0, 1, SIGNATURE, dtype=flat.dtype, device=flat.device)
    marks = flat.quantile(shares, 1).T
    draw = torch.Generator().manual_seed(0)
    centres = marks[torch.randperm(len(marks), generator=draw)[:n_groups].to(marks.device)]
    owner = torch.zeros(len(marks), dtype=torch.long, device=marks.device)
    for _ in range(SWEEPS):
        owner = torch.cdist(marks, centres).argmin(1)
        new = torch.stack([marks[owner == i].mean(0) if bool((owner == i).any()) else centres[i]
                           for i in range(n_groups)])  # fmt: skip
        if torch.equal(new, centres):
            break
        centres = new
    return torch.unique(owner, return_inverse=True)[1]


def clusters(
    x: Float[Tensor, "n"], weight: Float[Tensor, "n"], n_clusters: int
) -> Float[Tensor, "cluster"]:
    """Return sorted centres with the smallest weighted sum of squared distances.

    Exact by dynamic programming for up to 256 numbers. More numbers are first cut into 256 runs of
    equal count; the centres then move until each is the mean of the numbers nearest to it.

    Parameters
    ----------
    x : Float[Tensor, "n"]
    weight : Float[Tensor, "n"]
        0 or more; if all are 0 each counts alike.
    n_clusters : int
    """
    weight = weight if bool((weight > 0).any()) else torch.ones_like(weight)
    order = x.argsort()
    x, weight = x[order], weight[order]
    if len(values := torch.unique(x)) <= n_clusters:
        return torch.cat([values, values[-1:].expand(n_clusters - len(values))])
    sums = torch.stack([weight, weight * x, weight * x * x]).double().cumsum(1)
    total = torch.cat([sums.new_zeros(3, 1), sums], 1)
    centres = _means(total, _cuts(total, n_clusters), x)
    for _ in range(SWEEPS):
        inner = torch.searchsorted(x, (centres[1:] + centres[:-1]) / 2)
        ends = torch.cat([inner.new_zeros(1), inner, inner.new_tensor([len(x)])])
        new = _means(total, ends, x)
        if torch.equal(new, centres):
            break
        centres = new
    return centres


def _cuts(total: Float[Tensor, "three n1"], n_clusters: int) -> Int[Tensor, "cluster1"]:
    """Return the ends of the segments of sorted numbers with the least cost."""
    n = total.shape[1] - 1
    edges = torch.linspace(0, n, min(n, RUNS) + 1).round().long().to(total.device)
    mass, first, second = (total[:, edges][:, None, :] - total[:, edges][:, :, None]).unbind()
    cost = second - first.square() / mass.clamp(min=1e-300)
    cost = torch.where(edges[None, :] >= edges[:, None], cost.clamp(min=0), torch.inf)
    best, back = cost[0], list[Tensor]()
    for _ in range(n_clusters - 1):
        best, place = (best[:, None] + cost).min(0)
        back.append(place)
    ends = [len(edges) - 1]
    for place in reversed(back):
        ends.append(int(place[ends[-1]]))
    return edges[torch.tensor([0, *reversed(ends)], device=edges.device)]


def _means(total: Tensor, ends: Int[Tensor, "cluster1"], x: Tensor) -> Float[Tensor, "cluster"]:
    """Return the weighted mean of each segment, or its first number if it has no weight."""
    mass, first, _ = total[:, ends[1:]] - total[:, ends[:-1]]
    lone = x[ends[:-1].clamp(max=len(x) - 1)].to(total)
    return torch.where(mass > 0, first / mass.clamp(min=1e-300), lone).to(x.dtype).sort().values
