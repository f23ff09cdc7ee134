"""Small trained nets whose relevant inputs are known: blocks of images, or tokens."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sonde_studies._blocks import block_cnn, block_digits
from sonde_studies.arms import note

Architecture = Literal["conv", "attention"]
Data = Literal["blocks", "tokens"]
ARCHITECTURES: tuple[Architecture, ...] = ("conv", "attention")
DATA: tuple[Data, ...] = ("blocks", "tokens")
LENGTH, VOCABULARY, PLANTED, WIDTH, HEADS = 16, 24, 3, 32, 4
FOR, AGAINST = (1, 2), (3, 4)
FIT, BATCH = 1200, 96


@dataclass(frozen=True)
class Planted:
    """A trained net, test inputs, and the positions that decide the answer.

    Parameters
    ----------
    model : nn.Module
    x : Tensor (row, ...)
        Pictures (row, 1, 16, 8), or tokens (row, 16).
    truth : bool Tensor (row, *place)
    accuracy : float
        On the fresh inputs.
    """

    model: nn.Module
    x: Tensor
    truth: Tensor
    accuracy: float


def planted(
    data: Data, architecture: Architecture, seed: int, n: int = 48, tiny: bool = False
) -> Planted:
    """Train a net and return it with ``n`` test inputs."""
    if data == "blocks":
        blocks = block_digits(seed)
        x, label, truth = blocks.x, blocks.label, blocks.signal
        net = block_cnn() if architecture == "conv" else PatchAttention()
        steps, rate = 250, 3e-3
    else:
        x, label, truth = _tokens(seed)
        net = TokenConv() if architecture == "conv" else TokenAttention()
        steps, rate = 250, 5e-3
    model = trained_by_batches(net, x[:FIT], label[:FIT], seed, 8 if tiny else steps, rate)
    with torch.no_grad():
        right = model(x[FIT:]).argmax(1) == label[FIT:]
    new = slice(FIT, FIT + n)
    return Planted(model, x[new], truth[new], float(right.double().mean()))


@torch.enable_grad()
def trained_by_batches(
    net: nn.Module, x: Tensor, label: Tensor, seed: int, steps: int, rate: float
) -> nn.Module:
    """Initialise the weights from a seed, and train them in batches."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in net.modules():
            if isinstance(module, (nn.Embedding, nn.LayerNorm, nn.Linear, nn.Conv1d, nn.Conv2d)):
                module.reset_parameters()
    note(rows=len(x))
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(steps):
        i = torch.randint(len(x), (BATCH,), generator=draw)
        optimiser.zero_grad()
        F.cross_entropy(net(x[i]), label[i]).backward()
        optimiser.step()
    return net.eval()


def _tokens(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return texts, whether most planted tokens are positive, and their positions."""
    draw = torch.Generator().manual_seed(seed)
    n = FIT + 400
    x = torch.randint(5, VOCABULARY, (n, LENGTH), generator=draw)
    place = torch.rand(n, LENGTH, generator=draw).argsort(1)[:, :PLANTED]
    side = torch.randint(0, 2, (n, PLANTED), generator=draw)
    which = torch.randint(0, 2, (n, PLANTED), generator=draw)
    x.scatter_(1, place, torch.where(side == 1, FOR[0], AGAINST[0]) + which)
    truth = torch.zeros(n, LENGTH, dtype=torch.bool).scatter_(1, place, True)
    return x, (side.sum(1) * 2 > PLANTED).long(), truth


class Attention(nn.Module):
    """Attention of several heads, written with torch's functions."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Return (row, token, unit) from the same."""
        split = self.into(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = split.unbind(0)
        heads = F.scaled_dot_product_attention(query, key, value)
        return self.out(heads.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers, each beside the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(WIDTH), Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        """Return (row, token, unit) from the same."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchAttention(nn.Module):
    """Two blocks over patches of 2 x 2 pixels, read at their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, WIDTH, 2, 2)
        self.place = nn.Embedding(32, WIDTH)
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of pictures (row, 1, 16, 8)."""
        seen = self.patches(x).flatten(2).transpose(1, 2) + self.place.weight
        return self.head(self.blocks(seen).mean(1))


class TokenAttention(nn.Module):
    """Two blocks over tokens, read at their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(WIDTH, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of tokens (row, 16)."""
        return self.head(self.blocks(self.embed(x)).mean(1))


class TokenConv(nn.Module):
    """Two convolutions over tokens, read at their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.first = nn.Conv1d(WIDTH, 32, 3, padding=1)
        self.second = nn.Conv1d(32, 32, 3, padding=1)
        self.act, self.head = nn.ReLU(), nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of tokens (row, 16)."""
        seen = self.embed(x).transpose(1, 2)
        return self.head(self.act(self.second(self.act(self.first(seen)))).mean(2))
