"""Planted posts of a text beside a picture, true or false, and nets that tell which."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sonde.layers import SourceFusion
from sonde_studies._recipe_data import shuffled_digits
from sonde_studies.worlds.learning import accuracy, drawn, minimise

WORDS, LENGTH, CRY, PAIR = 40, 24, 1, (2, 3)
"""Word 0 pads, word 1 cries out (an exclamation mark), and a pair of words tells by its order."""
SHOWN = 0.6
"""Fraction of false posts in which a sign is."""


@final
@dataclass(frozen=True)
class Posts:
    """Posts; half are false.

    Parameters
    ----------
    words : Int[Tensor, "post word"]
    picture : Float[Tensor, "post 1 8 8"]
    false : Int[Tensor, "post"]
        1 if the post is false.
    """

    words: Int[Tensor, "post word"]
    picture: Float[Tensor, "post 1 8 8"]
    false: Int[Tensor, "post"]

    @property
    def of_text(self) -> Float[Tensor, "post 2"]:
        """Length and exclamation marks of the texts, about standard."""
        length = (self.words > 0).sum(1).float()
        return torch.stack([(length - 18) / 4, (self.words == CRY).sum(1) - 1.5], 1)

    @property
    def of_picture(self) -> Float[Tensor, "post 2"]:
        """Ink and steps between neighbours of the pictures, about standard."""
        ink = self.picture.mean((1, 2, 3))
        steps = self.picture.diff(dim=3).abs().mean((1, 2, 3))
        return torch.stack([(ink - 0.3) * 15, (steps - 0.25) * 20], 1)

    def __getitem__(self, rows: slice | Tensor) -> "Posts":
        """Return some posts."""
        return Posts(self.words[rows], self.picture[rows], self.false[rows])


def posts(seed: int) -> Posts:
    """Return a post for each of the 1,797 digits.

    A false post has, each in ``SHOWN`` of the cases: a picture with a square of another picture,
    and the words of the pair in the other order. It also has more exclamation marks, a text that is
    shorter, and a picture with less ink; these three overlap with true posts.
    """
    x = shuffled_digits(seed)[0].reshape(-1, 8, 8)
    draw = torch.Generator().manual_seed(seed)
    n = len(x)
    false = (torch.arange(n) % 2)[torch.randperm(n, generator=draw)]
    shown = (torch.rand(2, n, generator=draw) < SHOWN) & (false == 1)
    words = torch.randint(max(PAIR) + 1, WORDS, (n, LENGTH), generator=draw)
    crying = torch.rand(n, LENGTH, generator=draw) < (0.05 + 0.04 * false)[:, None]
    words[crying] = CRY
    length = (18 - 2 * false + 3 * torch.randn(n, generator=draw)).round().clamp(8, LENGTH)
    at = (torch.rand(n, generator=draw) * (length - 1)).long()
    for i, (where, turned) in enumerate(zip(at.tolist(), shown[0].tolist(), strict=True)):
        words[i, where : where + 2] = torch.tensor(PAIR[::-1] if turned else PAIR)
    words[torch.arange(LENGTH) >= length[:, None]] = 0
    other = x[torch.randperm(n, generator=draw)]
    corner = torch.randint(5, (n, 2), generator=draw)
    place = torch.arange(8)
    inside = ((place >= corner[..., None]) & (place < corner[..., None] + 4)).float()
    square = inside[:, 0, :, None] * inside[:, 1, None, :] * shown[1][:, None, None]
    picture = x * (1 - square) + other * square
    ink = 1 - 0.08 * false + 0.1 * torch.randn(n, generator=draw)
    return Posts(words, (picture * ink[:, None, None])[:, None], false)


def dealt(some: Posts, seed: int) -> Posts:
    """Return the posts with their truth dealt out by lot."""
    draw = torch.Generator().manual_seed(seed)
    return Posts(some.words, some.picture, some.false[torch.randperm(len(some.false),
                                                                     generator=draw)])  # fmt: skip


class PostNet(nn.Module):
    """A classifier of posts: sources are encoded, fused into one shared state, and read by a head.

    Parameters
    ----------
    reads : str
        Some of ``text picture numbers``; numbers are those of what else is read.
    width : int
        Of the encoders' states.
    dim : int
        Of the shared state.
    """

    def __init__(self, reads: str, width: int, dim: int) -> None:
        super().__init__()
        self.reads = reads.split()
        kinds = [kind for kind in ("text", "picture") if kind in self.reads]
        self.encoders = nn.ModuleDict({kind: _encoder(kind, width) for kind in kinds})
        self.heads = nn.ModuleDict({kind: nn.Linear(width, 2) for kind in kinds})
        numbers = [2] * len(kinds) if "numbers" in self.reads else []
        self.fusion = SourceFusion([width] * len(kinds) + numbers, dim)
        self.head = nn.Linear(dim, 2)

    def states(self, some: Posts) -> dict[str, Tensor]:
        """Return the state of each encoder."""
        given = {"text": some.words, "picture": some.picture}
        return {kind: encoder(given[kind]) for kind, encoder in self.encoders.items()}

    def forward(self, some: Posts) -> Tensor:
        """Return the logits."""
        return self.of_states(self.states(some), some)

    def of_states(self, states: dict[str, Tensor], some: Posts) -> Tensor:
        """Return the logits for states that are known."""
        numbers = {"text": some.of_text, "picture": some.of_picture}
        made = [numbers[kind] for kind in states] if "numbers" in self.reads else []
        return self.head(self.fusion(*states.values(), *made))


def _encoder(kind: str, width: int) -> nn.Module:
    """Return a convolution over pairs of words or squares of pixels, with the maximum of each."""
    if kind == "text":
        inner = [nn.Embedding(WORDS, width), _Turned(), nn.Conv1d(width, width, 2), nn.ReLU()]
        return nn.Sequential(*inner, nn.AdaptiveMaxPool1d(1), nn.Flatten())
    inner = [nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()]
    return nn.Sequential(*inner, nn.AdaptiveMaxPool2d(1), nn.Flatten())


class _Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


def told(
    fit: Posts,
    judge: Posts,
    reads: str,
    seed: int,
    steps: int,
    width: int = 16,
    dim: int = 16,
    frozen: bool = False,
) -> float:
    """Return the accuracy of a net on posts that judge, trained in one loss or in two stages.

    Parameters
    ----------
    fit, judge : Posts
    reads : str
        As ``PostNet`` takes it.
    seed, steps, width, dim : int
    frozen : bool, default=False
        First each encoder with a linear head of its own, ``steps`` updates; then, with the encoders
        as they are, fusion and head alone, as many more.
    """
    net = drawn(lambda: PostNet(reads, width, dim), seed)
    if not frozen:
        minimise(lambda rows: cross_entropy(net(fit[rows]), fit.false[rows]),
                 net.parameters(), len(fit.false), steps=steps, seed=seed)  # fmt: skip
        return accuracy(net.eval(), judge, judge.false)  # pyright: ignore[reportArgumentType]

    def each(rows: Tensor) -> Tensor:
        states = net.states(fit[rows])
        losses = [cross_entropy(net.heads[k](h), fit.false[rows]) for k, h in states.items()]
        return torch.stack(losses).sum()

    own = [*net.encoders.parameters(), *net.heads.parameters()]
    minimise(each, own, len(fit.false), steps=steps, seed=seed)
    with torch.no_grad():
        known = net.states(fit)

    def fused(rows: Tensor) -> Tensor:
        states = {kind: h[rows] for kind, h in known.items()}
        return cross_entropy(net.of_states(states, fit[rows]), fit.false[rows])

    last = [*net.fusion.parameters(), *net.head.parameters()]
    minimise(fused, last, len(fit.false), steps=steps, seed=seed + 1)
    return accuracy(net.eval(), judge, judge.false)  # pyright: ignore[reportArgumentType]
