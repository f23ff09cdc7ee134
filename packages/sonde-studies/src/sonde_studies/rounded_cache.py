"""Test whether outliers and a low-rank matrix improve a low-bit cache of equal size."""

import math
from typing import final

import torch

from sonde.compress import QuantCache
from sonde_studies._cached import SmallerCaches, pieces
from sonde_studies.arms import note_for
from sonde_studies.study import Claim, Figures, Study, Tick

TEXTS, CHUNK = 8, 64
PARTS = {
    "bits": {},
    "rank": {"rank": 6},
    "outliers": {"outliers": 0.07},
    "all": {"rank": 2, "outliers": 0.04},
}
"""Of the pairs each holds at least as many bytes as all three do."""
PLANTED, RANK = 0.01, 6


@final
class RoundedCacheStudy(Study):
    """Two bits alone, with low rank, with outliers, and with both; on a model and planted values.

    Divergence is in nats, behind a prompt of 192 bytes; bytes are over those of two bits alone.
    """

    name = "rounded-cache"
    title = "do outliers and low rank pay for their bytes in a cache of two bits?"
    paper = "kang2024gear"
    fidelity = "the paper's three parts; factors by whole decompositions, for chunks of 64 tokens"
    data = "eight pieces of the standard library in each seed, the shipped byte model; planted rows"
    place = "byte-model"
    claims = (
        Claim(
            "all",
            "All three lose less than two bits alone, which hold fewer bytes.",
            "divergence of two bits less that of all, over that of two bits",
            arms=("all", "bits"),
        ),
        Claim(
            "any two",
            "All three lose less than the better pair of parts, which holds no fewer bytes.",
            "divergence of the better pair less that of all, over that of the better pair",
            arms=("all", "outliers"),
        ),
        Claim(
            "planted",
            "On planted rank and outliers all three beat both pairs, at no more bytes.",
            "relative error of the better pair less that of all",
            arms=("all", "outliers"),
        ),
        Claim(
            "four bits",
            "All three at two bits lose less than four bits alone, which hold fewer bytes.",
            "logarithm of the divergence of four bits over that of all",
            arms=("all", "four bits"),
        ),
    )
    null = Claim(
        "eight bits",
        "A cache of eight bits, packed by the same code, costs nothing.",
        "nats a byte of the texts",
    )

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Round the caches of the same prompts in every way."""
        caches = SmallerCaches(pieces(2 if tiny else TEXTS, seed))
        lost: dict[str, float] = {}
        sizes: dict[str, float] = {}
        for name, more in PARTS.items():
            tick(name)
            lost[name], sizes[name] = caches.lost(_form(**more))
        tick("four bits")
        lost["four bits"], sizes["four bits"] = caches.lost(_form(bits=4))
        for name, size in sizes.items():
            note_for(name, bytes=size)
        pair = min(lost["rank"], lost["outliers"])
        planted = {name: _error(_form(**more), seed) for name, more in PARTS.items()}
        return {
            "all": (lost["bits"] - lost["all"]) / lost["bits"],
            "any two": (pair - lost["all"]) / pair,
            "planted": min(planted["rank"], planted["outliers"]) - planted["all"],
            "four bits": math.log(lost["four bits"] / lost["all"]),
            "eight bits": caches.dearer(_form(bits=8)),
            **{f"{name} | divergence": x for name, x in lost.items()},
            **{f"{name} | bytes": x / sizes["bits"] for name, x in sizes.items()},
            **{f"{name} | planted error": x for name, x in planted.items()},
        }


def _form(rank: int = 0, outliers: float = 0.0, bits: int = 2) -> QuantCache:
    return QuantCache(bits, 32, outliers, rank, chunk=CHUNK, recent=0)


def _error(form: QuantCache, seed: int) -> float:
    """Return the relative error on random values near a low-rank matrix, with outliers."""
    draw = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.randn(1, 4, CHUNK, 64, generator=draw)
    wide = torch.randn(1, 4, RANK, 64, generator=draw)
    x = x + torch.randn(1, 4, CHUNK, RANK, generator=draw) @ wide
    at = torch.rand(x.shape, generator=draw) < PLANTED
    x = x + 20 * torch.randn(x.shape, generator=draw) * at
    found = form.pack(x, x, torch.ones(1, CHUNK, dtype=torch.bool)).unpack()[1]
    return float((found - x).norm() / x.norm())
