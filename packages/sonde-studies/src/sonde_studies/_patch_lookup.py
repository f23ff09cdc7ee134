"""A lookup of an image's patches among those of other images, trained to miss pasted patches.

Queries, keys and values are maps of patches; they may attend to the other patches of the image.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention

from sonde.detect import DictLookup
from sonde.stats import sparsemax
from sonde_studies._defects import PATCHES
from sonde_studies.arms import note
from sonde_studies.worlds.learning import drawn

DIM, HEADS, HIDDEN, SIDE = 64, 4, 64, 8
BATCH, RATE = 4, 3e-3
TEMPERATURE, HINGE, MARGIN = 0.05, 0.1, 0.25
Grid = Float[Tensor, "image patch dim"]


class Generator(nn.Module):
    """A residual map of patches, zero at first; with ``attends``, patches see the whole image."""

    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.attends = attends
        self.place = nn.Parameter(torch.zeros(PATCHES, DIM))
        self.into, self.out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.first, self.second = (nn.Linear(DIM, HIDDEN, bias=False),
                                   nn.Linear(HIDDEN, DIM, bias=False))  # fmt: skip
        for last in (self.out, self.second):
            nn.init.zeros_(last.weight)

    def forward(self, x: Grid) -> Grid:
        """Return transformed patches of unit length."""
        wide = x * DIM**0.5
        if self.attends:
            split = self.into(wide + self.place).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
            heads = scaled_dot_product_attention(split[0], split[1], split[2])
            wide = wide + self.out(heads.transpose(1, 2).flatten(2))
        return normalize(wide + self.second(gelu(self.first(wide))), dim=2)


class Lookup(nn.Module):
    """Maps to queries, keys and values, and the error of patches retrieved through them."""

    def __init__(self, attends: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (Generator(attends) for _ in range(3))

    def forward(self, x: Grid, bank: Grid) -> Float[Tensor, "image patch"]:
        """Return half of one minus the cosine between each patch and its retrieved value."""
        keys, values = self.key(bank).flatten(0, 1), self.value(bank).flatten(0, 1)
        weights = sparsemax(self.query(x).flatten(0, 1) @ keys.T / TEMPERATURE)
        found = normalize(weights @ values, dim=1).unflatten(0, x.shape[:2])
        return (1 - (self.value(x) * found).sum(2)) / 2


def plain_lookup(x: Grid, bank: Grid) -> Float[Tensor, "image patch"]:
    """Return the scores of patches by ``DictLookup`` over the patches of other images."""
    scorer = DictLookup(m=bank.shape[0] * bank.shape[1], temperature=TEMPERATURE).fit(
        bank.flatten(0, 1)
    )
    return scorer.score(x.flatten(0, 1)).unflatten(0, x.shape[:2])


@torch.enable_grad()
def taught_lookup(
    attends: bool, images: Grid, kind: Int[Tensor, "image"], seed: int, steps: int
) -> Lookup:
    """Return a lookup trained to retrieve normal patches, but not pasted ones."""
    draw, lookup = torch.Generator().manual_seed(seed), drawn(lambda: Lookup(attends), seed)
    note(rows=len(images))
    optimiser = torch.optim.Adam(lookup.parameters(), lr=RATE)
    for _ in range(steps):
        x, bank = of_one_kind(images, kind, draw)
        fake, changed = pasted(x, images, draw)
        usual, odd = lookup(x, bank).mean(), lookup(fake, bank)[changed]
        loss = 2 * usual + HINGE * 2 * (MARGIN + usual - odd).clamp(min=0).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return lookup.requires_grad_(False).eval()


def of_one_kind(
    images: Grid, kind: Int[Tensor, "image"], draw: torch.Generator
) -> tuple[Grid, Grid]:
    """Return random images of one class, and other images of it for the lookup."""
    first = kind[torch.randint(len(kind), (), generator=draw)]
    own = torch.nonzero(kind == first).flatten()
    x, bank = images[own[torch.randperm(len(own), generator=draw)[: 2 * BATCH]]].chunk(2)
    return x, bank


def pasted(
    x: Grid, images: Grid, draw: torch.Generator
) -> tuple[Grid, Bool[Tensor, "image patch"]]:
    """Return images with a square of patches pasted from another image, and its position."""
    n = len(x)
    size = torch.randint(2, 5, (n, 1), generator=draw)
    first = (torch.rand(n, 2, generator=draw) * (SIDE + 1 - size)).long()
    line = torch.arange(SIDE)
    inside = [(line >= first[:, i, None]) & (line < first[:, i, None] + size) for i in (0, 1)]
    changed = (inside[0][:, :, None] & inside[1][:, None]).flatten(1)
    away = torch.randint(0, SIDE, (2,), generator=draw).tolist()
    other = images[torch.randint(len(images), (n,), generator=draw)]
    moved = other.unflatten(1, (SIDE, SIDE)).roll(away, (1, 2)).flatten(1, 2)
    return torch.where(changed[..., None], moved, x), changed
