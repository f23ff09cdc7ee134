"""Pictures of two domains, and nets that give a picture the domain of another one."""

import math
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, max_pool2d, mse_loss, one_hot, softplus

from sonde.layers import ConditionalNorm
from sonde.train import Separate
from sonde_studies.arms import note
from sonde_studies.worlds.learning import digit_images, drawn, learn_labels

CHANNELS, CONTENT, STYLE, BATCH, RATE = 16, 4, 4, 32, 2e-3
LINE = torch.linspace(-1, 1, 8)
Pictures = Float[Tensor, "image 1 8 8"]
Domains = Int[Tensor, "image"]


@dataclass(frozen=True)
class World:
    """Pictures of two domains.

    Domain 0 has bright digits on black, domain 1 dark and thicker ones on a bright ground that is
    shaded in a direction of its own. Contrasts differ between pictures of a domain.
    """

    x: Pictures
    label: Int[Tensor, "image"]
    domain: Domains
    twin: Pictures
    """Each picture as it would be in the other domain."""
    toward: Float[Tensor, "image 2"]
    """The direction in which each picture of domain 1 gets brighter."""

    def __getitem__(self, rows: slice) -> "World":
        return World(*(getattr(self, field.name)[rows] for field in fields(self)))


def world(seed: int) -> World:
    """Return digits, half of them in each domain."""
    x, label = digit_images(seed)
    draw = torch.Generator().manual_seed(seed + 5)
    domain = (torch.rand(len(x), generator=draw) < 0.5).long()
    chance = torch.rand(2, len(x), 1, 1, 1, generator=draw)
    angle = 2 * math.pi * chance[0].flatten()
    toward = torch.stack([angle.cos(), angle.sin()], 1)
    shade = (toward[:, :1, None] * LINE + toward[:, 1:, None] * LINE[:, None])[:, None]
    thick = (x + max_pool2d(x, 3, 1, 1)) / 2
    both = torch.stack([
        (0.6 + 0.4 * chance[1]) * x, 0.75 - (0.4 + 0.3 * chance[1]) * thick + 0.15 * shade
    ])  # fmt: skip
    rows = torch.arange(len(x))
    return World(both[domain, rows], label, domain, both[1 - domain, rows], toward)


def likeness(x: Pictures, y: Pictures) -> float:
    """Return the mean correlation of pixels of two pictures."""
    one, other = ((z - z.mean((2, 3), keepdim=True)).flatten(1) for z in (x, y))
    return float(cosine_similarity(one, other).mean())


def brighter(x: Pictures) -> Float[Tensor, "image 2"]:
    """Return the direction in which each picture gets brighter, of any length."""
    even = (x - x.mean((2, 3), keepdim=True))[:, 0]
    return torch.stack([(even * LINE).sum((1, 2)), (even * LINE[:, None]).sum((1, 2))], 1)


def partners(domain: Domains, draw: torch.Generator, other: bool = True) -> Int[Tensor, "image"]:
    """Return for each picture the index of a random one of the other domain, or of its own."""
    found = torch.empty_like(domain)
    for kind in (0, 1):
        rows = torch.nonzero(domain == (1 - kind if other else kind)).flatten()
        asked = torch.nonzero(domain == kind).flatten()
        found[asked] = rows[torch.randint(len(rows), (len(asked),), generator=draw)]
    return found


def judge_of(x: Pictures, label: Int[Tensor, "image"], n: int, seed: int, steps: int) -> nn.Module:
    """Return a classifier that was trained on real pictures."""
    net = drawn(lambda: _classifier(n), seed)
    learn_labels(net, x, label, steps=steps, seed=seed)
    return net


@dataclass(frozen=True)
class Arm:
    """What belongs to a training.

    Attributes
    ----------
    signs : bool, default=False
        The content encoder sees whether an edge goes up or down.
    swaps : bool, default=True
        Swapped pictures are drawn, and a discriminator of each domain sees them.
    again : bool, default=True
        The codes of a swapped picture are read again and shall be those that it was drawn from.
    adversary : bool, default=True
        An adversary reads the domain from each place of the content code.
    """

    signs: bool = False
    swaps: bool = True
    again: bool = True
    adversary: bool = True


class Codes(nn.Module):
    """Encoders of content and style, and a decoder whose channels the style scales and shifts."""

    def __init__(self, signs: bool) -> None:
        super().__init__()
        self.signs = signs
        self.even, self.edges = nn.InstanceNorm2d(1), _conv(1, CHANNELS, bias=False)
        self.content_of = nn.Sequential(
            _conv(CHANNELS, CHANNELS), nn.ReLU(), _conv(CHANNELS, CONTENT)
        )
        self.style_of = nn.Sequential(
            _conv(3, CHANNELS), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(16 * CHANNELS, STYLE),
        )  # fmt: skip
        self.maps = nn.ModuleList(_conv(n + 2, CHANNELS) for n in (CONTENT, CHANNELS))
        self.norms = nn.ModuleList(ConditionalNorm(CHANNELS, STYLE, "instance") for _ in range(2))
        self.last = _conv(CHANNELS + 2, 1)
        self.at = nn.Buffer(torch.stack([LINE.expand(8, 8), LINE[:, None].expand(8, 8)]))
        self.adversary = Separate("adversary", width=2)

    def content(self, x: Pictures) -> Float[Tensor, "image channel 8 8"]:
        """Return the content code of pictures."""
        edges = self.edges(self.even(x))
        # a picture and its negative have the same absolute edges
        return self.content_of(edges.relu() if self.signs else edges.abs()).tanh()

    def style(self, x: Pictures, domain: Domains) -> Float[Tensor, "image style"]:
        """Return the style code of pictures, whose domain is known."""
        known = one_hot(domain, 2).to(x)[:, :, None, None].expand(-1, -1, 8, 8)
        return self.style_of(torch.cat([x, known], 1))

    def picture(self, content: Tensor, style: Tensor) -> Pictures:
        """Return the pictures of codes."""
        at, h = self.at.expand(len(content), -1, -1, -1), content
        for conv, norm in zip(self.maps, self.norms, strict=True):
            h = norm(conv(torch.cat([h, at], 1)), style).relu()
        return self.last(torch.cat([h, at], 1)).sigmoid()

    def told(self, content: Tensor, domain: Domains) -> Float[Tensor, ""]:
        """Return the loss of an adversary that reads the domain at each place, reversed."""
        places = content.movedim(1, -1).flatten(0, 2)
        return self.adversary(places, one_hot(domain, 2).float().repeat_interleave(64, 0))


def fitted(x: Pictures, domain: Domains, arm: Arm, seed: int, steps: int) -> Codes:
    """Return both encoders and the decoder, trained on pictures of both domains."""

    def made() -> Codes:
        net = Codes(arm.signs)
        net.told(net.content(x[:2]), domain[:2])  # its width
        return net

    net, critic = drawn(made, seed), drawn(lambda: _classifier(2), seed + 1)
    own, seen = (
        torch.optim.Adam(part.parameters(), lr=RATE, betas=(0.5, 0.99)) for part in (net, critic)
    )
    note(rows=len(x))
    draw, rows = torch.Generator().manual_seed(seed), torch.arange(BATCH)
    for _ in range(steps):
        batch = torch.randint(len(x), (BATCH,), generator=draw)
        real, kind = x[batch], domain[batch]
        partner = partners(kind, draw)
        content, style = net.content(real), net.style(real, kind)
        loss = 10 * mse_loss(net.picture(content, style), real)
        if arm.adversary:
            loss = loss + net.told(content, kind)
        if arm.swaps:
            asked, made_up = kind[partner], net.picture(content, style[partner])
            seen.zero_grad()
            on_real, on_made = critic(real), critic(made_up.detach())[rows, asked]
            wrong = softplus(on_made) + softplus(on_real[rows, 1 - kind])
            (softplus(-on_real[rows, kind]) + wrong).mean().backward()
            seen.step()
            loss = loss + softplus(-critic(made_up)[rows, asked]).mean()
            if arm.again:
                loss = loss + (net.content(made_up) - content).abs().mean()
                loss = loss + (net.style(made_up, asked) - style[partner]).abs().mean()
        own.zero_grad()
        loss.backward()
        own.step()
    return net.eval()


def _conv(channels: int, n: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(channels, n, 3, padding=1, padding_mode="replicate", bias=bias)


def _classifier(n: int) -> nn.Module:
    return nn.Sequential(
        _conv(1, CHANNELS), nn.LeakyReLU(0.2), nn.Conv2d(CHANNELS, 2 * CHANNELS, 3, 2, 1),
        nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(32 * CHANNELS, n),
    )  # fmt: skip
