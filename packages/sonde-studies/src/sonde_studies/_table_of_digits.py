"""Two digits and a request: name the first, or look the pair up in a table of random entries.

The first digit is in the states already; the table is held by one module, which can be replaced.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde_studies.worlds.learning import drawn, minimise

WIDTH, SEEN, HIDDEN, BATCH, RATE = 48, 16, 256, 128, 2e-3
N_DIGITS, PIXELS = 10, 64


def digit_table(seed: int) -> Int[Tensor, "digit digit2"]:
    """Return random answers for all pairs of digits."""
    return torch.randint(
        N_DIGITS, (N_DIGITS, N_DIGITS), generator=torch.Generator().manual_seed(seed)
    )


def requests_of(
    digits: Float[Tensor, "image pixel"],
    label: Int[Tensor, "image"],
    table: Int[Tensor, "digit digit2"],
    n: int,
    draw: torch.Generator,
) -> tuple[Float[Tensor, "row column"], Int[Tensor, "row"]]:
    """Return rows of a request (1: the table) and two digits' pixels, and the answers."""
    at = torch.randint(len(digits), (n, 2), generator=draw)
    asked = torch.randint(2, (n,), generator=draw)
    first, second = label[at].T
    x = torch.cat([asked[:, None].float(), digits[at].flatten(1)], 1)
    return x, torch.where(asked == 1, table[first, second], first)


def needs_table(x: Float[Tensor, "row column"]) -> Bool[Tensor, "row"]:
    """Return whether each row asks for the table."""
    return x[:, 0] == 1


class TableNet(nn.Module):
    """A net over two digits and a request, with one module ``mlp`` that can be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Linear(PIXELS, 32), nn.ReLU(), nn.Linear(32, SEEN))
        self.asked, self.norm = nn.Embedding(2, WIDTH - 2 * SEEN), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))
        self.last = nn.Linear(WIDTH, N_DIGITS)

    def states(self, x: Float[Tensor, "row column"]) -> Float[Tensor, "row dim"]:
        """Return the states to which the module adds."""
        seen = self.see(x[:, 1:].unflatten(1, (2, PIXELS))).flatten(1)
        return torch.cat([seen, self.asked(x[:, 0].long())], 1)

    def forward(self, x: Float[Tensor, "row column"]) -> Float[Tensor, "row class"]:
        """Return logits of the answers."""
        h = self.states(x)
        return self.last(h + self.mlp(self.norm(h)))


def table_net(
    x: Float[Tensor, "row column"], y: Int[Tensor, "row"], seed: int, steps: int
) -> TableNet:
    """Return a net that learned to answer requests."""
    net = drawn(TableNet, seed)
    minimise(
        lambda at: cross_entropy(net(x[at]), y[at]), net.parameters(), len(x),
        steps=steps, seed=seed, rate=RATE, batch=BATCH,
    )  # fmt: skip
    return net.eval()
