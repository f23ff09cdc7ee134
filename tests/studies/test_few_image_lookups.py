"""Scores of patches by lookups in a few images."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from sonde.detect import DictLookup
from sonde_studies._defects import PATCHES
from sonde_studies._few_image_lookups import (
    OF_FEW,
    OF_OTHERS,
    SHARP,
    entries_in_use,
    scores_of_lookups,
)

DIM = 6


def _maps(n: int, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {part: torch.randn(n * PATCHES, DIM, generator=draw) for part in ("fit", "usual")}


@pytest.mark.truth("torch's cosine of each pair, in loops")
def test_nearest_and_averaged_scores():
    every, chosen = [_maps(3, 0), _maps(3, 1)], torch.tensor([2])
    taught = DictLookup().fit(every[0]["fit"])
    scores = dict(scores_of_lookups(every, chosen, taught, {}))
    assert OF_FEW not in scores
    entries = every[0]["fit"][2 * PATCHES :]
    for row in (0, PATCHES + 3):
        cosine = max(float(cosine_similarity(every[0]["usual"][row], e, 0)) for e in entries)
        found = scores["nearest"]["usual"].flatten()[row]
        assert float(found) == pytest.approx((1 - cosine) / 2, abs=1e-5)
    assert all(set(one) == {"usual"} for one in scores.values())
    assert all(one["usual"].shape == (3, PATCHES) for one in scores.values())
    each = [dict(scores_of_lookups([one], chosen, taught, {}))["sparse"]["usual"] for one in every]
    torch.testing.assert_close(scores["averaged maps"]["usual"], (each[0] + each[1]) / 2)
    same = scores[OF_OTHERS]["usual"], scores["sparse"]["usual"]
    torch.testing.assert_close(*same, rtol=0, atol=1e-6)


def test_a_low_temperature_of_softmax_is_nearly_the_nearest_entry():
    rows, chosen = _maps(2, 3), torch.tensor([0])
    scores = dict(scores_of_lookups([rows], chosen, DictLookup().fit(rows["fit"]), {}))
    nearest = scores["nearest"]["usual"]
    away = [float((scores[f"softmax at {t}"]["usual"] - nearest).abs().mean()) for t in SHARP]
    assert away == sorted(away)
    assert away[0] < 0.01


def test_entries_in_use_are_counted_for_each_patch():
    rows = _maps(2, 4)
    weights = DictLookup().fit(rows["fit"][:PATCHES]).weights(rows["usual"])
    counted = [sum(float(w) > 0 for w in row) for row in weights]
    assert entries_in_use(rows, torch.tensor([0])) == pytest.approx(sum(counted) / len(counted))
    assert min(counted) >= 1
    assert max(counted) < PATCHES
