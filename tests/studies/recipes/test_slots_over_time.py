"""Objects that cross, hide and come back: tracks by hand, and what matching is best in total."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from sonde import InputError, Model
from sonde_studies.parts.tracks import greedy, optimal
from sonde_studies.recipes.slots_over_time import (
    GREEDY,
    OPTIMAL,
    RANDOM,
    REFERENCE,
    slots_over_time,
)

IDENTITY = Model(nn.Sequential(nn.Identity()).eval())


def clips(noise, n=12, frames=8, hidden=()):
    """Return detections of three objects; object 1 is not seen in the hidden frames."""
    draw = torch.Generator().manual_seed(4)
    rows = []
    for clip in range(n):
        own = torch.randn(3, 6, generator=draw)
        for frame in range(frames):
            for k in torch.randperm(3, generator=draw).tolist():
                if not (k == 1 and frame in hidden):
                    view = own[k] + noise * torch.randn(6, generator=draw)
                    rows.append({"view": view, "clip": clip, "frame": frame, "object": f"o{k}"})
    return rows


def asked(rows):
    found = slots_over_time(IDENTITY, rows, site="0", seed=1, progress=False)
    return {row["way"]: row for row in found.rows}, found


@pytest.mark.truth("objects without noise are never mixed up; three at random one time in three")
def test_objects_that_do_not_change_are_never_mixed_up():
    way, found = asked(clips(0.0, n=40))
    assert all(way[name]["kept"] == 1.0 for name in (GREEDY, OPTIMAL, REFERENCE))
    assert way[RANDOM]["kept"] == pytest.approx(1 / 3, abs=0.06)
    assert found.level == "clear"
    hidden, _ = asked(clips(0.0, hidden=(3, 4)))
    assert hidden[REFERENCE]["kept after a gap"] == 1.0
    assert hidden[OPTIMAL]["kept"] == 1.0


@pytest.mark.truth("all assignments tried one by one")
def test_the_optimal_matching_is_the_cheapest_of_all():
    draw = np.random.default_rng(0)
    worse = 0
    for _ in range(20):
        cost = draw.random((3, 4))
        best = min(
            sum(cost[i, p[i]] for i in range(3)) for p in itertools.permutations(range(4), 3)
        )
        own, first = (sum(cost[i, j] for i, j in match(cost)) for match in (optimal, greedy))
        assert own == pytest.approx(best)
        worse += first > best + 1e-9
    assert worse > 2


@pytest.mark.truth("frame to frame without gaps, matched in a loop")
def test_what_is_kept_is_counted_step_by_step():
    rows = clips(0.9)
    way, _ = asked(rows)
    x = torch.stack([row["view"] for row in rows]).double()
    x = torch.nn.functional.normalize(x - x.mean(0), dim=1)
    place = {(r["clip"], r["frame"], r["object"]): v for r, v in zip(rows, x, strict=True)}
    shares = []
    for clip in range(12):
        hits = 0
        for frame in range(1, 8):
            sides = [[place[clip, f, f"o{k}"] for k in range(3)] for f in (frame - 1, frame)]
            like = torch.stack(sides[0]) @ torch.stack(sides[1]).T
            best = max(itertools.permutations(range(3)),
                       key=lambda p: sum(float(like[i, p[i]]) for i in range(3)))  # fmt: skip
            hits += sum(best[i] == i for i in range(3))
        shares.append(hits / 21)
    assert way[OPTIMAL]["kept"] == pytest.approx(np.mean(shares))
    assert 0.5 < np.mean(shares) < 0.99


def test_an_object_twice_in_a_frame_is_refused():
    rows = [row | {"object": "o1"} for row in clips(0.1)]
    with pytest.raises(InputError, match="at most once in a frame"):
        asked(rows)
