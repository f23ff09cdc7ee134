"""One score for each image from those of its patches, calibrated on images."""

import numpy as np
import pytest
import torch

from models import cnn
from narrow import present
from sonde.core import Calibration, Stream
from sonde.core.errors import CalibrationError, InputError, SondeWarning
from sonde.core.plan import Split
from sonde.detect import KNN, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.merge import merge
from sonde.run.reading.read import read
from sonde.run.scoring.batches import p_of_examples
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.stats import Calibrated, CalibratedScorer
from sonde.stats.calibrated import Lengths
from sonde.store import KeptRows

QUIET = {"progress": False}


def images(n, seed):
    return list(torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="module")
def net():
    return cnn()


def stream_of(net, items, **options):
    return read(net, items, sites="conv2", reducer="patches", batch_size=16, **options)


def patch_scores(scorer, net, items):
    """Scores by a plain forward, image by image."""
    with torch.no_grad():
        maps = net.conv2(net.act1(net.conv1(torch.stack(items))))
    return [scorer.score(m.flatten(1).T.contiguous()) for m in maps]


@pytest.mark.truth("a plain forward, reduced and ranked image by image")
@pytest.mark.parametrize(("asked", "by_hand"), [("auto", torch.amax), ("mean", torch.mean)])
def test_p_values_are_of_images(net, tmp_path, asked, by_hand):
    stream = stream_of(net, images(60, 0))
    fitted = fit(Mahalanobis(), stream, reduction=asked, progress=False)
    fitted.save(tmp_path / "probe.sonde")
    new = images(20, 1)
    new[3][0, 2:4, 2:4] += 30
    for bundle in (fitted, Fitted.load(tmp_path / "probe.sonde")):
        table = score(bundle, stream_of(net, new), progress=False)
        scorer = bundle.result("mahalanobis")
        held = [i for i, flag in enumerate(_held(stream)) if flag]
        assert scorer.calibration.n == len(held)
        usual = [
            float(by_hand(s, 0))
            for s in patch_scores(scorer, net, [images(60, 0)[i] for i in held])
        ]
        want = [float(by_hand(s, 0)) for s in patch_scores(scorer, net, new)]
        assert table["score"].to_pylist() == pytest.approx(want)
        p = [(1 + sum(u >= w for u in usual)) / (1 + len(usual)) for w in want]
        assert table["p"].to_pylist() == pytest.approx(p)
        worst = [int(s.argmax()) for s in patch_scores(scorer, net, new)]
        assert table["position"].to_pylist() == worst
        assert len(set(table["id"].to_pylist())) == 20
        assert np.argmax(want) == 3


def _held(stream):
    split = Split(0.2, stream.seed)
    return torch.cat([split.is_held(batch.split_draw) for batch in stream]).tolist()


@pytest.mark.truth("the same scorer on each patch")
def test_rows_can_be_asked_for(net):
    fitted = fit(Mahalanobis(), stream_of(net, images(40, 0)), progress=False)
    new = images(3, 1)
    table = score(fitted, stream_of(net, new), reduction="rows", progress=False)
    want = torch.cat(patch_scores(fitted.result("mahalanobis"), net, new)).tolist()
    assert table["score"].to_pylist() == pytest.approx(want)
    assert table["p"].null_count == 48
    by_rows = fit(KNN(k=3), stream_of(net, images(40, 0)), reduction="rows", progress=False)
    assert score(by_rows, stream_of(net, new), progress=False)["p"].null_count == 0
    other = score(fitted, stream_of(net, new), reduction="topk_mean(2)", progress=False)
    want = [
        float(s.topk(2).values.mean()) for s in patch_scores(fitted.result("mahalanobis"), net, new)
    ]
    assert other["score"].to_pylist() == pytest.approx(want)
    assert other["p"].null_count == 3


@pytest.mark.truth("scores of the same scorer on the same rows")
def test_calibration_on_other_images(net):
    bare = fit(Mahalanobis(), stream_of(net, images(40, 0)), calibrate=0, progress=False)
    assert score(bare, stream_of(net, images(2, 5)), progress=False).num_rows == 2
    found = calibrate(bare, stream_of(net, images(30, 1)), progress=False)
    scorer = found.result("mahalanobis")
    usual = [s.amax() for s in patch_scores(scorer, net, images(30, 1))]
    by_hand = Calibration.from_scores(torch.stack(usual))
    new = torch.stack([s.amax() for s in patch_scores(scorer, net, images(40, 2))])
    assert scorer.calibration.n == 30
    torch.testing.assert_close(scorer.calibration.p_value(new), by_hand.p_value(new))


@pytest.mark.slow
@pytest.mark.truth("the same rows in one batch")
@pytest.mark.parametrize("reduction", ["rows", "max"])
def test_batches_of_which_no_row_was_kept(net, reduction):
    bare = fit(Mahalanobis(), stream_of(net, images(40, 0)), calibrate=0, progress=False)
    one = read(net, images(30, 1), sites="conv2", reducer="patches", batch_size=1)
    many = read(net, images(30, 1), sites="conv2", reducer="patches", batch_size=30)
    one, many = KeptRows(one, 16), KeptRows(many, 16)
    assert 0 in {len(batch.rows["conv2:out"]) for batch in one}
    found = [calibrate(bare, s, reduction=reduction, progress=False) for s in (one, many)]
    for calibrated in found:
        with pytest.warns(SondeWarning, match="of 30 items get no score"):
            table = score(calibrated, one, explain=1, progress=False)
        assert table["p"].null_count == 0
    a, b = (c.result("mahalanobis").calibration for c in found)
    assert a.n == b.n
    torch.testing.assert_close(a.tail, b.tail, rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.truth("exact binomial band of the promised rate")
def test_false_alarms_of_documents_of_several_rows():
    """Rows of one document resemble each other; documents differ in length."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (4000,), generator=generator)
    ids = torch.arange(4000).repeat_interleave(lengths)
    x = torch.randn(4000, 3, generator=generator)[ids] * 2
    x = x + torch.randn(len(ids), 3, generator=generator)
    position = torch.cat([torch.arange(int(n)) for n in lengths])

    def part(low, high):
        keep = (ids >= low) & (ids < high)
        return Stream.of(x[keep], ids=ids[keep].tolist(), position=position[keep])

    bare = fit(Mahalanobis(), part(0, 1000), calibrate=0, progress=False)
    found = calibrate(bare, part(1000, 2000), reduction="max", progress=False)
    assert found.result("mahalanobis").calibration.n == 1000
    table = score(found, part(2000, 4000), progress=False)
    assert table.num_rows == 2000
    false = sum(p <= 0.1 for p in table["p"].to_pylist())
    # Beta-binomial of 1,000 held-out and 2,000 new documents: sd 0.0116
    assert 0.1 - 4 * 0.0116 < false / 2000 < 0.1 + 4 * 0.0116


def test_refuses_what_cannot_be_reduced(net):
    with pytest.raises(InputError, match="expected one of max, mean"):
        fit(Mahalanobis(), stream_of(net, images(20, 0)), reduction="median", progress=False)
    x = torch.randn(20, 3)
    bare = fit(Mahalanobis(), Stream.of(x), calibrate=0, progress=False)
    lengths = [str(i % 2) for i in range(20)]
    apart = Stream.of(x, ids=lengths, group=[str(i) for i in range(20)], position=list(range(20)))
    assert score(bare, apart, reduction="max", progress=False).num_rows == 2
    long = Stream.of(torch.randn(40_000, 3), ids=["a"] * 40_000, position=torch.arange(40_000))
    with pytest.raises(InputError, match="do not fit into one batch"):
        score(bare, long, reduction="max", progress=False)
    with pytest.raises(InputError, match="do not fit into one batch"):
        calibrate(bare, long, reduction="max", progress=False)
    small = Calibrated(Mahalanobis(), m=100, reduction="max")
    with pytest.raises(CalibrationError, match="at most 100 held-out rows"):
        small.fit(torch.randn(300, 3), ids=["a"] * 300, position=torch.arange(300))


@pytest.mark.slow
def test_documents_too_long_to_be_held_are_calibrated_afterwards():
    n, chunk, document = 99_072, 64, 33_024

    def texts(name):
        ids, group = ([f"{name}{i // size}" for i in range(n)] for size in (chunk, document))
        return Stream.of(torch.randn(n, 2), ids=ids, position=torch.arange(n) % chunk, group=group)

    fitted = fit(Mahalanobis(), texts("a"), reduction="max", calibrate=0.5, progress=False)
    with pytest.raises(CalibrationError, match=r"at most 32,768 held-out rows .*--calibrate 0"):
        fitted.result("mahalanobis")
    bare = fit(Mahalanobis(), texts("a"), calibrate=0, progress=False)
    found = calibrate(bare, texts("b"), reduction="max", progress=False)
    assert found.result("mahalanobis").calibration.n == n // document


def test_calibration_of_examples_is_a_calibration(net):
    fitted = fit(Mahalanobis(), stream_of(net, images(30, 0)), progress=False)
    assert isinstance(fitted.result("mahalanobis").calibration, Calibration)
    assert fitted.result("mahalanobis").reduction == "max"


def documents(n, length, seed):
    """Documents whose rows share an effect; ``length`` rows each, or between two numbers."""
    random = np.random.default_rng(seed)
    low, high = (length, length) if isinstance(length, int) else length
    name = np.repeat(np.arange(n), random.integers(low, high + 1, n))
    x = 0.3 * random.standard_normal((n, 5))[name] + random.standard_normal((len(name), 5))
    names = [f"{seed}-{i}" for i in name]
    place = np.concatenate([np.arange(k) for k in np.bincount(name)])
    return Stream.of(x, ids=names, group=names, position=place)


@pytest.mark.slow
@pytest.mark.truth("the promised rate, on documents of six times the length: .5 and more before")
@pytest.mark.parametrize("how", ["max", "topk_mean(3)"])
def test_longer_examples_keep_the_false_alarm_rate(tmp_path, how):
    """Lengths that calibrated vary; those known from a fit and from a later calibration hold."""
    fitted = fit(Mahalanobis(), documents(300, (7, 11), 0), reduction=how, calibrate=0.5, **QUIET)
    other = [calibrate(fitted, documents(70, (7, 11), s), reduction=how, **QUIET) for s in (1, 2)]
    later = merge(*other)
    later.save(tmp_path / "later.sonde")
    for bundle in (fitted, Fitted.load(tmp_path / "later.sonde")):
        scorer = bundle.result("mahalanobis")
        assert present(scorer.lengths).longest == 11
        assert present(scorer.lengths).mean == pytest.approx(9, abs=0.4)
        p = score(bundle, documents(150, 54, 5), **QUIET)["p"].to_numpy()
        assert 0.005 < (p <= 0.2).mean() < 0.2 + 3 * np.sqrt(0.16 / 150)
        inside = score(bundle, documents(150, (7, 11), 6), **QUIET)
        plain = scorer.calibration.p_value(inside["score"].to_numpy())
        assert inside["p"].to_pylist() == plain.tolist()


@pytest.mark.truth("brute force: each part by itself, Bonferroni")
def test_the_p_value_of_a_long_example_is_that_of_its_parts():
    random = torch.Generator().manual_seed(0)
    held, lengths = torch.randn(30, generator=random).sort().values, Lengths(30, 3.6, 5)
    inner = Mahalanobis().fit(torch.randn(40, 2, generator=random))
    scorer = CalibratedScorer.of(inner, Calibration.from_scores(held), "max", lengths)
    example = torch.tensor([0] * 5 + [1] * 11 + [2] * 6)[torch.randperm(22, generator=random)]
    scores = torch.randn(22, generator=random, dtype=torch.float64)
    found = scorer.reduced(scores, example, "max")
    got = p_of_examples(scorer, found, found.example, scores, example, "max")
    want = []
    for i, n_parts in enumerate((1, 4, 2)):
        own = scores[example == i]
        part = torch.arange(len(own)) * n_parts // len(own)
        best = torch.stack([own[part == k].max() for k in range(n_parts)])
        each = [(1 + int((held >= b).sum())) / 31 for b in best]
        want.append(min(1.0, n_parts * min(each)))
    assert got.tolist() == pytest.approx(want)
    assert want[1] < 1
