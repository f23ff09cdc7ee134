"""Test whether generators of a lookup gain from attention among an image's patches.

Patches as they are are looked up by ``DictLookup``; the generators are of the study, since those
of ``DictLookup`` see a patch alone.
"""

from collections.abc import Callable
from statistics import fmean
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from sonde_studies._defects import DATA, PATCHES, SITE, objects
from sonde_studies._patch_lookup import Grid, of_one_kind, pasted, plain_lookup, taught_lookup
from sonde_studies._patches import image_area, patches_of, pixel_area
from sonde_studies.arms import note
from sonde_studies.study import Claim, Figures, Study, Tick

STEPS, JUDGED = 300, 12
SHOTS, DRAWS = (1, 4), 3
FIGURE = "difference of AUROC, mean of images and pixels"


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
    place = "fashion"
    claims = (
        Claim("attention", "With 1 and 4 images, generators with attention beat maps of patches.",
              "difference of AUROC, mean of images and pixels; attention has 3.5 times the "
              "parameters",
              arms=("attention", "patches")),
        Claim("over plain", "They beat patches as they are.", FIGURE,
              arms=("attention", "plain")),
        Claim("patches over plain", "Maps of single patches beat patches as they are.", FIGURE,
              arms=("patches", "plain")),
        Claim("taught", "They learned to tell pasted squares in fresh images of the other kinds.",
              "AUROC of patches with attention less that of patches as they are",
              arms=("attention", "plain")),
    )  # fmt: skip
    null = Claim("usual", "With 1 and 4 images, none of two sets of fresh usual images looks "
                 "defective.", "AUROC of one set against the other, with attention, less 0.5"
                 )  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train the generators on other classes, and evaluate on single classes."""
        tick("training the net")
        d = objects(seed, tiny)
        rows = {
            part: _grid(d.model, getattr(d, part))
            for part in ("fit", "usual", "clean", "defective")
        }
        others = _grid(d.model, d.others)
        n, steps = len(others) * 3 // 4, 3 if tiny else STEPS
        lookups: dict[str, Callable[[Grid, Grid], Tensor]] = {"plain": plain_lookup}
        tick("plain")
        note(updates=0)
        for name in ("patches", "attention"):
            tick(name)
            lookups[name] = taught_lookup(
                name == "attention", others[:n], d.other_kind[:n], seed, steps
            )
        draw = torch.Generator().manual_seed(seed)
        episodes = [of_one_kind(others[n:], d.other_kind[n:], draw) for _ in range(JUDGED)]
        fakes = [(*pasted(x, others[n:], draw), bank) for x, bank in episodes]
        found: dict[str, list[float]] = {name: [] for name in lookups}
        told, alike = dict[str, float](), list[float]()
        with torch.no_grad():
            for name, lookup in lookups.items():
                scores = [(lookup(fake, bank), changed) for fake, changed, bank in fakes]
                parts = [torch.cat([s[c == one] for s, c in scores])[:, None] for one in (0, 1)]
                told[name] = image_area(*parts)
            for shots in SHOTS:
                for _ in range(DRAWS):
                    few = rows["fit"][torch.randperm(len(rows["fit"]), generator=draw)[:shots]]
                    usual, clean = (lookups["attention"](rows[p], few) for p in ("usual", "clean"))
                    alike.append(image_area(usual, clean) - 0.5)
                    for name, lookup in lookups.items():
                        usual, odd = (lookup(rows[p], few) for p in ("usual", "defective"))
                        found[name] += [image_area(usual, odd), pixel_area(odd, d.mask)]
        mean = {name: fmean(values) for name, values in found.items()}
        return {
            "attention": mean["attention"] - mean["patches"],
            "over plain": mean["attention"] - mean["plain"],
            "patches over plain": mean["patches"] - mean["plain"],
            "taught": told["attention"] - told["plain"],
            "usual": fmean(alike),
            **{f"AUROC | {name}": value for name, value in mean.items()},
            **{f"pasted squares | {name}": value for name, value in told.items()},
        }


def _grid(model: nn.Module, images: Tensor) -> Grid:
    """Return the patches of images, normalised to unit length."""
    return normalize(patches_of(model, images, SITE)[0].float(), dim=1).unflatten(0, (-1, PATCHES))
