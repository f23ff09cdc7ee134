"""A language model that knows one Markov chain exactly, and texts that it wrote."""

import torch
from torch import Tensor, nn

WORDS, FIRST = 61, 3


class Chain(nn.Module):
    """Predicts the next word from the last one alone."""

    def __init__(self, sharpness: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(WORDS, 16), nn.Linear(16, WORDS)
        nn.init.normal_(self.head.weight, std=sharpness)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.embedding(input_ids))


@torch.no_grad()
def drawn(model: Chain, n: int, length: int, seed: int = 0) -> Tensor:
    """Return texts that the model wrote; no word is one of the special ones."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(FIRST, WORDS, (n, 1), generator=draw)
    while ids.shape[1] < length:
        logits = model(ids[:, -1])
        logits[:, :FIRST] = -torch.inf
        ids = torch.cat([ids, torch.multinomial(logits.softmax(1), 1, generator=draw)], dim=1)
    return ids


def exchanged(ids: Tensor, seed: int = 0) -> Tensor:
    """Return texts in which every word is replaced by another, always the same."""
    order = torch.randperm(WORDS - FIRST, generator=torch.Generator().manual_seed(seed))
    return order[ids - FIRST] + FIRST
