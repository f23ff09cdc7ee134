"""Attention without a softmax: a running sum instead of all pairs, for long texts."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, final

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import elu, normalize

from sonde.core.errors import InputError
from sonde.layers.layer import Layer

FLOOR = 1e-6
PREFIX_MAPS = ("prefix_key", "prefix_value")


@final
class LinearAttention(Layer):
    """Causal attention by features, whose cost grows with the tokens and not with their pairs.

    ``out_i = phi(q_i) S_i / (phi(q_i) . z_i)`` with ``S_i = sum_j<=i phi(k_j) v_j'`` and
    ``z_i = sum_j<=i phi(k_j)``, added to the states by a map that starts at zero. The first
    ``prefix`` tokens of a call may be seen by all tokens.

    Cost         state ``features (dim / heads + 1)`` numbers for each head, at any length.
    Assumes      texts; the first token is the first real one.

    Parameters
    ----------
    dim : int
    heads : int, default=4
    feature : {"elu", "taylor"}, default="elu"
        ``elu(x) + 1``, or ``(1, x, x x' / sqrt 2)`` of queries and keys of length one.
    form : {"chunked", "parallel", "recurrent"}, default="chunked"
        The same numbers: chunk by chunk, over all pairs, or token by token.
    prefix_projection : {"shared", "separate"}, default="shared"
        ``separate`` adds sums over the prefix with keys and values of their own.
    chunk : int, default=64

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
        """Return the states with what the attention adds.

        Parameters
        ----------
        x : Float[Tensor, "row token dim"]
        mask : Bool[Tensor, "row token"], optional
            True for real tokens.
        prefix : int, default=0
            Tokens at the start that all tokens see. A model that predicts them sees its answer.
        """
        if prefix < 0:
            raise InputError(f"LinearAttention: expected a prefix of 0 or more, got {prefix}.")
        wide = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
        real = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if mask is None else mask
        q, k = (self._features(self._split(n, x).to(wide)) for n in ("query", "key"))
        v = _with_one(self._split("value", x).to(wide))
        k = k * real[:, None, :, None]
        start = q.new_zeros(*q.shape[:2], q.shape[3], v.shape[3])
        if prefix:
            first = (real & (real.cumsum(1) <= prefix))[:, None, :, None]
            if "prefix_key" in self.maps:
                own_k = self._features(self._split("prefix_key", x).to(wide))
                own_v = _with_one(self._split("prefix_value", x).to(wide))
                start = (own_k * first).mT @ own_v
            else:
                start, k = (k * first).mT @ v, k * ~first
        made = causal_sums(q, k, v, start, self.chunk)
        heads = made[..., :-1] / made[..., -1:].clamp(min=FLOOR)
        heads = heads.masked_fill(~real[:, None, :, None], 0.0).to(x.dtype)
        return x + self.out(rearrange(heads, "row head token width -> row token (head width)"))

    def _split(self, name: str, x: Tensor) -> Tensor:
        return rearrange(self.maps[name](x), "row token (h w) -> row h token w", h=self.heads)

    def _features(self, x: Tensor) -> Tensor:
        if self.feature == "elu":
            return elu(x) + 1
        x = normalize(x, dim=-1)
        pairs = (x[..., :, None] * x[..., None, :]).flatten(-2) / 2**0.5
        return torch.cat([torch.ones_like(x[..., :1]), x, pairs], -1)


def causal_sums(
    q: Float[Tensor, "row head token features"],
    k: Float[Tensor, "row head token features"],
    v: Float[Tensor, "row head token width"],
    start: Float[Tensor, "row head features width"],
    chunk: int,
) -> Float[Tensor, "row head token width"]:
    """Return ``q_i (start + sum_j<=i k_j v_j')``, chunk by chunk; 0 takes all tokens at once."""
    parts: list[Tensor] = []
    n = q.shape[2]
    for i in range(0, n, chunk or max(n, 1)):
        a, b, c = (x[:, :, i : i + (chunk or n)] for x in (q, k, v))
        parts.append((a @ b.mT).tril() @ c + a @ start)
        start = start + b.mT @ c
    return torch.cat(parts, 2) if parts else v


def _with_one(v: Tensor) -> Tensor:
    """Return values with a column of ones, whose sums are the normaliser."""
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)
