"""Defects by reconstruction from few normal patches, and by the nearest patch."""

from statistics import fmean
from typing import final

import torch

from sonde_studies._defects import DATA, PATCHES, SITE, objects
from sonde_studies._few_image_lookups import (
    OF_FEW,
    OF_OTHERS,
    entries_in_use,
    note_lookups,
    parts_of,
    scores_of_lookups,
    taught_lookup,
)
from sonde_studies._patches import image_area, patches_of, pixel_area
from sonde_studies.study import Claim, Figures, Study, Tick

SHOTS, FEW, SEVERAL, DRAWS = (1, 4, 16), (1, 4), (4, 16), 3
MAPS = tuple(
    (site, reducer) for site in (SITE, "middle.5:out") for reducer in ("patches", "patches3")
)
OTHERS, PASSES = 96, 10
FIGURE = "difference of AUROC, mean of images and pixels"


@final
class DictLookupStudy(Study):
    """Sparse, soft and nearest lookup in patches of 1, 4 and 16 normal images; trained lookups.

    What sparsemax gains over softmax is gained by a tenth of the temperature as well (``softmax at
    0.005``); ``entries in use`` says how many share the weight. Taught lookups find pixels a
    little better than plain ones, and images no better; why was not tried.
    """

    name = "dict-lookup"
    title = "does a sparse lookup in patches of few usual images find pasted defects?"
    paper = "dictas2025"
    fidelity = (
        "generators are reconstructed: maps of single patches without attention and text, taught "
        "by usual patches of other kinds (as the original, whose kinds are other data sets) or by "
        "the few images themselves; the original chose layers, scales and smoothing for each data "
        "set and class on test images, here they are fixed"
    )
    data = DATA
    place = "fashion"
    claims = (
        Claim(
            "sparse over softmax",
            "With 1 and 4 images, sparsemax finds defects better than softmax at the same "
            "temperature.",
            FIGURE,
            arms=("sparse, 4 images", "softmax, 4 images"),
        ),
        Claim(
            "sparse over nearest",
            "With 1 and 4 images, sparsemax beats the cosine to the nearest patch.",
            FIGURE,
            arms=("sparse, 4 images", "nearest, 4 images"),
        ),
        Claim(
            "few images",
            "Four images are enough, in a quarter of the memory: they lose less than .05 against "
            "sixteen.",
            FIGURE,
            above=-0.05,
            arms=("sparse, 4 images", "sparse, 16 images"),
        ),
        Claim(
            "taught by other kinds",
            "With 1 and 4 images, generators taught by 96 images of other kinds beat plain "
            "patches.",
            FIGURE,
            arms=("taught by other kinds, 4 images", "sparse, 4 images"),
        ),
        Claim(
            "taught by the few",
            "With 4 and 16 images, generators taught by these, with parameters of their own, "
            "beat plain patches.",
            FIGURE,
            arms=("taught by the few, 16 images", "sparse, 16 images"),
        ),
        Claim(
            "averaged maps",
            "With 1 and 4 images, averaged maps of two layers and both windows, in the memory of "
            "four, beat one map.",
            FIGURE,
            arms=("averaged maps, 4 images", "sparse, 4 images"),
        ),
    )
    null = Claim(
        "usual",
        "With 4 images, none of two sets of fresh usual images looks defective.",
        "AUROC of one set against the other, sparsemax, less 0.5",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Draw the few images several times, and average."""
        tick("training the net")
        d = objects(seed, tiny)
        every = [parts_of(d, *one) for one in (MAPS[:2] if tiny else MAPS)]
        options = {"generators": "trained", "seed": seed} | ({"passes": 2} if tiny else {})
        tick(OF_OTHERS)
        others = patches_of(d.model, d.others[: OTHERS // 4 if tiny else OTHERS], SITE)[0]
        taught = taught_lookup(others, {"passes": PASSES} | options)
        draw = torch.Generator().manual_seed(seed)
        each: dict[str, list[float]] = {}
        for shots in SHOTS:
            tick(f"{shots} shots")
            for _ in range(2 if tiny else DRAWS):
                chosen = torch.randperm(len(d.fit), generator=draw)[:shots]
                arms = dict(scores_of_lookups(every, chosen, taught, options))
                for name, scores in arms.items():
                    found = [scores[part] for part in ("usual", "defective")]
                    each.setdefault(f"{name} | {shots}, images", []).append(image_area(*found))
                    pixels = pixel_area(found[1], d.mask)
                    each.setdefault(f"{name} | {shots}, pixels", []).append(pixels)
                used = entries_in_use(every[0], chosen)
                each.setdefault(f"entries in use, {shots} shots", []).append(used)
                if shots == FEW[-1]:
                    both = arms["sparse"]
                    each.setdefault("fresh usual images against others", []).append(
                        image_area(both["usual"], both["clean"])
                    )
        note_lookups(every, len(others) // PATCHES)
        mean = {name: fmean(values) for name, values in each.items()}
        return {
            "sparse over softmax": _over(mean, "sparse", "softmax", FEW),
            "sparse over nearest": _over(mean, "sparse", "nearest", FEW),
            "few images": _both(mean, "sparse", FEW[-1]) - _both(mean, "sparse", SHOTS[-1]),
            "taught by other kinds": _over(mean, OF_OTHERS, "sparse", FEW),
            "taught by the few": _over(mean, OF_FEW, "sparse", SEVERAL),
            "averaged maps": _over(mean, "averaged maps", "sparse", FEW),
            "usual": mean["fresh usual images against others"] - 0.5,
            **mean,
        }


def _both(mean: dict[str, float], name: str, shots: int) -> float:
    return fmean(mean[f"{name} | {shots}, {what}"] for what in ("images", "pixels"))


def _over(mean: dict[str, float], name: str, other: str, shots: tuple[int, ...]) -> float:
    return fmean(_both(mean, name, n) - _both(mean, other, n) for n in shots)
