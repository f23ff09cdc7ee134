"""Images of two digits of equal class and brightness, and a transformer that denoises them."""

import torch
from einops import rearrange
from torch import Tensor, nn

from sonde_studies._digits import pixels

WIDTH, HEADS, BATCH, RATE = 48, 2, 64, 2e-3
ROWS, COLUMNS = 4, 8
"""Of tokens, each a square of 2 x 2 pixels."""


class _Block(nn.Module):
    """Transformer block: attention and a two-layer net, each with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 96), nn.GELU(), nn.Linear(96, WIDTH))
        self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


class _Denoiser(nn.Module):
    """Denoiser: clean boards (row, 8, 16) from noisy ones and the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 4)
        self.place = nn.Parameter(torch.randn(ROWS * COLUMNS, WIDTH) * 0.1)
        self.blocks = nn.Sequential(_Block(), _Block())

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        tokens = rearrange(x, "n (h a) (w b) -> n (h w) (a b)", a=2, b=2)
        told = size[:, None, None].expand(-1, tokens.shape[1], 1)
        y = self.out(self.blocks(self.into(torch.cat([tokens, told], 2)) + self.place))
        return rearrange(y, "n (h w) (a b) -> n (h a) (w b)", h=ROWS, a=2, b=2)


def boards(n: int, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Return pairs of digits of one class (row, 8, 16), the class, and their brightness.

    The light, from -1 to 1, is added to all pixels of a board: each side tells it of the other.
    """
    x, found = pixels()
    kinds, images = torch.from_numpy(found), x.reshape(-1, 8, 8)
    kind = torch.randint(10, (n,), generator=draw)
    sides: list[Tensor] = []
    for _ in range(2):
        score = torch.rand(n, len(images), generator=draw)
        chosen = score.masked_fill(kinds[None] != kind[:, None], -1.0).argmax(1)
        sides.append(images[chosen])
    light = 2 * torch.rand(n, generator=draw) - 1
    return torch.cat(sides, 2) + light[:, None, None], kind, light


def trained(draw: torch.Generator, seed: int, steps: int) -> nn.Module:
    """Return a denoiser trained on noise levels in [0, 1]."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        net = _Denoiser()
        optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
        for _ in range(steps):
            x, size = boards(BATCH, draw)[0], torch.rand(BATCH, generator=draw)
            noisy = x + size[:, None, None] * torch.randn(x.shape, generator=draw)
            optimiser.zero_grad()
            (net(noisy, size) - x).square().mean().backward()
            optimiser.step()
    return net.eval()
