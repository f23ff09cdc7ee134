"""Readouts of several sites: planted labels, shares of sites, one sample for all readouts."""

import numpy as np
import pytest
import torch

import sonde
from narrow import present
from sonde.core.errors import InputError
from sonde.measure import Readout, readout


def planted(n=600, seed=0):
    """Return rows of two sites that each know half of a label of four classes, and the label."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(0, 2, (2, n))
    a, b = rng.standard_normal((n, 24)), rng.standard_normal((n, 32))
    a[:, 2:5] += 4 * first[:, None]
    b[:, 5:9] += 4 * second[:, None]
    return {"a": a, "b": b}, 2 * first + second


@pytest.mark.slow
@pytest.mark.truth("a label of two bits, each planted in a site of its own")
def test_a_readout_of_all_sites_knows_what_no_site_knows_alone():
    rows, label = planted()
    both = {how: readout(rows, label, combine=how) for how in ("weights", "concat", "queries")}
    assert min(both["weights"].value, both["concat"].value) > 0.97
    assert both["queries"].value > 0.75  # a softmax over two sites sees less of each
    alone = readout(rows, label, combine="last")
    assert 0.45 < alone.value < 0.6
    assert 0.2 < float(present(alone.null)) < 0.35
    assert 0.01 < float(present(alone.se)) < 0.08
    shares = both["weights"].weights
    assert shares.shape == (2,)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert both["concat"].weights.shape == (0,)


@pytest.mark.essential
@pytest.mark.truth("labels that no site knows, and a site that knows all")
def test_shares_go_to_the_site_that_tells_and_noise_is_at_chance():
    rows, label = planted()
    found = readout(rows, label % 2)
    assert float(found.weights[1]) > 0.6
    noise = readout(rows, np.random.default_rng(5).permutation(label))
    assert abs(noise.value - float(present(noise.null))) < 4 * float(present(noise.se))


def test_several_readouts_share_one_sample_and_need_labels():
    rows, label = planted(80)
    many = [Readout(steps=5), Readout("concat", steps=5), Readout("last", steps=5)]
    stream = sonde.Stream.of({k: torch.tensor(x) for k, x in rows.items()}, label=label)
    fitted = sonde.fit(many, stream, progress=False, calibrate=0)
    assert len(fitted) == 3
    one = sonde.fit(many[0], stream, progress=False, calibrate=0)
    assert set(fitted.states) == set(one.states)
    with pytest.raises(InputError, match="rows of two classes in four groups"):
        readout(rows, np.zeros(80, dtype=int), steps=5)
