import numpy as np
import pytest
import torch
from PIL import Image

import sonde
from models import t5
from sonde.core import Model
from sonde.core.errors import InputError, ShapeError, SondeWarning, StateError
from sonde.data.shipped import Digits
from sonde.detect import NAC
from sonde.detect.nac import InfluenceCounts
from sonde.stats.influence_bins import thresholds
from sonde.tap import live_stream
from sonde.tap.model.objectives import kl_uniform
from sonde_studies._separation import area, fitted_on, scores_of
from tap_inputs import Texts

Z = torch.tensor([[-1.0, 0.2], [-0.5, 0.2], [0.0, 0.3], [0.5, 0.9]], dtype=torch.float64)
QUERY = torch.tensor([[0.0, 0.2], [3.0, -3.0], [-0.5, 0.9]], dtype=torch.float64)


def _rows(seed=0, n=400, dim=6):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, dim)) * np.geomspace(0.1, 10.0, dim)
    return torch.from_numpy(x), torch.from_numpy(rng.standard_normal((n, dim)))


@pytest.mark.truth("grid worked out by hand from its formula")
def test_grid():
    want = [0, 0.31243397, 0.40416364, 0.45987172, 0.5, 0.54012828, 0.59583636, 0.68756603]
    np.testing.assert_allclose(thresholds(10), [*want, 1.01, 1.2], atol=1e-8)
    grid = thresholds(50)
    assert len(grid) == 50
    np.testing.assert_allclose(grid[:3], [0, 0.11905418, 0.18348683], atol=1e-8)
    np.testing.assert_allclose(grid[23:26], [0.49403777, 0.5, 0.50596223], atol=1e-8)
    np.testing.assert_allclose(grid[-3:], [0.88094582, 1.01, 1.2], atol=1e-8)


@pytest.mark.truth("worked out by hand")
def test_known_scores():
    scorer = NAC(n_bins=10, fill=0.5, alpha=1.0).fit(Z, grad=torch.ones_like(Z))
    assert scorer.conventions["full_bin"] == 2
    assert torch.nonzero(scorer.coverage[0]).flatten().tolist() == [0, 1, 4, 6]
    assert scorer.coverage[1].tolist() == [0, 0, 0, 0, 0, 1, 0, 0.5]
    scores = scorer.score(QUERY, torch.ones_like(QUERY))
    assert scores.tolist() == pytest.approx([0.25, 1.0, 0.5])
    assert scorer.value == pytest.approx(0.21875)


@pytest.mark.truth("dense comparison of every row, unit and threshold")
def test_brute_force():
    x, grad = _rows()
    t, fill = thresholds(50), 0.05 * len(x)
    s = torch.sigmoid(0.7 * x * grad)
    inside = (s[:, :, None] >= t[:-1]) & (s[:, :, None] < t[1:])
    covered = (inside.sum(0) / fill).clamp(max=1.0)
    want = 1.0 - (inside * covered.double()).sum(2).mean(1)
    scorer = NAC(alpha=0.7).fit(x, grad=grad)
    torch.testing.assert_close(scorer.score(x, grad).double(), want, atol=1e-6, rtol=0)


@pytest.mark.truth("definition over all rows in memory")
def test_automatic_steepness():
    x, grad = _rows(1, 3000)
    x[:, 0] = 0.0
    q = (x * grad).abs()[:, 1:].quantile(1 - 0.05 / 50, dim=0).median()
    scorer = NAC().fit(x, grad=grad)
    assert scorer.alpha == pytest.approx(2.0 / float(q), rel=0.2)
    exact = NAC(alpha=scorer.alpha).fit(x, grad=grad)
    gap = scorer.score(x, grad) - exact.score(x, grad)
    assert float(gap.abs().mean()) < 0.05


@pytest.mark.essential
@pytest.mark.truth("which images are digits")
def test_noise_and_negatives_are_told_at_every_block_of_the_shipped_transformer():
    model = sonde.load("sonde:digits")
    usual, digits = (
        [np.asarray(row["image"]) for row in Digits(split).take(0, n)]
        for split, n in (("train", 300), ("test", 80))
    )
    images = [Image.fromarray(image) for image in usual]
    fitted = fitted_on(model, images, NAC(), objective="kl_uniform")
    draw = np.random.default_rng(0)
    looks = {
        "usual": digits,
        "noise": [draw.integers(0, 256, image.shape, dtype=np.uint8) for image in digits],
        "negative": [255 - image for image in digits],
    }
    scores = {
        look: scores_of(fitted, model, [Image.fromarray(image) for image in images])
        for look, images in looks.items()
    }
    for where, usual in scores["usual"].items():
        for look in ("noise", "negative"):
            assert area(usual, scores[look][where]) > 0.75, (where, look)


@pytest.mark.truth("the products are drawn: one of six lies beyond 1 on either side")
def test_a_steepness_that_does_not_suit_the_rows_is_said():
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    far, ones = torch.full((1, 8), 50.0), torch.ones(1000, 8)
    with pytest.warns(SondeWarning, match="in 8 of 8 units the fitted rows cover an outer bin"):
        steep = NAC(alpha=2.0).fit(x, grad=ones)
    assert steep.flags == ("saturated",)
    assert float(steep.score(far, ones[:1])) < 0.1
    assert NAC(alpha=1e-3).fit(x, grad=ones).flags == ("coarse",)
    own = NAC().fit(x, grad=ones)
    assert own.flags == ()
    assert float(own.score(far, ones[:1])) > 0.9


def test_mostly_silent_units_do_not_make_the_grid_collapse():
    x, grad = _rows(2, 2000)
    x[:1950] = 0.0
    scorer = NAC().fit(x, grad=grad)
    assert 1e-3 < scorer.alpha < 1e3


def test_nothing_that_varies_is_flagged():
    zero = torch.zeros(20, 3)
    assert NAC().fit(zero, grad=zero).flags == ("dead",)


def test_any_split_gives_the_same_counts():
    x, grad = _rows(3)
    statistic = InfluenceCounts(1.0, 50)
    whole = statistic.observe(x, grad)
    parts = [statistic.observe(x[a:b], grad[a:b]) for a, b in ((0, 1), (1, 150), (150, 400))]
    merged = statistic.merge(parts[2], statistic.merge(parts[0], parts[1]))
    assert torch.equal(whole.counts, merged.counts)
    assert whole.n == merged.n


def test_errors_say_what_to_do():
    with pytest.raises(InputError, match="NAC: expected an even n_bins of at least 4, got 9"):
        NAC(n_bins=9)
    with pytest.raises(InputError, match=r"NAC: expected fill in \(0, 1\]"):
        NAC(fill=0.0)
    with pytest.raises(InputError, match="'grad'"):
        NAC().fit(Z)
    with pytest.raises(ShapeError, match=r"NAC.score: expected dim=2"):
        NAC().fit(Z, grad=Z).score(Z[:, :1], Z[:, :1])


def test_products_too_small_for_the_histogram_are_said():
    x, grad = _rows(n=2000, dim=32)
    assert NAC().fit(x, grad=grad * 1e-8).flags == ()
    assert NAC().fit(x, grad=grad * 1e-11).flags == ("clipped",)
    with pytest.raises(StateError, match="Give a number as alpha"):
        NAC().fit(x, grad=grad * 1e-14)
    assert float(NAC(alpha=2e13).fit(x, grad=grad * 1e-14).value) > 0.1


@pytest.mark.essential
@pytest.mark.truth("the gradient of the same scalar, each text in a batch of its own")
def test_an_encoder_decoder_needs_to_be_told_which_prediction_counts():
    net = t5()
    draw = torch.Generator().manual_seed(0)
    texts, targets = (
        [torch.randint(3, 60, (n + i % 3,), generator=draw).tolist() for i in range(16)]
        for n in (5, 3)
    )
    model = Model(net, config=net.config, task="seq2seq")

    def read(objective, batch_size=4):
        inputs = Texts(texts, batch_size, special=False, targets=targets)
        return live_stream(model, inputs, "encoder.block.1", "mean", objective=objective)

    with pytest.raises(InputError, match=r"'kl_uniform'.*encoder-decoder.*outputs.logits\[:, 0\]"):
        sonde.fit(NAC(), read("kl_uniform"), progress=False)

    def first(outputs, batch):
        return kl_uniform(outputs.logits[:, 0])

    probe = sonde.fit(NAC(), read(first), calibrate=0, progress=False)
    together, alone = (
        np.asarray(sonde.score(probe, read(first, size), progress=False)["score"])
        for size in (4, 1)
    )
    np.testing.assert_allclose(together, alone, atol=0.05)
    assert len(set(together.tolist())) > 8
