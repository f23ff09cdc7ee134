"""A language model of two alphabets, in which each hidden unit knows what follows one token."""

from types import SimpleNamespace

import torch
from torch import nn

N = 12
"""Tokens: the first 5 are one domain, the other 7 a second one."""
DOMAINS = {"low": range(5), "high": range(5, N)}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(N, N + 1), nn.Linear(N + 1, N)

    def forward(self, x):
        return self.down(self.up(x).relu())


class TwoDomains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mlp = nn.Embedding(N, N), Block()
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(N))
            for p in self.mlp.parameters():
                p.zero_()
            for tokens in DOMAINS.values():
                for i, t in enumerate(tokens):
                    self.mlp.up.weight[unit_of(t), t] = 1.0
                    following = tokens[(i + 1) % len(tokens)]
                    self.mlp.down.weight[following, unit_of(t)] = 4.0 + 0.1 * t
            self.mlp.down.bias.uniform_(-0.1, 0.1, generator=torch.Generator().manual_seed(0))

    def get_input_embeddings(self):
        return self.embed

    def forward(self, input_ids, attention_mask=None):
        return SimpleNamespace(logits=self.mlp(self.embed(input_ids)))


def unit_of(token: int) -> int:
    """The units lie in another order than the tokens; one reads nothing."""
    return (5 * token + 3) % (N + 1)


def texts(domain: str, n: int = 12, seed: int = 0) -> list[dict]:
    """Texts of unlike lengths in one alphabet, each token followed by the next."""
    draw, tokens = torch.Generator().manual_seed(seed), DOMAINS[domain]
    starts = torch.randint(len(tokens), (n,), generator=draw).tolist()
    return [
        {"input_ids": torch.tensor([tokens[(s + j) % len(tokens)] for j in range(4 + s)])}
        for s in starts
    ]
