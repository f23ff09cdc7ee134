"""Attention with patterns of allowed keys: one layer for the patterns of many papers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, cast, final

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import conv2d, scaled_dot_product_attention

from sonde.core.autocast import without_autocast
from sonde.core.errors import InputError
from sonde.layers._attending import by_group, on_axes, over_pairs, wide_type
from sonde.layers._recomputing import EarlierStates, is_recomputing
from sonde.layers.layer import Layer, Symmetry
from sonde.layers.patterns import All, Axial, Grid, Histogram, Pattern, Where, Window, pattern_of
from sonde.tap.hooks.latest import CopiedLock

LONGEST_CUBIC = 128
LATEST = 256
"""Forward passes whose draws are remembered for gradient checkpointing."""
CENTRE = 4
"""Where the pixel itself stands in a kernel of 3 x 3."""
_FREE = (All, Histogram)
"""Patterns that do not ask where a token stands."""


@final
class Attention(Layer):
    """Multi-head attention inside a pattern, added to the states.

    ``x + W softmax(Q K' / sqrt(width) + mask) V``; ``W`` starts at zero. Patterns that cut the
    tokens in groups, and ``axial``, compute only the pairs they allow; the others mask all pairs.

    Cost         the pattern's pairs times ``2 dim``; 4 dim^2 numbers, 6 dim^2 with ``order=3``.
    Assumes      texts (positions count real tokens), or with ``grid`` tokens in raster order.
    Differs      from the papers: a causal ``axial`` gives zeros to the first token; ``random`` with
                 draws takes the mean of the layer's output, not of the model's logits; a row of the
                 prior never leaves the grid, so that its border differs from a padded convolution.

    Parameters
    ----------
    dim : int
        Width of the states; a multiple of ``heads``.
    heads : int, default=4
        Number of heads.
    pattern : str or Pattern, default="all"
        ``window:8``, ``window:8:2``, ``global:1:8``, ``block:16``, ``axial``, ``stripes:2``,
        ``random:0.25``, ``histogram:4:across``; see ``sonde.layers.PATTERNS``.
    grid : (int, int), optional
        Height and width, for patterns and priors on a grid.
    causal : bool, default=False
        If True, a token looks at no later token.
    prior : {None, "position"}
        Mix in a softmax over ``-a (|d|^2 - 2 D.d)`` with each head's centre ``D``, by a gate.
    centres : sequence of (float, float), optional
        Start of ``D``, (down, right) for each head; by default a square of heads around the token.
    local_position : bool, default=False
        Add a depthwise 3 x 3 convolution of the values, on a grid.
    frozen : {None, "qk"}
        Leave queries and keys as they were drawn: the output is linear in ``features``.
    scores : {"softmax", "relu"}, default="softmax"
        ``relu`` takes the mean over the allowed keys of ``relu(q.k / sqrt(width)) v``.
    order : {2, 3}, default=2
        3 looks at pairs of tokens, for texts of at most 128 tokens.
    seed : int, default=0
        Seed of the groups that the pattern ``random`` draws.

    References
    ----------
    vaswani2017attention
    """

    paper: ClassVar[str] = "vaswani2017attention"
    variants: ClassVar[Mapping[str, str]] = {
        "pattern='axial'": "ho2019axial",
        "pattern='stripes', local_position=True": "dong2022cswin",
        "pattern='histogram'": "sun2024histoformer",
        "pattern='random'": "informationpathways",
        "prior='position'": "dascoli2021convit",
    }
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "heads": 2},
        {"dim": 4, "heads": 2, "causal": True, "pattern": "block:3"},
        {"dim": 4, "heads": 2, "pattern": "window:1:2"},
        {"dim": 4, "heads": 2, "pattern": "global:1:1", "scores": "relu"},
        {"dim": 4, "heads": 2, "pattern": "axial", "grid": (3, 2), "causal": True},
        {"dim": 4, "heads": 2, "pattern": "stripes", "grid": (3, 2), "local_position": True},
        {"dim": 4, "heads": 2, "pattern": "histogram:2:across"},
        {"dim": 4, "heads": 2, "pattern": "random:0.5", "frozen": "qk"},
        {"dim": 4, "heads": 4, "prior": "position", "grid": (3, 2)},
        {"dim": 4, "heads": 2, "order": 3, "causal": True},
    )
    layout: ClassVar[tuple[str, ...]] = ("row token dim",)
    done: Tensor

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        pattern: str | Pattern = "all",
        grid: Grid | None = None,
        causal: bool = False,
        prior: Literal["position"] | None = None,
        centres: Any = None,
        local_position: bool = False,
        frozen: Literal["qk"] | None = None,
        scores: Literal["softmax", "relu"] = "softmax",
        order: Literal[2, 3] = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(
                f"Attention: expected a dim that is a multiple of the {heads} heads, got {dim}."
            )
        self.pattern = pattern_of(pattern)
        spatial = self.pattern.spatial or prior is not None or local_position
        if spatial and grid is None:
            raise InputError(f"Attention: expected grid=(height, width) for {pattern}, got none.")
        if order == 3 and (prior is not None or scores == "relu"):
            raise InputError(
                "Attention: expected order=2 with a prior or scores='relu', got order=3."
            )
        self.dim, self.heads, self.causal, self.seed = dim, heads, causal, seed
        self.grid = None if grid is None else (int(grid[0]), int(grid[1]))
        if self.grid is not None:
            self.token = self.grid[0] * self.grid[1]
        self.scores, self.order, self.prior = scores, order, prior
        names = ("query", "key", "value", *(("key2", "value2") if order == 3 else ()))
        self.maps = nn.ModuleDict({name: nn.Linear(dim, dim) for name in names})
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
        if frozen is not None:
            for name in ("query", "key"):
                self.maps[name].requires_grad_(False)
        self.local = nn.Parameter(torch.zeros(dim, 1, 3, 3)) if local_position else None
        if prior is not None:
            self.centre = nn.Parameter(_centres(heads, centres))
            self.sharpness = nn.Parameter(torch.ones(heads))
            self.gate = nn.Parameter(torch.ones(heads))
        self.register_buffer("done", torch.zeros((), dtype=torch.long))
        self.earlier, self._turn = EarlierStates(LATEST), CopiedLock()
        self.bfloat16_safe = not self.pattern.sorts  # a rounded value may fall in another bin
        self.symmetry = self._symmetry()

    def _symmetry(self) -> Symmetry:
        if self.grid is not None:
            return "none"
        if isinstance(self.pattern, Window) and self.order == 2:
            return "translation"
        free = isinstance(self.pattern, _FREE) or self.pattern.drawn
        return "permutation" if free and not self.causal else "none"

    def forward(
        self, x: Float[Tensor, "row token dim"], mask: Bool[Tensor, "row token"] | None = None
    ) -> Float[Tensor, "row token dim"]:
        """Return the states plus the output of the attention.

        Parameters
        ----------
        x : Float[Tensor, "row token dim"]
        mask : Bool[Tensor, "row token"], optional
            True for real tokens.

        Raises
        ------
        InputError
            If a row has no real token, or the tokens do not fill the grid.
        """
        pattern, numbers = self._draws(x, is_forward=True)
        heads = self._mean([self._heads(x, mask, pattern, number) for number in numbers])
        heads = rearrange(heads, "row head token width -> row token (head width)")
        if not self._is_unbounded():
            return x + self.out(heads)
        with without_autocast(x.device):
            weights = {name: p.to(heads) for name, p in self.out.named_parameters()}
            return x + functional_call(self.out, weights, (heads,)).to(x.dtype)

    def _is_unbounded(self) -> bool:
        """Return whether head outputs are unbounded products, which overflow in half types."""
        return self.order == 3 or self.scores == "relu"

    def probs(
        self, x: Float[Tensor, "row token dim"], mask: Bool[Tensor, "row token"] | None = None
    ) -> Float[Tensor, "row head query key"]:
        """Return the weight of each key for each query, for all pairs.

        ``random`` gives the weights of the next forward pass, or their mean over the draws.

        Raises
        ------
        InputError
            With ``order=3``, whose weights belong to pairs of keys.
        """
        if self.order == 3:
            raise InputError(
                "Attention.probs: expected order=2, got order=3, which has a weight for each "
                "pair of keys. Compare the layer's outputs instead."
            )
        pattern, numbers = self._draws(x, is_forward=False)
        weights: list[Tensor] = []
        for number in numbers:
            where, q, k, _ = self._where(x, mask, number)
            weights.append(self._weights(q, k, where, self._allowed(pattern, where)))
        return self._mean(weights).to(x.dtype)

    def features(
        self, x: Float[Tensor, "row token dim"], mask: Bool[Tensor, "row token"] | None = None
    ) -> Float[Tensor, "row token features"]:
        """Return each head's mixture of the states: with ``frozen``, a fixed basis for a ridge.

        Raises
        ------
        InputError
            With ``order=3`` or ``local_position``, whose output is not linear in them.
        """
        if self.order == 3 or self.local is not None:
            raise InputError(
                "Attention.features: expected a layer whose output is linear in mixtures of the "
                "states, got order=3 or local_position=True. Leave both out."
            )
        mixed = torch.einsum("rhqk,rkd->rqhd", self.probs(x, mask), x)
        return mixed.flatten(2)

    def _draws(self, x: Tensor, is_forward: bool) -> tuple[Pattern, Sequence[int]]:
        """Return this pass's pattern and its random numbers; every forward pass is counted."""
        pattern = self.pattern
        if not pattern.drawn:
            return pattern, (0,)
        if not self.training:
            n_draws = int(getattr(pattern, "draws", 0))
            return (pattern, range(n_draws)) if n_draws else (All(), (0,))
        if not is_forward:
            return pattern, (int(self.done),)
        if is_recomputing():
            return pattern, (self.earlier.of(x, "Attention"),)
        with self._turn:
            number = int(self.done)
            self.done += 1
        self.earlier.keep(x, number)
        return pattern, (number,)

    @staticmethod
    def _mean(made: list[Tensor]) -> Tensor:
        return made[0] if len(made) == 1 else torch.stack(made).mean(0)

    def _where(
        self, x: Tensor, mask: Tensor | None, number: int
    ) -> tuple[Where, Tensor, Tensor, Tensor]:
        """Return the pattern's token information, and queries, keys and values by head."""
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        if not torch.compiler.is_compiling() and not bool(real.any(1).all()):
            row = int((~real.any(1)).nonzero()[0])
            raise InputError(
                f"Attention: expected a real token in every row, got none in row {row}."
            )
        counted = (real.cumsum(1) - 1).clamp(min=0) if self.grid is None else None
        position = torch.arange(x.shape[1], device=x.device).expand(len(x), -1)
        position = position if counted is None else counted
        q, k, v = (self._split(name, x) for name in ("query", "key", "value"))
        generator = None
        if self.pattern.drawn:
            generator = torch.Generator().manual_seed(self.seed + 7919 * number)
        intensity = v.detach().mean(-1) if self.pattern.sorts else None
        where = Where(position, real, self.heads, self.grid, intensity, generator, self.causal)
        return where, q, k, v

    def _split(self, name: str, x: Tensor) -> Tensor:
        mapped = cast(nn.Linear, self.maps[name])(x)
        return rearrange(mapped, "row token (head width) -> row head token width", head=self.heads)

    def _allowed(self, pattern: Pattern, where: Where) -> Tensor:
        allowed = pattern.allowed(where) & where.real[:, None, None]
        if self.causal:
            before = where.position[:, None] <= where.position[:, :, None]
            if self._is_strict():
                before = where.position[:, None] < where.position[:, :, None]
            allowed = allowed & before[:, None]
        return allowed

    def _heads(self, x: Tensor, mask: Tensor | None, pattern: Pattern, number: int) -> Tensor:
        """Return the output of each head; zeros at padding."""
        where, q, k, v = self._where(x, mask, number)
        # how many tokens a group has is not known in a graph, which masks all pairs
        group = None if torch.compiler.is_compiling() else pattern.groups(where)
        if self.order == 3:
            attended = self._cubic(x, q, (k, v), self._allowed(pattern, where))
        elif self.prior is not None or self.scores == "relu":
            weights = self._weights(q, k, where, self._allowed(pattern, where))
            with without_autocast(v.device):
                attended = weights @ v.to(weights.dtype)
            attended = attended if self._is_unbounded() else attended.to(v.dtype)
        elif isinstance(pattern, All) and mask is None:
            attended = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        elif group is not None:
            attended = by_group(q, k, v, group, where.real, where.position if self.causal else None)
        elif isinstance(pattern, Axial):
            attended = on_axes(q, k, v, where.at()[2], where.real, self.causal)
        else:
            allowed = self._allowed(pattern, where)
            allowed = allowed | ~where.real[:, None, :, None]  # padding: any finite number
            attended = scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        if self.local is not None:
            attended = attended + self._local(
                v.masked_fill(~where.real[:, None, :, None], 0.0), where
            )
        return (
            attended if mask is None else attended.masked_fill(~where.real[:, None, :, None], 0.0)
        )

    def _local(self, v: Tensor, where: Where) -> Tensor:
        """Return the depthwise convolution of the values; if causal, without later pixels."""
        kernel = cast(Tensor, self.local)
        if self.causal:
            n = CENTRE + (not self._is_strict())
            seen = torch.arange(kernel[0].numel(), device=v.device).reshape(kernel.shape[1:]) < n
            kernel = kernel * seen
        image = rearrange(v, "r h (y x) d -> r (h d) y x", y=where.at()[2][0])
        moved = conv2d(image, kernel, padding=1, groups=self.dim)
        return rearrange(moved, "r (h d) y x -> r h (y x) d", h=self.heads)

    def _is_strict(self) -> bool:
        """Return whether a causal token does not attend to itself."""
        return isinstance(self.pattern, Axial) and self.pattern.axis == "both"

    def _cubic(self, x: Tensor, q: Tensor, first: tuple[Tensor, Tensor], allowed: Tensor) -> Tensor:
        if (n := x.shape[1]) > LONGEST_CUBIC:
            size_bytes = len(x) * self.heads * n**3 * x.element_size()
            raise InputError(
                f"Attention: expected at most {LONGEST_CUBIC} tokens for order=3, got {n}: its "
                f"weights take {size_bytes / 2**30:.1f} GiB. Cut the texts."
            )
        second = self._split("key2", x), self._split("value2", x)
        return over_pairs(q, (first[0], second[0]), (first[1], second[1]), allowed)

    def _weights(self, q: Tensor, k: Tensor, where: Where, allowed: Tensor) -> Tensor:
        """Return the weights, in float32 if the queries are of a half type."""
        with without_autocast(q.device):
            q, k = q.to(wide_type(q)) / math.sqrt(q.shape[-1]), k.to(wide_type(k))
            scores = q @ k.mT
            if self.scores == "relu":
                n = allowed.sum(-1, keepdim=True).clamp(min=1)
                return torch.relu(scores).masked_fill(~allowed, 0.0) / n
            weights = _softmax(scores, allowed)
            return weights if self.prior is None else self._mixed(weights, where, allowed)

    def _mixed(self, weights: Tensor, where: Where, allowed: Tensor) -> Tensor:
        """Return the weights, mixed with the positions' weights."""
        wide = where.at()[2][1]
        token = torch.arange(where.position.shape[1], device=weights.device)
        place = torch.stack([token // wide, token % wide], -1).to(weights)
        d = (place[None, :] - place[:, None])[None]
        near = d.square().sum(-1) - 2 * torch.einsum(
            "hqkc,hc->hqk", d.expand(self.heads, -1, -1, -1), self.centre.to(weights)
        )
        gate = self.gate.to(weights).sigmoid()[:, None, None]
        prior = -self.sharpness.to(weights)[:, None, None] * near
        return (1 - gate) * weights + gate * _softmax(prior.expand_as(weights), allowed)


def non_locality(
    probs: Float[Tensor, "*axes query key"], place: Float[Tensor, "key axis"]
) -> Float[Tensor, "*axes"]:
    """Return the mean distance between a query and the keys that it attends to.

    Parameters
    ----------
    probs : Float[Tensor, "*axes query key"]
        Rows that add up to 1.
    place : Float[Tensor, "key axis"]
        Coordinates of each token: one for texts, two on a grid.

    Examples
    --------
    >>> non_locality(torch.full((2, 2), 0.5), torch.tensor([[0.0], [3.0]])).item()
    1.5
    """
    gaps = (place[:, None] - place[None]).square().sum(-1).sqrt()
    return (probs * gaps.to(probs)).sum(-1).mean(-1)


def _softmax(scores: Tensor, allowed: Tensor) -> Tensor:
    """Return the softmax over the allowed keys; zeros for a query without allowed keys."""
    weights = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~allowed, 0.0)


def _centres(heads: int, centres: Any) -> Tensor:
    if centres is not None:
        places = torch.as_tensor(centres, dtype=torch.float32)
        if places.shape != (heads, 2):
            raise InputError(
                f"Attention: expected centres (down, right) for {heads} heads, got {centres}."
            )
        return places
    side = math.isqrt(heads)
    if side * side != heads:
        raise InputError(
            f"Attention: expected a square number of heads for the prior, or their centres, got "
            f"{heads} heads. Pass centres=((down, right), ...)."
        )
    line = torch.arange(side) - side // 2
    return torch.cartesian_prod(line, line).float()
