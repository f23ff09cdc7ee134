"""Test whether generators of a lookup gain from attention among an image's patches."""

from statistics import fmean
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, normalize, scaled_dot_product_attention

from sonde.stats import sparsemax
from sonde_studies._defects import DATA, PATCHES, SITE, objects
from sonde_studies._patches import image_area, patches_of, pixel_area
from sonde_studies.study import Claim, Figures, Study, Tick

DIM, HEADS, HIDDEN, SIDE = 64, 4, 64, 8
BATCH, STEPS, RATE, JUDGED = 4, 300, 3e-3, 12
TEMPERATURE, HINGE, MARGIN = 0.05, 0.1, 0.25
SHOTS, DRAWS = (1, 4), 3
FIGURE = "difference of AUROC, mean of images and pixels"
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


@final
class AttendingLookupStudy(Study):
    """Generators for single patches and for whole images, trained alike on other classes."""

    name = "attending-lookup"
    title = "do generators of a lookup gain by attention among the patches of an image?"
    paper = "dictas2025"
    fidelity = (
        "reconstructed: one attention and one hidden layer for queries, keys and values, without "
        "the text term; squares of patches of another image in place of pasted textures"
    )
    data = DATA
    claims = (
        Claim("attention", "With 1 and 4 images, generators with attention beat maps of patches.",
              FIGURE),
        Claim("over plain", "They beat patches as they are.", FIGURE),
        Claim("patches over plain", "Maps of single patches beat patches as they are.", FIGURE),
        Claim("taught", "They learned to tell pasted squares in fresh images of the other kinds.",
              "AUROC of patches with attention less that of patches as they are"),
    )  # fmt: skip
    null = Claim("two trainings", "Two trainings with attention, from other weights, do alike.",
                 FIGURE)  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the generators on other classes, and evaluate on single classes."""
        tick("training the net")
        d = objects(seed, tiny)
        rows = {part: _grid(d.model, getattr(d, part)) for part in ("fit", "usual", "defective")}
        others = _grid(d.model, d.others)
        n, steps = len(others) * 3 // 4, 3 if tiny else STEPS
        lookups = {"plain": Lookup(False)}
        for name, attends, drawn in (("patches", False, seed), ("attention", True, seed),
                                     ("again", True, seed + 1000)):  # fmt: skip
            tick(name)
            lookups[name] = _taught(attends, others[:n], d.other_kind[:n], drawn, steps)
        draw = torch.Generator().manual_seed(seed)
        episodes = [_of_one_kind(others[n:], d.other_kind[n:], draw) for _ in range(JUDGED)]
        fakes = [(*_pasted(x, others[n:], draw), bank) for x, bank in episodes]
        found: dict[str, list[float]] = {name: [] for name in lookups}
        told: dict[str, float] = {}
        with torch.no_grad():
            for name, lookup in lookups.items():
                scores = [(lookup(fake, bank), changed) for fake, changed, bank in fakes]
                parts = [torch.cat([s[c == one] for s, c in scores])[:, None] for one in (0, 1)]
                told[name] = image_area(*parts)
            for shots in SHOTS:
                for _ in range(DRAWS):
                    few = rows["fit"][torch.randperm(len(rows["fit"]), generator=draw)[:shots]]
                    for name, lookup in lookups.items():
                        usual, odd = (lookup(rows[p], few) for p in ("usual", "defective"))
                        found[name] += [image_area(usual, odd), pixel_area(odd, d.mask)]
        mean = {name: fmean(values) for name, values in found.items()}
        return {
            "attention": mean["attention"] - mean["patches"],
            "over plain": mean["attention"] - mean["plain"],
            "patches over plain": mean["patches"] - mean["plain"],
            "taught": told["attention"] - told["plain"],
            "two trainings": mean["attention"] - mean["again"],
            **{f"AUROC | {name}": value for name, value in mean.items()},
            **{f"pasted squares | {name}": value for name, value in told.items()},
        }


def _grid(model: nn.Module, images: Tensor) -> Grid:
    """Return the patches of images, normalised to unit length."""
    return normalize(patches_of(model, images, SITE)[0].float(), dim=1).unflatten(0, (-1, PATCHES))


@torch.enable_grad()
def _taught(attends: bool, images: Grid, kind: Tensor, seed: int, steps: int) -> Lookup:
    """Return a lookup trained to retrieve normal patches, but not pasted ones."""
    draw = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        lookup = Lookup(attends)
    optimiser = torch.optim.Adam(lookup.parameters(), lr=RATE)
    for _ in range(steps):
        x, bank = _of_one_kind(images, kind, draw)
        fake, changed = _pasted(x, images, draw)
        usual, odd = lookup(x, bank).mean(), lookup(fake, bank)[changed]
        loss = 2 * usual + HINGE * 2 * (MARGIN + usual - odd).clamp(min=0).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return lookup.requires_grad_(False).eval()


def _of_one_kind(images: Grid, kind: Tensor, draw: torch.Generator) -> tuple[Grid, Grid]:
    """Return random images of one class, and other images of it for the lookup."""
    first = kind[torch.randint(len(kind), (), generator=draw)]
    own = torch.nonzero(kind == first).flatten()
    x, bank = images[own[torch.randperm(len(own), generator=draw)[: 2 * BATCH]]].chunk(2)
    return x, bank


def _pasted(x: Grid, images: Grid, draw: torch.Generator) -> tuple[Grid, Tensor]:
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
