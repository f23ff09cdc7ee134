"""Units that curl: what they are made of, and an estimator that is biased on purpose."""

import math

import pytest
import torch

from sonde.measure import mutual_information
from sonde_studies.curled_units import LATENTS, K, curled_pair
from sonde_studies.study import NULL_LEVEL, Outcome


@pytest.mark.truth("the angle of each unit, which is linear in two latents")
def test_units_are_sines_of_sums_of_two_latents():
    x, y = curled_pair(2.0, 400, 3)
    assert x.shape == y.shape == (400, 30)
    assert float(x.abs().max()) < 1.01
    angle = x.clamp(-1, 1).asin()
    slow = angle.std(0).argmin()
    assert float(angle[:, slow].std()) < math.pi / 2
    spread = torch.linalg.svdvals(x - x.mean(0)).square()
    assert float(spread[:LATENTS].sum() / spread.sum()) < 0.9


@pytest.mark.slow
def test_a_site_that_holds_some_of_the_other_is_seen_by_unrelated_latents():
    """The planted fault lets one site into the other."""
    for biased in (False, True):
        found = list[float]()
        for seed in range(4):
            x, y = curled_pair(0.0, 300, seed)
            y = y + 2 * x if biased else y
            nats = mutual_information(x, y, estimator="ksg", k=K, components=LATENTS)
            found.append(float(nats))
        assert Outcome(tuple(found), 0.0, NULL_LEVEL).covers != biased
