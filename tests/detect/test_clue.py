import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import norm

from sonde.core.errors import InputError, ShapeError
from sonde.detect import CLUE

FIRST = torch.tensor([[2.0, 1.0], [0.0, -1.0], [-2.0, 3.0], [0.0, -3.0]], dtype=torch.float64)
SECOND = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [4.0, 2.0], [-4.0, 2.0]], dtype=torch.float64)
LABEL = [0, 0, 1, 1]
DELTA = [torch.zeros(1, 2), torch.tensor([[0.0, 3.0]])]


def _fit(label=LABEL, layers=None, **parameters):
    rows = layers or {"first": FIRST, "second": SECOND}
    return CLUE(**parameters).fit(rows, label)


@pytest.mark.truth(
    "worked out by hand: distances 2 and 1 to centroids ((1,0),(0,0)), ((-1,0),(0,2))"
)
def test_equals_the_reference_number():
    scorer = _fit()
    assert scorer.layers[0].success.tolist() == [1.0, 0.0]
    assert scorer.layers[1].failure.tolist() == [0.0, 2.0]
    assert scorer.score(DELTA).tolist() == pytest.approx([1.0])
    assert scorer.value == pytest.approx(2.0)
    assert (scorer.conventions["successes"], scorer.conventions["failures"]) == (2, 2)


@pytest.mark.truth("the best rule for two Gaussians at distance 2 is right with chance Phi(1)")
def test_accuracy_is_that_of_the_best_rule():
    rng = torch.Generator().manual_seed(0)
    label = torch.arange(20_000) % 2
    x = torch.randn(20_000, 3, generator=rng)
    x[:, 0] += 2.0 * label
    scorer = CLUE().fit(x, label)
    fresh = torch.randn(20_000, 3, generator=rng)
    fresh[:, 0] += 2.0 * label
    right = ((scorer.score([fresh]) > 0).long() == label).double().mean()
    assert float(right) == pytest.approx(norm.cdf(1.0), abs=4 * math.sqrt(0.1336 / 20_000))


@pytest.mark.truth("the formula exchanges its two terms")
def test_swapped_labels_negate_the_score_exactly():
    rng = torch.Generator().manual_seed(1)
    rows = {k: torch.randn(50, 4, generator=rng) for k in "ab"}
    label = torch.arange(50) % 2
    for detector in (CLUE(), CLUE(scale="rms")):
        plain = detector.fit(rows, label).score(list(rows.values()))
        swapped = detector.fit(rows, 1 - label).score(list(rows.values()))
        other = replace(detector, positive=0).fit(rows, label).score(list(rows.values()))
        assert torch.equal(plain, -swapped)
        assert torch.equal(plain, -other)


@pytest.mark.truth("distances of single rows in numpy")
@pytest.mark.parametrize("scale", ["none", "rms"])
@pytest.mark.parametrize("layers", ["all", (2, 0), (-1,)])
def test_equals_single_rows(layers, scale):
    rng = np.random.default_rng(2)
    rows = [rng.normal(size=(40, d)) * s for d, s in ((3, 1.0), (5, 10.0), (4, 0.1))]
    fresh = [rng.normal(size=(7, d)) for d in (3, 5, 4)]
    label = rng.integers(-1, 3, 40)  # 0 and 2 succeed, -1 has no label
    chosen = range(3) if layers == "all" else [i % 3 for i in layers]
    want = np.zeros(7)
    for i in chosen:
        success, failure = rows[i][(label == 0) | (label == 2)], rows[i][label == 1]
        ends = success.mean(0), failure.mean(0)
        own = np.r_[success - ends[0], failure - ends[1]]
        radius = np.sqrt((own**2).sum(1).mean()) if scale == "rms" else 1.0
        for j in range(7):
            far = [np.linalg.norm(fresh[i][j] - end) for end in ends]
            want[j] += (far[0] - far[1]) / radius / len(chosen)
    names = {f"layer {i}": torch.from_numpy(r) for i, r in enumerate(rows)}
    scorer = CLUE(layers=layers, scale=scale).fit(names, label)
    got = scorer.score([torch.from_numpy(f) for f in fresh])
    assert got.tolist() == pytest.approx(want.tolist(), rel=1e-9)
    assert scorer.flags == ("unlabelled",)
    assert scorer.conventions["layers"] == sorted(chosen)


@pytest.mark.truth("distances do not change when all rows are turned and moved alike")
def test_turning_and_moving_all_rows_changes_nothing():
    rng = torch.Generator().manual_seed(3)
    turn = torch.linalg.qr(torch.randn(2, 2, generator=rng, dtype=torch.float64))[0]
    moved = [x.double() @ turn + 7.0 for x in (FIRST, SECOND)]
    scorer = _fit(layers=dict(zip("ab", moved, strict=True)))
    got = scorer.score([x.double() @ turn + 7.0 for x in DELTA])
    torch.testing.assert_close(got, _fit().score([x.double() for x in DELTA]))


def test_a_layer_of_long_rows_decides_alone_unless_scaled():
    rng = torch.Generator().manual_seed(4)
    label = torch.arange(400) % 2
    quiet = torch.randn(400, 6, generator=rng) + 1.5 * label[:, None]
    loud = 1000 * torch.randn(400, 6, generator=rng)
    right = {}
    for scale in ("none", "rms"):
        rows = {"quiet": quiet[:200], "loud": loud[:200]}
        scorer = CLUE(scale=scale).fit(rows, label[:200])
        right[scale] = float(((scorer.score([quiet[200:], loud[200:]]) > 0) == label[200:]).sum())
    assert right["none"] < 130
    assert right["rms"] > 180


def test_a_layer_without_spread_is_left_out_when_scaled():
    rows = {"first": FIRST, "dead": torch.zeros(4, 2, dtype=torch.float64)}
    scorer = _fit(layers=rows, scale="rms")
    assert scorer.flags == ("dead",)
    alone = CLUE(scale="rms").fit({"first": FIRST}, LABEL)
    torch.testing.assert_close(scorer.score(DELTA), alone.score(DELTA[:1]))


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match=r"label 1 \(failures\) and of another .* got 0 and 4"):
        _fit([0, 0, 0, 0])
    with pytest.raises(InputError, match=r"got 4 and 0\. Give labelled traces of both kinds"):
        _fit([1, 1, 1, 1])
    with pytest.raises(InputError, match="got 0 and 0"):
        CLUE().fit({"first": FIRST}, [-1] * 4)
    with pytest.raises(InputError, match=r"expected distinct layers in \[-2, 2\)"):
        CLUE(layers=(2,)).fit({"a": FIRST, "b": SECOND}, LABEL)
    with pytest.raises(InputError, match=r"expected distinct layers in \[-2, 2\)"):
        CLUE(layers=(1, -1)).fit({"a": FIRST, "b": SECOND}, LABEL)
    with pytest.raises(InputError, match="expected layers 'all' or distinct numbers"):
        CLUE(layers=(0, 0))
    with pytest.raises(ShapeError, match=r"expected rows at 2 sites \(as fitted\), got 1"):
        _fit().score(DELTA[:1])
    with pytest.raises(ShapeError, match=r"CLUE.score: expected dim=2 \(as fitted\), got dim=3"):
        _fit().score([torch.zeros(1, 3), torch.zeros(1, 2)])
