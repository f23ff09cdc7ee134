"""Held-out rows that are not finite calibrate as they are scored: infinitely unusual."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.stats import betabinom

from contract.statistics import exported_instruments
from sonde.core import Stream
from sonde.core.hashing import rank_key
from sonde.core.instrument import Detector
from sonde.core.plan import Split
from sonde.detect import KNN, FeatureGaps, Mahalanobis
from sonde.run.fitting.evidence import sample
from sonde.run.fitting.fit import fit
from sonde.run.scoring.score import score
from sonde.stats import HashSampleState
from sonde.testing import instrument_laws as laws

DETECTORS = [i for i in exported_instruments() if isinstance(i, Detector)]
N = 240
quiet_fit = partial(fit, progress=False)


def groups_of(detector, inputs):
    """The usual held-out rows, and the group of each row."""
    (batch,) = laws.stream_of(detector, inputs).batches(0, N)
    key = laws.sites_of(detector)[0]
    mask = detector.usual.mask(batch, key)
    held = Split(0.4, 0).is_held(batch.split_draw)[batch.example[key]]
    return held if mask is None else held & mask, batch.column("group", key), batch.draw(key)


def inputs_of(detector):
    """Rows of which every third held-out group is not finite."""
    inputs = laws.make_inputs(N)
    if isinstance(detector, FeatureGaps):  # plain answers beside those with contrasting prompts
        inputs["side"] = torch.where(torch.arange(N) // 2 % 3 == 0, -1, inputs["side"])
    usual, group, _ = groups_of(detector, inputs)
    broken = torch.isin(group, group[usual].unique()[::3])
    for name in {"x", *laws.sites_of(detector), "grad", "logits", "perturbed_logits"}:
        inputs[name] = inputs[name].clone()
        inputs[name][broken, 0] = math.nan
    return inputs


@pytest.mark.truth("the scores of all rows, of which one of each held-out group is picked by hand")
@pytest.mark.parametrize("detector", DETECTORS, ids=lambda d: repr(d).replace(" ", ""))
def test_every_detector_calibrates_on_the_scores_that_it_gives(detector):
    inputs = inputs_of(detector)
    whole = laws.size_of_example(detector) > 1
    how = "max" if whole else "rows"
    found = quiet_fit(detector, laws.stream_of(detector, inputs), reduction=how, calibrate=0.4)
    result = found.result(type(detector))
    scores = laws.score(detector, result.scorer, inputs).double()
    usual, group, draw = groups_of(detector, inputs)
    want = []
    for g in group[usual].unique().tolist():
        mine = torch.nonzero(usual & (group == g)).flatten()
        first = mine[rank_key(draw[mine]).argmin()]
        want.append(float(scores[mine].max() if whole else scores[first]))
    expected = torch.tensor(sorted(want), dtype=torch.float64)
    assert 0 < int(expected.isinf().sum()) < len(expected)
    torch.testing.assert_close(result.calibration.scores, expected, rtol=1e-5, atol=1e-8)


def one_patch_each(stream):
    """One patch of each image: those of one image are not independent of each other."""
    (batch,) = stream.batches(0, len(stream))
    images = torch.arange(len(batch) // 4)
    return Stream.of(batch.rows["x"][4 * images + images % 4])


def images(n, seed, share=0.03, patches=4):
    """Examples of four patches, of some of which one is not finite."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, patches, 6, generator=generator)
    x[torch.rand(n, generator=generator) < share, 1, 2] = torch.nan
    names = [f"{seed} {i}" for i in range(n) for _ in range(patches)]
    position = torch.arange(patches).repeat(n)
    return Stream.of(x.reshape(-1, 6), ids=names, position=position)


@pytest.mark.slow
@pytest.mark.truth("the beta-binomial distribution of alarms after one calibration, convolved")
@pytest.mark.parametrize("how", ["max", "mean", "rows"])
@pytest.mark.parametrize("detector", [Mahalanobis(), KNN(k=5)], ids=["mahalanobis", "knn"])
def test_the_rate_of_false_alarms_is_kept(detector, how):
    n_alarms, chance, alpha = 0, np.ones(1), 0.05
    for seed in range(6):
        found = quiet_fit(detector, images(500, seed), reduction=how)
        new = images(200, 100 + seed)
        p = score(found, one_patch_each(new) if how == "rows" else new, progress=False)["p"]
        result = found.result(type(detector))
        n, rank = result.calibration.n, result.calibration.alarms_allowed(alpha)
        n_alarms += int((p.to_numpy() <= alpha).sum())
        chance = np.convolve(
            chance, betabinom.pmf(np.arange(len(p) + 1), len(p), rank, n + 1 - rank)
        )
    assert chance[: n_alarms + 1].sum() > 0.005
    assert chance[n_alarms:].sum() > 0.005


@pytest.mark.truth("counts of the held-out rows")
def test_comparisons_read_the_finite_rows_of_those_that_calibrate():
    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    x[::7, 1] = math.nan
    stream = Stream.of(x)
    found = quiet_fit(Mahalanobis(), stream)
    assert found.split is not None
    held = torch.cat([found.split.is_held(batch.split_draw) for batch in stream])
    kept = sample(found, "x")
    assert kept is not None
    assert isinstance(kept.state, HashSampleState)
    assert bool(torch.isfinite(kept.state.rows).all())
    assert kept.state.n == len(kept.state.draw) == int((held & x[:, 1].isfinite()).sum())
