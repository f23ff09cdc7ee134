"""Attention without a softmax: running sums instead of all pairs, for long texts."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, final

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde.core.errors import InputError, SondeWarning
from sonde.layers._attending import wide_type, with_one
from sonde.layers.layer import Layer

FLOOR = 1e-6
MAPS = ("key", "value")
PREFIX_MAPS = ("prefix_key", "prefix_value")
BLOCK = 1024
"""Tokens whose queries, keys and values are held at a time."""


@final
class LinearAttention(Layer):
    """Causal attention by feature maps, with a cost linear in the number of tokens.

    ``out_i = phi(q_i) S_i / (phi(q_i) . z_i)`` with ``S_i = sum_j<=i phi(k_j) v_j'`` and
    ``z_i = sum_j<=i phi(k_j)``, added to the states by a map that starts at zero. The first
    ``prefix`` tokens of a call may be seen by all tokens.

    Cost         state ``features (dim / heads + 1)`` numbers for each head, at any length.
    Assumes      texts; the first token is the first real one.

    Parameters
    ----------
    dim : int
        Width of the states; a multiple of ``heads``.
    heads : int, default=4
        Number of heads.
    feature : {"elu", "taylor"}, default="elu"
        ``elu(x) + 1``, or ``(1, x, x x' / sqrt 2)`` of queries and keys of length one.
    form : {"chunked", "parallel", "recurrent"}, default="chunked"
        How to compute the sums: chunk by chunk, over all pairs, or token by token; results are
        equal.
    prefix_projection : {"shared", "separate"}, default="shared"
        ``separate`` adds sums over the prefix, from separate key and value maps.
    chunk : int, default=64
        Number of tokens that ``form="chunked"`` computes at once.

    References
    ----------
    katharopoulos2020linear
    """

    paper: ClassVar[str] = "katharopoulos2020linear"
    variants: ClassVar[Mapping[str, str]] = {"prefix_projection='separate'": "arora2024jrt"}
    examples: ClassVar[tuple[dict[str, Any], ...]] = (
        {"dim": 4, "heads": 2, "chunk": 4},
        {"dim": 4, "heads": 2, "feature": "taylor", "form": "recurrent"},
        {"dim": 4, "heads": 2, "form": "parallel", "prefix_projection": "separate"},
    )
    layout: ClassVar[tuple[str, ...]] = ("row token dim",)
    causal = True  # but for a prefix

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        feature: Literal["elu", "taylor"] = "elu",
        form: Literal["chunked", "parallel", "recurrent"] = "chunked",
        prefix_projection: Literal["shared", "separate"] = "shared",
        chunk: int = 64,
    ) -> None:
        super().__init__()
        if dim % heads or chunk < 1:
            raise InputError(
                f"LinearAttention: expected a dim that {heads} heads divide and a chunk of at "
                f"least one token, got {dim} and {chunk}."
            )
        self.dim, self.heads, self.feature, self.form = dim, heads, feature, form
        self.chunk = {"chunked": chunk, "parallel": 0, "recurrent": 1}[form]
        names = ["query", "key", "value"]
        names += PREFIX_MAPS if prefix_projection == "separate" else ()
        self.maps = nn.ModuleDict({name: nn.Linear(dim, dim) for name in names})
        self.out = nn.Linear(dim, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        x: Float[Tensor, "row token dim"],
        mask: Bool[Tensor, "row token"] | None = None,
        prefix: int = 0,
    ) -> Float[Tensor, "row token dim"]:
        """Return the states plus the output of the attention.

        Parameters
        ----------
        x : Float[Tensor, "row token dim"]
        mask : Bool[Tensor, "row token"], optional
            True for real tokens.
        prefix : int, default=0
            Number of first tokens, which all tokens see: a model that predicts a prefix token sees
            its answer. A text that is shorter than the prefix brings a warning.
        """
        if prefix < 0:
            raise InputError(f"LinearAttention: expected a prefix of 0 or more, got {prefix}.")
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        seen, state = real, self._empty(x)
        if prefix:
            separate = "prefix_key" in self.maps
            first = _first(real, prefix)
            for part, early in self._blocks(x, first):
                if bool(early.any()):
                    k, v = self._memory(part, early, PREFIX_MAPS if separate else MAPS)
                    state = state + k.mT @ v
            seen = real if separate else real & ~first
        parts: list[Tensor] = []
        for part, keys, some in self._blocks(x, seen, real):
            k, v = self._memory(part, keys, MAPS)
            q = self._features(self._split("query", part).to(k.dtype))
            sums, state = causal_sums(q, k, v, state, self.chunk)
            heads = sums[..., :-1] / sums[..., -1:].clamp(min=FLOOR)
            heads = heads.masked_fill(~some[:, None, :, None], 0.0).to(x.dtype)
            heads = rearrange(heads, "row head token width -> row token (head width)")
            parts.append(part + self.out(heads))
        return torch.cat(parts, 1) if parts else x

    def _blocks(self, *given: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Yield the tensors block by block; ``parallel`` gives a single block."""
        size = max(self.chunk, BLOCK) if self.chunk else max(given[0].shape[1], 1)
        return zip(*(x.split(size, 1) for x in given), strict=True)

    def _memory(self, x: Tensor, seen: Tensor, names: tuple[str, str]) -> tuple[Tensor, Tensor]:
        """Return the values and the features of the keys, which are zero for hidden tokens."""
        key, value = (self._split(name, x).to(wide_type(x)) for name in names)
        return self._features(key) * seen[:, None, :, None], with_one(value)

    def _empty(self, x: Tensor) -> Tensor:
        """Return the sums before the first token: zeros."""
        width = self.dim // self.heads
        none = torch.zeros(1, width, dtype=wide_type(x), device=x.device)
        return none.new_zeros(len(x), self.heads, self._features(none).shape[1], width + 1)

    def _split(self, name: str, x: Tensor) -> Tensor:
        return rearrange(self.maps[name](x), "row token (h w) -> row h token w", h=self.heads)

    def _features(self, x: Tensor) -> Tensor:
        if self.feature == "elu":
            return torch.where(x > 0, x + 1, x.clamp(max=0).exp())  # elu(x) + 1, exact below 0
        x = normalize(x, dim=-1)
        pairs = (x[..., :, None] * x[..., None, :]).flatten(-2) / 2**0.5
        return torch.cat([torch.ones_like(x[..., :1]), x, pairs], -1)


def causal_sums(
    q: Float[Tensor, "row head token features"],
    k: Float[Tensor, "row head token features"],
    v: Float[Tensor, "row head token width"],
    start: Float[Tensor, "row head features width"],
    chunk: int,
) -> tuple[Float[Tensor, "row head token width"], Float[Tensor, "row head features width"]]:
    """Return ``q_i (start + sum_j<=i k_j v_j')`` and the sums after the last token.

    Tokens are taken chunk by chunk; ``chunk=0`` takes all tokens at once.
    """
    parts: list[Tensor] = []
    for a, b, c in zip(*(x.split(chunk or max(x.shape[2], 1), 2) for x in (q, k, v)), strict=True):
        parts.append((a @ b.mT).tril() @ c + a @ start)
        start = start + b.mT @ c
    return torch.cat(parts, 2), start


def _first(real: Tensor, prefix: int) -> Tensor:
    """Return a mask of the prefix tokens, and warn of a text with fewer tokens."""
    counted = real.cumsum(1)
    if real.shape[1] and (n := int(counted[:, -1].min())) < prefix:
        warnings.warn(
            f"LinearAttention: the prefix of {prefix} tokens covers the whole text of {n} "
            "tokens, so all tokens attend to each other, including later ones. Take a shorter "
            "prefix if this is not intended.",
            SondeWarning,
            stacklevel=2,
        )
    return real & (counted <= prefix)
