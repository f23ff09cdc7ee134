"""Byte-level language models that are equal but for how positions mix."""

from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv1d, scaled_dot_product_attention, silu

Mixing = Literal["attention", "recurrence", "state space", "convolution"]
MIXINGS: tuple[Mixing, ...] = get_args(Mixing)
WIDTH, BLOCKS, HEADS, KERNEL, CHUNK = 96, 2, 4, 16, 32


class ByteNet(nn.Module):
    """A causal language model of bytes.

    Parameters
    ----------
    mixing : {"attention", "recurrence", "state space", "convolution"}
        Layer that mixes positions, the only difference between the kinds.
    """

    def __init__(self, mixing: Mixing) -> None:
        super().__init__()
        self.embed = nn.Embedding(256, WIDTH)
        self.blocks = nn.ModuleList(_Block(_KINDS[mixing]()) for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(WIDTH)
        nn.init.normal_(self.embed.weight, std=WIDTH**-0.5)

    def forward(
        self, ids: Int[Tensor, "text pos"], past: list[Any] | None = None
    ) -> tuple[Float[Tensor, "text pos byte"], list[Any]]:
        """Return logits of the next byte, and what the blocks remember of all bytes so far."""
        x, kept = self.embed(ids), list[Any]()
        for i, block in enumerate(self.blocks):
            x, own = block(x, past[i] if past else None)
            kept.append(own)
        return self.norm(x) @ self.embed.weight.T, kept


class _Block(nn.Module):
    """A mixing layer and a perceptron, each added to its normalised input."""

    def __init__(self, mix: nn.Module) -> None:
        super().__init__()
        self.mix, self.first, self.second = mix, nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.each = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor, past: Any) -> tuple[Tensor, Any]:
        mixed, past = self.mix(self.first(x), past)
        x = x + mixed
        return x + self.each(self.second(x)), past


class _Attention(nn.Module):
    """Causal attention that falls off with distance at a rate of each head."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, past: Any) -> tuple[Tensor, Any]:
        q, k, v = self.into(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        n = k.shape[2]
        lag = torch.arange(n - q.shape[2], n)[:, None] - torch.arange(n)
        slope = 0.25 ** torch.arange(HEADS)[:, None, None]
        bias = (-slope * lag).masked_fill(lag < 0, -torch.inf)
        mixed = scaled_dot_product_attention(q, k, v, bias)
        return self.out(mixed.transpose(1, 2).flatten(2)), (k, v)


class _Recurrence(nn.Module):
    """A gated recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: Tensor, past: Any) -> tuple[Tensor, Any]:
        return self.cell(x, past)


class _StateSpace(nn.Module):
    """Linear states that decay at learned rates, read through a gate."""

    def __init__(self) -> None:
        super().__init__()
        n = 2 * WIDTH
        self.rate = nn.Parameter(torch.linspace(-4.6, 0.7, n))  # logarithms: 1/100 to 2 a byte
        self.into, self.gate, self.out = (nn.Linear(a, b) for a, b in
                                          ((WIDTH, n), (WIDTH, n), (n, WIDTH)))  # fmt: skip

    def forward(self, x: Tensor, past: Any) -> tuple[Tensor, Any]:
        rate, states = self.rate.exp(), list[Tensor]()
        put = self.into(x) * (1 - (-2 * rate).exp()).sqrt()
        state = put.new_zeros(len(x), 1, 2 * WIDTH) if past is None else past
        time = torch.arange(CHUNK)
        lag = (time[:, None] - time).clamp(min=0)
        decay = (-rate[:, None, None] * lag).exp().tril()
        fade = (-rate * (time + 1)[:, None]).exp()
        for part in put.split(CHUNK, 1):
            n = part.shape[1]
            own = torch.einsum("dts,bsd->btd", decay[:, :n, :n], part)
            states.append(own + state * fade[:n])
            state = states[-1][:, -1:]
        return self.out(torch.cat(states, 1) * silu(self.gate(x))), state


class _Convolution(nn.Module):
    """A gated causal convolution of each unit over the last bytes."""

    def __init__(self) -> None:
        super().__init__()
        n = 2 * WIDTH
        self.kernel = nn.Parameter(torch.randn(n, 1, KERNEL) * KERNEL**-0.5)
        self.into, self.gate, self.out = (nn.Linear(a, b) for a, b in
                                          ((WIDTH, n), (WIDTH, n), (n, WIDTH)))  # fmt: skip

    def forward(self, x: Tensor, past: Any) -> tuple[Tensor, Any]:
        put = self.into(x).transpose(1, 2)
        before = put.new_zeros(*put.shape[:2], KERNEL - 1) if past is None else past
        put = torch.cat([before, put], 2)
        mixed = conv1d(put, self.kernel, groups=len(self.kernel)).transpose(1, 2)
        return self.out(mixed * silu(self.gate(x))), put[:, :, 1 - KERNEL :]


_KINDS: dict[Mixing, type[nn.Module]] = {
    "attention": _Attention,
    "recurrence": _Recurrence,
    "state space": _StateSpace,
    "convolution": _Convolution,
}
