"""Kernels of ``Attention``: by groups, along the axes of a grid, and over pairs of keys."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from sonde.core.autocast import without_autocast
from sonde.layers.patterns import Grid

PAIRS = 2**18
"""Pairs of tokens whose weights are held at a time: 1 MiB, which stays in a processor's cache."""


def by_group(
    q: Float[Tensor, "row head token width"],
    k: Float[Tensor, "row head token width"],
    v: Float[Tensor, "row head token width"],
    group: Int[Tensor, "_ _ token"],
    real: Bool[Tensor, "row token"],
    position: Int[Tensor, "row token"] | None,
) -> Float[Tensor, "row head token width"]:
    """Return attention inside groups; with positions, a token attends to no later token."""
    if not v.numel():
        return torch.zeros_like(v)
    plain = bool(real.all())
    if not plain:
        group = torch.where(real[:, None], group, group.max() + 1)
    counts = torch.zeros(*group.shape[:2], int(group.max()) + 1, dtype=torch.long)
    counts = counts.to(group).scatter_add_(2, group, torch.ones_like(group))
    kept = counts if plain else counts[..., :-1]
    size, n_groups = int(kept.max()), kept.shape[2]
    order = group.argsort(dim=-1, stable=True)
    ranked = group.gather(2, order)
    rank = torch.arange(group.shape[2], device=group.device) - (counts.cumsum(2) - counts).gather(
        2, ranked
    )
    slot = torch.where((ranked < n_groups) & (rank < size), ranked * size + rank, n_groups * size)
    shape = (*group.shape[:2], n_groups * size + 1)
    index = torch.zeros(shape, dtype=torch.long, device=group.device).scatter_(2, slot, order)
    filled = torch.zeros(shape, dtype=torch.bool, device=group.device).scatter_(2, slot, True)
    index, filled = index[..., :-1], filled[..., :-1]
    cut = [_taken(x, index).unflatten(2, (n_groups, size)) for x in (q, k, v)]
    mask = _inside(index, filled.unflatten(2, (n_groups, size)), position)
    attended = scaled_dot_product_attention(cut[0], cut[1], cut[2], attn_mask=mask).flatten(2, 3)
    back = torch.zeros_like(group).scatter_(2, order, slot.clamp(max=n_groups * size - 1))
    return _taken(attended, back)


def _taken(x: Tensor, index: Tensor) -> Tensor:
    if index.shape[:2] == (1, 1):
        return x.index_select(2, index[0, 0])
    return x.gather(2, index[..., None].expand(*x.shape[:2], -1, x.shape[3]))


def _inside(index: Tensor, filled: Tensor, position: Tensor | None) -> Tensor | None:
    """Return the attention mask inside each group; an empty slot attends to itself."""
    if position is None and bool(filled.all()):
        return None
    mask = filled[..., None, :]
    if position is not None:
        place = position[:, None].expand(-1, index.shape[1], -1)
        place = place.gather(2, index.expand(len(place), -1, -1)).unflatten(2, filled.shape[2:])
        mask = mask & (place[..., None, :] <= place[..., None])
    own = torch.eye(filled.shape[3], dtype=torch.bool, device=filled.device)
    return mask | own


def on_axes(
    q: Float[Tensor, "row head token width"],
    k: Float[Tensor, "row head token width"],
    v: Float[Tensor, "row head token width"],
    grid: Grid,
    real: Bool[Tensor, "row token"],
    causal: bool,
) -> Float[Tensor, "row head token width"]:
    """Return joint attention over the row and the column of each token.

    If ``causal``, a token looks at the tokens above it in its column and to its left in its row,
    but not at itself; the first token looks at nothing and gets zeros.
    """
    size = max(1, PAIRS // (grid[0] * grid[1] * max(grid)))
    own = real.unflatten(1, grid).repeat_interleave(q.shape[1], 0)
    flat = (x.unflatten(2, grid).flatten(0, 1) for x in (q, k, v))
    parts = zip(*(x.split(size) for x in (*flat, own)), strict=True)
    with without_autocast(q.device):
        attended = torch.cat([_on_axes(a, b, c, d, causal) for a, b, c, d in parts])
    return attended.flatten(1, 2).unflatten(0, q.shape[:2])


def _on_axes(
    q: Float[Tensor, "head high wide width"],
    k: Float[Tensor, "head high wide width"],
    v: Float[Tensor, "head high wide width"],
    real: Bool[Tensor, "head high wide"],
    causal: bool,
) -> Float[Tensor, "head high wide width"]:
    """Return the attention of these heads along rows and columns, summed in float32 or more."""
    kind = v.dtype
    q, k, v = (x.to(wide_type(x)) for x in (q, k, v))
    along = q @ k.mT  # head high wide key
    down = q.transpose(1, 2) @ k.transpose(1, 2).mT  # head wide high key
    if causal:
        high, wide = (
            torch.ones(n, n, dtype=torch.bool, device=q.device).triu() for n in q.shape[1:3]
        )
        along, down = along.masked_fill(wide, -torch.inf), down.masked_fill(high, -torch.inf)
    else:  # the row holds the token itself
        down.diagonal(dim1=-2, dim2=-1).fill_(-torch.inf)
    if not bool(real.all()):
        along = along.masked_fill(~real[:, :, None], -torch.inf)
        down = down.masked_fill(~real.mT[:, :, None], -torch.inf)
    top = torch.maximum(along.detach().amax(-1), down.detach().amax(-1).mT)
    top = top.clamp(min=torch.finfo(q.dtype).min).unsqueeze(-1)
    # in place: much of the time goes to new memory, so the queries are not scaled before
    scale = q.shape[-1] ** -0.5
    along = along.sub_(top).mul_(scale).exp_()
    down = down.sub_(top.transpose(1, 2)).mul_(scale).exp_()
    total = (along.sum(-1) + down.sum(-1).mT).unsqueeze(-1)
    weighted = along @ v
    weighted += (down @ v.transpose(1, 2)).transpose(1, 2)
    return (weighted / torch.where(total > 0, total, torch.ones_like(total))).to(kind)


def wide_type(x: Tensor) -> torch.dtype:
    """Return the dtype for sums of these entries: float32 for half types, which overflow."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def with_one(v: Float[Tensor, "*axes width"]) -> Float[Tensor, "*axes width+1"]:
    """Return values with a column of ones, whose weighted sum is the sum of the weights."""
    return torch.cat([v, torch.ones_like(v[..., :1])], -1)


def over_pairs(
    q: Float[Tensor, "row head token width"],
    k: tuple[Tensor, Tensor],
    v: tuple[Tensor, Tensor],
    allowed: Bool[Tensor, "_ _ token token"],
) -> Float[Tensor, "row head token width"]:
    """Return attention over pairs of tokens, computed one query at a time in float32 or wider.

    ``A_i,(j,k) = softmax_jk(sum_d q_id k1_jd k2_kd / sqrt d)``; ``sum_jk A (v1_j * v2_k)``.
    """
    allowed = allowed.expand(q.shape[0], q.shape[1], -1, -1)
    with without_autocast(q.device):
        q, *keys = (x.to(wide_type(x)) for x in (q, *k))
        values = [x.to(wide_type(x)) for x in v]
        heads: list[Tensor] = []
        for i in range(q.shape[2]):
            scores = (q[:, :, i, None] * q.shape[-1] ** -0.5 * keys[0]) @ keys[1].mT
            both = allowed[:, :, i, :, None] & allowed[:, :, i, None, :]
            scores = scores.masked_fill(~both, torch.finfo(q.dtype).min)
            share = scores.flatten(2).softmax(-1).view_as(scores).masked_fill(~both, 0.0)
            heads.append(((share @ values[1]) * values[0]).sum(2))
        return torch.stack(heads, 2)
