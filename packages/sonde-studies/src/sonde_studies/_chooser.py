"""A residual net that names one of two objects, as an input of its own asks for it."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sonde_studies.worlds.learning import drawn

OBJECTS, MANNERS, WIDTH, HIDDEN = 6, 8, 24, 128
RATE, BATCH = 3e-3, 128
Inputs = Float[Tensor, "row input"]
"""Two objects and the manner of the query, one-hot, and the queried object: -1 first, 1 second."""


class Chooser(nn.Module):
    """Reads two objects, with a stream for the query: which object, and in what manner.

    An MLP adds to that stream, as what is asked for passes it by; then one reads both streams.
    """

    def __init__(self) -> None:
        super().__init__()
        self.objects = nn.Linear(2 * OBJECTS, WIDTH)
        self.embed = nn.Linear(MANNERS + 1, WIDTH)
        self.up, self.act = nn.Linear(WIDTH, HIDDEN), nn.ReLU()
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.choose = nn.Linear(2 * WIDTH, HIDDEN)
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(HIDDEN, OBJECTS))

    def forward(self, x: Inputs) -> Float[Tensor, "row object"]:
        """Return the logits of the queried object."""
        stream = self.embed(x[:, 2 * OBJECTS :])
        stream = stream + self.down(self.act(self.up(stream)))
        both = torch.cat([self.objects(x[:, : 2 * OBJECTS]), stream], 1)
        return self.head(self.choose(both))


def choices(
    n: int, generator: torch.Generator
) -> tuple[Inputs, Int[Tensor, "row 2"], Int[Tensor, "row"]]:
    """Return inputs, the two objects of each, and the queried object."""
    first = torch.randint(OBJECTS, (n,), generator=generator)
    second = (first + torch.randint(1, OBJECTS, (n,), generator=generator)) % OBJECTS
    which = torch.randint(2, (n,), generator=generator)
    hot = torch.eye(OBJECTS)
    manner = torch.eye(MANNERS)[torch.randint(MANNERS, (n,), generator=generator)]
    x = torch.cat([hot[first], hot[second], manner, 2.0 * which[:, None] - 1.0], 1)
    return x, torch.stack([first, second], 1), which


@torch.enable_grad()
def trained_chooser(seed: int, steps: int) -> Chooser:
    """Return a net trained to name the queried object."""
    generator = torch.Generator().manual_seed(seed)
    net = drawn(Chooser, seed)
    optimiser = torch.optim.Adam(net.parameters(), lr=RATE)
    for _ in range(steps):
        x, objects, which = choices(BATCH, generator)
        answer = objects.gather(1, which[:, None])[:, 0]
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), answer).backward()
        optimiser.step()
    return net.eval()


def choice_pairs(n: int, seed: int) -> tuple[Inputs, Inputs, Int[Tensor, "row"]]:
    """Return base and source inputs, and the base's object that the source queries."""
    generator = torch.Generator().manual_seed(seed)
    base, objects, _ = choices(n, generator)
    source, _, which = choices(n, generator)
    return base, source, objects.gather(1, which[:, None])[:, 0]
