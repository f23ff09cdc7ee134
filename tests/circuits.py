"""Nets whose circuits are known because their weights were written by hand."""

import torch
from torch import Tensor, nn

TOKENS, LONGEST = 8, 8
BOS = 0
SHARP = 12.0
"""Scores of attention where query and key fit; 0 elsewhere."""


def linear(weight: Tensor) -> nn.Linear:
    """Return a layer without bias."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float64)
    layer.weight.data = weight.double()
    return layer


class Head(nn.Module):
    """One causal attention head without biases."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, o: Tensor) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (linear(weight) for weight in (q, k, v, o))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.q(x) @ self.k(x).transpose(1, 2)
        n = x.shape[1]
        scores = scores.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), -torch.inf)
        return self.o(scores.softmax(-1) @ self.v(x))


class Block(nn.Module):
    """Two heads side by side around the residual stream."""

    def __init__(self, heads: list[Head]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, x: Tensor) -> Tensor:
        for made in [head(x) for head in self.heads]:
            x = x + made
        return x


class Induction(nn.Module):
    """A two-layer attention-only transformer that goes on from ``A B .. A`` with ``B``.

    The stream holds the token, its position, the token before, and the answer, one-hot each, and
    room where two idle heads write. ``blocks.0.heads.0`` copies the token before; what it wrote is
    the key of ``blocks.1.heads.0``, which copies the token that came after the same token earlier.
    """

    def __init__(self) -> None:
        super().__init__()
        v, t = TOKENS, LONGEST
        token, place, before, answer, idle = (
            torch.eye(3 * v + t + v)[a:b]
            for a, b in ((0, v), (v, v + t), (v + t, 2 * v + t), (2 * v + t, 3 * v + t),
                         (3 * v + t, 4 * v + t))
        )  # fmt: skip
        shift = torch.zeros(t, t)
        shift[torch.arange(t - 1), torch.arange(1, t)] = 1.0  # query t -> key t - 1
        self.tokens = nn.Embedding.from_pretrained(token.double())
        self.places = nn.Embedding.from_pretrained(place.double())
        generator = torch.Generator().manual_seed(0)

        def idler() -> Head:
            q, k = (torch.randn(4, 4 * v + t, generator=generator) for _ in range(2))
            return Head(q, k, token, idle.T)

        previous = Head(SHARP * shift @ place, place, token, before.T)
        match = Head(SHARP * token, before, token, answer.T)
        self.blocks = nn.ModuleList([Block([previous, idler()]), Block([match, idler()])])
        self.unembed = linear(10.0 * answer)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.places(torch.arange(input_ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.unembed(x)


CLEAN = torch.tensor([[BOS, 1, 2, 3, 4, 1]])
CORRUPT = torch.tensor([[BOS, 5, 2, 3, 4, 1]])
"""Without the first ``1`` nothing says what comes after a ``1``."""
ANSWER, INSTEAD = 2, 4
CIRCUIT = {
    ("tokens:out", "blocks.0.heads.0.v:in"),
    ("blocks.0.heads.0.o:out", "blocks.1.heads.0.k:in"),
    ("blocks.1.heads.0.o:out", "unembed:in"),
}
"""The only edges over which what tells the two texts apart reaches the answer."""
