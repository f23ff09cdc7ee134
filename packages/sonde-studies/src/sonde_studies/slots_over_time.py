"""Tracking of digits that move and hide: which matching of states makes fewest errors.

Three digits in each clip of twelve frames; each hides for some frames, and is seen through noise.
Detections are given, or learned queries find the digits among the cells of a frame.
"""

from functools import partial
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from sonde import Model
from sonde.report import Answer
from sonde_studies._learned_slots import clips_of_cells, learned_slots, slots_of
from sonde_studies._recipe_data import learned, mlp, shuffled_digits
from sonde_studies._refined_tracks import Alone, Refiner, learned_names, named_by, tracks_of
from sonde_studies.arms import note_again, note_for
from sonde_studies.recipes.slots_over_time import (
    GREEDY,
    OPTIMAL,
    RANDOM,
    REFERENCE,
    slots_over_time,
)
from sonde_studies.study import Claim, Figures, Study, Tick

FIT, CLIPS, TINY, FRAMES, OBJECTS, HIDDEN, NOISE = 700, 60, 12, 12, 3, 3, 0.5
FRAMES_SEEN, CLIPS_SEEN, STEPS, NAMED = 3_000, 300, 600, 300
NAMERS = {
    "alone": partial(Alone, False),
    "mean": partial(Alone, True),
    "refined": partial(Refiner, FRAMES),
}


@final
class SlotsOverTimeStudy(Study):
    """Sixty clips of three digits, matched in three ways and at random; tracks of slots refined."""

    name = "slots-over-time"
    title = "does a reference that outlasts frames keep identities?"
    fidelity = (
        "the truth tells which slot an object has; references are means, the paper learns them"
    )
    data = "digits as objects: 700 to train on, clips of three others with noise and gaps"
    claims = (
        Claim("optimal", "The assignment that is best in total keeps more than greedy matching.",
              "share of steps that keep the identity, optimal less greedy",
              arms=(OPTIMAL, GREEDY)),
        Claim("reference", "A running reference keeps more than frame-to-frame matching.",
              "share of steps that keep the identity, reference less frame to frame",
              arms=(REFERENCE, OPTIMAL)),
        Claim("gap", "It does so after gaps.",
              "share of steps after a gap that keep it, reference less frame to frame",
              arms=(REFERENCE, OPTIMAL)),
        Claim("slots", "Learned slots of one object are matched over time.",
              "share of steps that keep the identity, slots with a reference less at random",
              arms=(f"slots, {REFERENCE}", f"slots, {RANDOM}")),
        Claim("slots kept", "A running reference keeps more of learned slots too.",
              "share of steps that keep the identity, reference less frame to frame",
              arms=(f"slots, {REFERENCE}", f"slots, {OPTIMAL}")),
        Claim("refined", "A refiner along time names the slots of a track better than each alone.",
              "accuracy of the names, refined (2.1 times the parameters) less alone",
              arms=("refined", "alone")),
        Claim("beyond", "It names them better than the mean of the track does.",
              "accuracy of the names, refined (2.1 times the parameters) less mean",
              arms=("refined", "mean")),
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
            for way in (OPTIMAL, GREEDY, REFERENCE, RANDOM):
                note_for(way, rows=len(rows))
            found[name] = _asked(net, rows, seed)
        kept, null = ({str(r["way"]): r for r in a.rows} for a in found.values())
        gap = "kept after a gap"
        return {
            "optimal": kept[OPTIMAL]["kept"] - kept[GREEDY]["kept"],
            "reference": kept[REFERENCE]["kept"] - kept[OPTIMAL]["kept"],
            "gap": kept[REFERENCE][gap] - kept[OPTIMAL][gap],
            "alike": null[REFERENCE]["kept"] - null[RANDOM]["kept"],
            **{f"{way} | {k}": row[k] for way, row in kept.items() for k in ("kept", gap)},
            **_of_slots(net.module, x, label, seed, tiny, tick),
        }


def _of_slots(
    trained: nn.Module, x: Tensor, label: Tensor, seed: int, tiny: bool, tick: Tick
) -> dict[str, float]:
    """Learn slots on single frames; match and refine them in clips of other digits."""
    steps, n, n_seen = (20, TINY, TINY) if tiny else (STEPS, CLIPS, CLIPS_SEEN)
    named_steps = min(steps, NAMED)
    make = partial(clips_of_cells, hidden=HIDDEN, noise=NOISE)
    tick("slots")
    frames = make(x[:FIT], label[:FIT], FRAMES_SEEN, frames=1, seed=seed)
    encoder = nn.Sequential(*[*trained.children()][:4])  # without its head
    net = learned_slots(encoder, x.shape[1], frames, steps=steps, seed=seed)
    seen = make(x[:FIT], label[:FIT], n_seen, frames=FRAMES, seed=seed + 1_000)
    held = make(x[FIT:], label[FIT:], n, frames=FRAMES, seed=seed)
    fit, judged = slots_of(net, seen), slots_of(net, held)
    rows = [
        {"view": slot, "clip": clip, "frame": frame, "object": int(k)}
        for clip, own in enumerate(judged)
        for frame, (names, slots) in enumerate(own)
        for k, slot in zip(names, slots, strict=True)
    ]
    asked = slots_over_time(
        Model(nn.Sequential(nn.Identity()).eval()), rows, site="0", seed=seed, progress=False
    )
    kept = {str(row["way"]): float(row["kept"]) for row in asked.rows}
    for way in (OPTIMAL, REFERENCE, RANDOM):
        note_again(f"slots, {way}", "slots")
    fitted, found = tracks_of(fit, seen.name), tracks_of(judged, held.name)
    named = dict[str, float]()
    for name, make_net in NAMERS.items():
        tick(name)
        named[name] = named_by(learned_names(make_net, fitted, steps=named_steps, seed=seed), found)
    return {
        "slots": kept[REFERENCE] - kept[RANDOM],
        "slots kept": kept[REFERENCE] - kept[OPTIMAL],
        "refined": named["refined"] - named["alone"],
        "beyond": named["refined"] - named["mean"],
        **{f"slots, {way} | kept": v for way, v in kept.items()},
        **{f"tracks, {name} | accuracy": v for name, v in named.items()},
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
