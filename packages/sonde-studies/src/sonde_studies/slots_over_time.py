"""Tracking of digits that move and hide: which matching of states makes fewest errors.

Three digits in each clip of twelve frames; each hides for some frames, and is seen through noise.
"""

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sonde import Model
from sonde.report import Answer
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies.recipes.slots_over_time import (
    GREEDY,
    OPTIMAL,
    RANDOM,
    REFERENCE,
    slots_over_time,
)
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, CLIPS, TINY, FRAMES, OBJECTS, HIDDEN, NOISE = 700, 60, 12, 12, 3, 3, 0.5


@final
class SlotsOverTimeStudy(Study):
    """Sixty clips of three digits, matched in three ways and at random."""

    name = "slots-over-time"
    title = "does a reference that outlasts frames keep identities?"
    fidelity = "detections are given and states are read; the paper learns slots and a refiner"
    data = "digits as objects: 700 to train on, clips of three others with noise and gaps"
    claims = (
        Claim("optimal", "The assignment that is best in total keeps more than greedy matching.",
              "share of steps that keep the identity, optimal less greedy"),
        Claim("reference", "A running reference keeps more than frame-to-frame matching.",
              "share of steps that keep the identity, reference less frame to frame"),
        Claim("gap", "It does so after gaps.",
              "share of steps after a gap that keep it, reference less frame to frame"),
    )  # fmt: skip
    null = Claim("alike", "Three objects that are one digit under noise cannot be told apart.",
                 "share kept with a reference less at random")  # fmt: skip

    def run(self, seed: int, tiny: bool, tick: Tick) -> Figures:
        """Train on noisy digits, and run the recipe on clips."""
        x, label = shuffled_digits(seed)
        draw = torch.Generator().manual_seed(seed)
        tick("train")
        noise = NOISE * torch.randn(FIT, 64, generator=draw)
        net = learned(mlp(64), x[:FIT] + noise, label[:FIT], seed, 20 if tiny else 200)
        found = dict[str, Answer]()
        for name, alike in (("three digits", False), ("one digit", True)):
            tick(name)
            rows = _clips(x[FIT:], TINY if tiny else CLIPS, alike, draw)
            found[name] = _asked(net, rows, seed)
        kept, null = ({str(r["way"]): r for r in a.rows} for a in found.values())
        gap = "kept after a gap"
        return {
            "optimal": kept[OPTIMAL]["kept"] - kept[GREEDY]["kept"],
            "reference": kept[REFERENCE]["kept"] - kept[OPTIMAL]["kept"],
            "gap": kept[REFERENCE][gap] - kept[OPTIMAL][gap],
            "alike": null[REFERENCE]["kept"] - null[RANDOM]["kept"],
            **{f"{way} | {k}": row[k] for way, row in kept.items() for k in ("kept", gap)},
        }


def _asked(net: Model, rows: list[dict[str, Any]], seed: int) -> Answer:
    return slots_over_time(net, rows, site="3", seed=seed, progress=False)


def _clips(x: Tensor, n: int, alike: bool, draw: torch.Generator) -> list[dict[str, Any]]:
    """Return the detections of clips, in a random order within each frame."""
    rows, order = list[dict[str, Any]](), np.random.default_rng(draw.initial_seed())
    for clip in range(n):
        chosen = torch.randint(len(x), (OBJECTS,), generator=draw)
        chosen = chosen[:1].expand(OBJECTS) if alike else chosen
        gone = torch.randint(1, FRAMES - HIDDEN, (OBJECTS,), generator=draw)
        for frame in range(FRAMES):
            for k in order.permutation(OBJECTS).tolist():
                if not 0 <= frame - int(gone[k]) < HIDDEN:
                    view = x[chosen[k]] + NOISE * torch.randn(64, generator=draw)
                    rows.append({"view": view, "clip": clip, "frame": frame, "object": k})
    return rows
