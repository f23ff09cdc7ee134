"""Scores of patches by lookups in the patches of a few usual images.

The lookups are sparse, soft or nearest, with trained generators, and averaged over several maps.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize

from sonde.detect import DictLookup
from sonde_studies._defects import PATCHES, Objects
from sonde_studies._patches import patches_of
from sonde_studies.arms import note_for

SHARP = (0.005, 0.01, 0.02)
"""Temperatures of softmax beside the lookup's own."""
OF_OTHERS, OF_FEW = "taught by other kinds", "taught by the few"
Parts = Mapping[str, Tensor]
"""Patches (patch, dim), or their scores (image, patch), of ``fit`` and of the test images."""


def note_lookups(every: Sequence[Parts], others: int) -> None:
    """Note the images that each lookup reads, and the bytes of the patches that it keeps.

    Parameters
    ----------
    every : sequence of Parts
        Patches by each map; all lookups but the averaged one use the first.
    others : int
        Images of other kinds that teach the generators.
    """
    each = [4 * PATCHES * rows["fit"].shape[1] for rows in every]
    for n in (4, 16):
        for name in ("sparse", "softmax", "nearest", OF_FEW):
            note_for(f"{name}, {n} images", rows=n, bytes=n * each[0])
        note_for(f"{OF_OTHERS}, {n} images", rows=n + others, bytes=n * each[0])
        note_for(f"averaged maps, {n} images", rows=n, bytes=n * sum(each))


def parts_of(d: Objects, site: str, reducer: str) -> Parts:
    """Return the patches of the training and test images."""
    parts = ("fit", "usual", "clean", "defective")
    return {part: patches_of(d.model, getattr(d, part), site, reducer)[0] for part in parts}


def taught_lookup(x: Float[Tensor, "patch dim"], options: Mapping[str, Any]) -> Any:
    """Return a lookup whose generators learned from the patches of whole images."""
    return DictLookup(**options).fit(x, ids=torch.arange(len(x)) // PATCHES)


def entries_in_use(rows: Parts, chosen: Int[Tensor, "shot"]) -> float:
    """Return the mean number of entries with a weight above 0 at patches of usual images."""
    weights = DictLookup().fit(_few(rows, chosen)).weights(rows["usual"])
    return float((weights > 0).double().sum(1).mean())


def scores_of_lookups(
    every: Sequence[Parts], chosen: Int[Tensor, "shot"], taught: Any, options: Mapping[str, Any]
) -> Iterator[tuple[str, Parts]]:
    """Yield each lookup's name and its scores, with the same few images.

    Parameters
    ----------
    every : sequence of Parts
        Patches by each map; all lookups but the averaged one use the first.
    chosen : Int[Tensor, "shot"]
        Which images of ``fit`` are looked up in.
    taught : DictLookup scorer
        Trained on images of other kinds.
    options : mapping
        Of the lookup that is trained on the few images; it needs more than one.
    """
    rows, few = every[0], _few(every[0], chosen)
    lookups = {"sparse": DictLookup().fit(few), OF_OTHERS: taught.over(few)}
    if len(chosen) > 1:
        lookups[OF_FEW] = taught_lookup(few, options)
    for name, scorer in lookups.items():
        yield name, _each(rows, scorer.score)
    yield from _soft(rows, lookups["sparse"])
    maps = [_each(one, DictLookup().fit(_few(one, chosen)).score) for one in every]
    yield "averaged maps", {k: torch.stack([m[k] for m in maps]).mean(0) for k in maps[0]}


def _few(rows: Parts, chosen: Tensor) -> Tensor:
    return rows["fit"].reshape(-1, PATCHES, rows["fit"].shape[1])[chosen].flatten(0, 1)


def _each(rows: Parts, score: Any) -> Parts:
    return {k: score(x).reshape(-1, PATCHES) for k, x in rows.items() if k != "fit"}


def _soft(rows: Parts, scorer: Any) -> Iterator[tuple[str, Parts]]:
    """Yield scores by the nearest entry, and by softmax at several temperatures."""
    bank = scorer.bank
    yield "nearest", _each(rows, lambda x: (1 - (normalize(x).to(bank) @ bank.T).amax(1)) / 2)
    for temperature in (scorer.temperature, *SHARP):

        def score(x: Tensor, temperature: float = temperature) -> Tensor:
            query = normalize(x).to(bank)
            found = normalize(torch.softmax(query @ bank.T / temperature, 1) @ bank)
            return (1 - (query * found).sum(1)) / 2

        name = "softmax" if temperature == scorer.temperature else f"softmax at {temperature}"
        yield name, _each(rows, score)
