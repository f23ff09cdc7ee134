"""A language model that counts, each block a little more surely, and texts that count."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from findings._nets import tokens
from sonde.tap import LiveStream

WORDS, DIM = 32, 32


class Step(nn.Module):
    """Writes the next token's embedding into the stream, or takes part of it back."""

    def __init__(self, table: Tensor, amount: float) -> None:
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.amount = amount

    def forward(self, x: Tensor) -> Tensor:
        token = (x[..., :DIM] @ self.table.T).argmax(-1)
        write = self.table[(token + 1) % WORDS] * self.amount
        return x + torch.cat([torch.zeros_like(write), write], dim=-1)


class Counter(nn.Module):
    """Predicts token + 1, each block a little more surely, in the half that its head reads."""

    def __init__(self, amounts: tuple[float, ...], tail: float = 1.0) -> None:
        super().__init__()
        table = torch.eye(WORDS, DIM)
        self.embedding = nn.Parameter(table)
        self.blocks = nn.ModuleList([Step(table, a) for a in amounts])
        self.norm = nn.Identity()
        self.lm_head = nn.Linear(2 * DIM, WORDS, bias=False)
        self.tail = tail
        with torch.no_grad():
            self.lm_head.weight.copy_(torch.cat([torch.zeros(WORDS, DIM), table], dim=1))

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace | dict:
        x = self.embedding[input_ids]
        x = torch.cat([x, torch.zeros_like(x)], dim=-1)
        for block in self.blocks:
            x = block(x)
        return {"logits": self.lm_head(self.norm(x)) * self.tail}


def counting(module: nn.Module, n: int = 40, wrong: float = 0.2) -> LiveStream:
    """Return texts that count upwards, with jumps."""
    stream = tokens(module, [20] * n, task="causal", vocabulary=WORDS)
    generator = np.random.default_rng(0)
    items = []
    for _ in range(n):
        item = [int(generator.integers(WORDS))]
        for _ in range(19):
            jump = generator.random() < wrong
            item.append(int(generator.integers(WORDS)) if jump else (item[-1] + 1) % WORDS)
        items.append(item)
    object.__setattr__(stream.inputs, "items", items)
    return stream
