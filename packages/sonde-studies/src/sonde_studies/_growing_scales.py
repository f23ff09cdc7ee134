"""Pictures as codes of growing scales, and a transformer that predicts a whole scale at once."""

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, scaled_dot_product_attention

from sonde.layers import Attention, LinearAttention

SIDES, LEVELS, DIM, HEADS = (1, 2, 4, 8), 8, 32, 4
SIZES = tuple(side**2 for side in SIDES)
N_TOKENS, N_CODES = sum(SIZES), 2 * LEVELS + 1
WITHIN = "block:" + ",".join(map(str, SIZES))
SCALE = torch.repeat_interleave(torch.arange(len(SIDES)), torch.tensor(SIZES))

Pictures = Float[Tensor, "picture 8 8"]
Codes = Int[Tensor, "picture token"]


def up(x: Float[Tensor, "picture side side"], side: int) -> Float[Tensor, "picture side2 side2"]:
    """Return pictures enlarged to ``side`` pixels by bilinear interpolation."""
    return interpolate(x[:, None], (side, side), mode="bilinear", align_corners=False)[:, 0]


def codes_of(x: Pictures) -> Codes:
    """Return the codes of each scale: its mean pixels less the enlarged picture so far.

    Differences are rounded to multiples of ``1 / LEVELS``.
    """
    made, so_far = list[Tensor](), torch.zeros_like(x[:, :1, :1])
    for side in SIDES:
        so_far = up(so_far, side)
        rest = avg_pool2d(x[:, None], x.shape[-1] // side)[:, 0] - so_far
        code = (LEVELS * rest).round().clamp(-LEVELS, LEVELS)
        so_far = so_far + code / LEVELS
        made.append(code.flatten(1).long() + LEVELS)
    return torch.cat(made, 1)


def read_back(codes: Codes) -> list[Float[Tensor, "picture side side"]]:
    """Return the picture so far after each scale that the codes fill."""
    found, so_far, done = list[Tensor](), torch.zeros(len(codes), 1, 1), 0
    for side, size in zip(SIDES, SIZES, strict=True):
        if codes.shape[1] < done + size:
            break
        own = (codes[:, done : done + size] - LEVELS).reshape(-1, side, side) / LEVELS
        so_far, done = up(so_far, side) + own, done + size
        found.append(so_far)
    return found


class ScaleNet(nn.Module):
    """A transformer of mixing layers that have as many parameters in all kinds, and one MLP.

    The first scale's input is the class, that of a later scale the enlarged picture so far.

    Parameters
    ----------
    kinds : tuple of str
        The mixing layers: ``full``, ``within`` or ``linear``.
    """

    def __init__(self, kinds: tuple[str, ...]) -> None:
        super().__init__()
        self.kind, self.value = nn.Embedding(10, DIM), nn.Linear(1, DIM)
        self.place = nn.Parameter(0.1 * torch.randn(N_TOKENS, DIM))
        self.parts = nn.ModuleList(_Part(kind) for kind in (*kinds, "each"))
        self.norm, self.last = nn.LayerNorm(DIM), nn.Linear(DIM, N_CODES)

    def forward(
        self, codes: Codes, label: Int[Tensor, "picture"]
    ) -> Float[Tensor, "picture token2 code"]:
        """Return the logits of all scales whose earlier scales are given."""
        sides = SIDES[1:]
        seen = [up(x, side).flatten(1) for x, side in zip(read_back(codes), sides, strict=False)]
        x = torch.cat([torch.zeros(len(codes), 1), *seen], 1)
        h = self.value(x[..., None]) + self.place[: x.shape[1]]
        h = torch.cat([h[:, :1] + self.kind(label)[:, None], h[:, 1:]], 1)
        for part in self.parts:
            h = part(h)
        return self.last(self.norm(h))


class FullAttention(nn.Module):
    """Attention to all tokens of the same scale and of earlier ones, added to the states.

    As ``sonde.layers.Attention``, which has no such pattern.
    """

    def __init__(self) -> None:
        super().__init__()
        names = ("query", "key", "value")
        self.maps = nn.ModuleDict({name: nn.Linear(DIM, DIM) for name in names})
        self.out = nn.Linear(DIM, DIM)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Float[Tensor, "row token dim"]) -> Float[Tensor, "row token dim"]:
        """Return the states plus the output of the attention."""
        q, k, v = (rearrange(m(x), "r t (h w) -> r h t w", h=HEADS) for m in self.maps.values())
        scale = SCALE[: x.shape[1]]
        heads = scaled_dot_product_attention(q, k, v, attn_mask=scale[:, None] >= scale)
        return x + self.out(rearrange(heads, "r h t w -> r t (h w)"))


class _Part(nn.Module):
    """A mixing layer or an MLP behind a norm, added to the states."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.norm, self.adds = nn.LayerNorm(DIM), kind != "each"
        self.body = _body(kind)

    def forward(self, h: Tensor) -> Tensor:
        x = self.norm(h)
        return h + self.body(x) - x if self.adds else h + self.body(x)


def _body(kind: str) -> nn.Module:
    if kind == "full":
        return FullAttention()
    if kind == "within":
        return Attention(DIM, HEADS, WITHIN)
    if kind == "linear":
        return LinearAttention(DIM, HEADS)
    return nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))


@torch.no_grad()
def sampled(net: ScaleNet, label: Int[Tensor, "picture"], seed: int) -> Codes:
    """Return codes drawn scale by scale, all tokens of a scale at once."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.zeros(len(label), 0, dtype=torch.long)
    for size in SIZES:
        probs = net(codes, label)[:, -size:].softmax(-1)
        new = torch.multinomial(probs.flatten(0, 1), 1, generator=draw).reshape(len(label), size)
        codes = torch.cat([codes, new], 1)
    return codes


def multiply_adds(kind: str) -> int:
    """Return the multiply-adds of mixing all tokens of a picture once, projections left out.

    Attention takes ``2 dim`` for each pair. Linear attention adds each token to its sums and reads
    them: ``2 dim (dim / heads + 1)`` for each token.
    """
    if kind == "linear":
        return N_TOKENS * 2 * DIM * (DIM // HEADS + 1)
    seen = SIZES if kind == "within" else [sum(SIZES[: i + 1]) for i in range(len(SIZES))]
    return sum(a * b for a, b in zip(SIZES, seen, strict=True)) * 2 * DIM
