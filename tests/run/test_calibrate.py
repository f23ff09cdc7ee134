"""Detectors calibrated on other rows: equal to plain arrays, mergeable, refused on fit rows."""

import math
from typing import Any

import pytest
import torch

import sonde
from sonde.core import Calibration, Stream
from sonde.core.errors import CalibrationError, InputError, SondeWarning, StateError
from sonde.detect import CLUE, KNN, Mahalanobis
from sonde.measure import Spectrum
from sonde.run.fitting.calibrations import merge_calibrations
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.merge import merge
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.stats import SampledCalibration


def rows(n, seed):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module", params=[0, 0.2], ids=["uncalibrated", "calibrated"])
def fitted(request):
    instruments = [Mahalanobis(), KNN(k=5), Spectrum()]
    return fit(instruments, Stream.of(rows(300, 0)), calibrate=request.param, progress=False)


@pytest.mark.truth("scores of the same scorer on plain arrays")
def test_p_values_come_from_the_new_rows_alone(fitted, tmp_path):
    held, new = rows(200, 1), rows(50, 2)
    found = calibrate(fitted, Stream.of(held), progress=False)
    assert {name for name, _ in found.scorers} == {"mahalanobis", "knn"}
    found.save(tmp_path / "c.sonde")
    for bundle in (found, Fitted.load(tmp_path / "c.sonde")):
        table = score(bundle, Stream.of(new), progress=False)
        for name in ("mahalanobis", "knn"):
            before = fitted.result(name)
            scorer = before if fitted.split is None else before.scorer
            mine = table.filter([i == name for i in table["instrument"].to_pylist()])
            want = Calibration.from_scores(scorer.score(held)).p_value(scorer.score(new))
            assert mine["p"].to_pylist() == pytest.approx(want.tolist())
            assert mine["score"].to_pylist() == pytest.approx(scorer.score(new).tolist())


@pytest.mark.truth("the same detectors fitted without a calibration")
def test_a_calibrated_scorer_says_what_the_fitted_one_says(fitted):
    new = calibrate(fitted, Stream.of(rows(200, 1)), progress=False)
    held = torch.zeros(300, dtype=torch.bool)
    if fitted.split is not None:
        whole = Stream.of(rows(300, 0))
        held = torch.cat([fitted.split.is_held(b.split_draw) for b in whole])
    for name, detector in (("mahalanobis", Mahalanobis()), ("knn", KNN(k=5))):
        want = detector.fit(rows(300, 0)[~held])
        assert math.isfinite(want.value)
        for bundle in (fitted, new):
            found = bundle.result(name)
            assert found.value == pytest.approx(want.value, rel=1e-6)
            assert found.table()["value"].to_pylist() == pytest.approx([want.value], rel=1e-6)
            for said in ("unit", "range", "flags", "null", "direction", "n"):
                assert getattr(found, said) == getattr(want, said)
            assert found.conventions.keys() >= want.conventions.keys()


@pytest.mark.truth("one calibration on all rows")
def test_calibrations_of_parts_merge(fitted):
    ids = [str(i) for i in range(200)]
    held = rows(200, 1)
    both = calibrate(fitted, Stream.of(held, ids=ids), progress=False)
    parts = [
        calibrate(fitted, Stream.of(held[a:b], ids=ids[a:b]), progress=False)
        for a, b in ((0, 60), (60, 200))
    ]
    merged = merge_calibrations(*parts)
    for name in ("mahalanobis", "knn"):
        calibrations = [b.result(name).calibration for b in (merged, both)]
        assert torch.equal(*(c.tail for c in calibrations))
        assert [c.n for c in calibrations] == [200, 200]
    assert sum(c["n_examples"] for c in merged.header["calibrations"]) == 200


def sample_of(calibration):
    assert isinstance(calibration, SampledCalibration)
    return calibration


@pytest.mark.truth("the numbers asked for, and the calibration that keeps every score")
def test_memory_is_bounded_and_the_largest_scores_are_kept():
    fitted = fit([Mahalanobis(), KNN(k=5)], Stream.of(rows(300, 0)), calibrate=0, progress=False)
    held = rows(3000, 5)
    found = calibrate(fitted, Stream.of(held), m=50, progress=False)
    for name in ("mahalanobis", "knn"):
        calibration = sample_of(found.result(name).calibration)
        assert (calibration.n, len(calibration.tail)) == (3000, 1000)
        assert len(calibration.scores) <= 50
        whole = Calibration.from_scores(found.result(name).scorer.score(held))
        for alpha in (0.001, 0.01, 0.3):
            assert calibration.threshold(alpha) == pytest.approx(whole.threshold(alpha))


def test_the_record_says_which_rows_were_fitted(fitted, tmp_path):
    found = calibrate(fitted, Stream.of(rows(60, 1)), progress=False)
    assert found.split == fitted.split
    for bundle in (fitted, found):
        assert {u["data"] for u in bundle.header["units"]} == {
            u["data"] for u in fitted.header["units"]
        }
    assert [c["n_examples"] for c in found.header["calibrations"]] == [60]
    again = calibrate(found, Stream.of(rows(40, 2)), progress=False)
    assert again.split == fitted.split
    assert again.result("knn").calibration.n == 40
    assert again.result("knn").scorer.n == fitted.result("knn").n


@pytest.mark.truth("the ranks of one class, and of all rows together")
def test_classes_of_few_rows_may_share_the_scores_of_all(fitted):
    held, label = Stream.of(rows(300, 3), label=[0] * 290 + [1] * 10), [1]
    alone, pooled = (
        calibrate(fitted, held, by="label", pooled_below=n, progress=False).result("knn")
        for n in (0, 20)
    )
    assert [c.calibration.labels.tolist() for c in (alone, pooled)] == [[0, 1], [0]]
    assert float(alone.calibration.p_value([1e9], label)) == pytest.approx(1 / 11)
    assert float(pooled.calibration.p_value([1e9], label)) == pytest.approx(1 / 301)
    assert pooled.calibration.threshold(0.05, 1) == alone.calibration.threshold(0.05)
    with pytest.raises(InputError, match="pooled_below of at least 1 together with by"):
        calibrate(fitted, Stream.of(rows(30, 1)), pooled_below=20, progress=False)


@pytest.mark.truth("calibrations of the rows of each class alone")
@pytest.mark.parametrize("by", ["label", "predicted"])
def test_by_class(by, tmp_path):
    fitted = fit(Mahalanobis(), Stream.of(rows(300, 0)), calibrate=0, progress=False)
    held, new, label = rows(400, 1), rows(60, 2), torch.arange(400) % 2
    held[label == 1] *= 3.0
    own = torch.arange(60) % 3  # class 2 was not seen

    def columns(label, n) -> dict[str, Any]:
        known = {} if by == "label" else {"logits": torch.eye(3)[label]}
        return {"label": label if by == "label" else torch.full((n,), 2), **known}

    found = calibrate(fitted, Stream.of(held, **columns(label, 400)), by=by, progress=False)
    found.save(tmp_path / "c.sonde")
    scorer = fitted.result("mahalanobis")
    want = torch.empty(60, dtype=torch.float64)
    for k in range(3):
        mine = held[label == k] if k < 2 else held
        want[own == k] = Calibration.from_scores(scorer.score(mine)).p_value(
            scorer.score(new[own == k])
        )
    for bundle in (found, Fitted.load(tmp_path / "c.sonde")):
        table = score(bundle, Stream.of(new, **columns(own, 60)), progress=False)
        assert table["p"].to_pylist() == pytest.approx(want.tolist())
    calibration = found.result("mahalanobis").calibration
    limit = Calibration.from_scores(scorer.score(held[label == 1])).threshold(0.1)
    assert calibration.threshold(0.1, 1) == pytest.approx(limit)
    assert calibration.thresholds(0.1, own, 60)[own == 1].unique().item() == pytest.approx(limit)
    assert calibration.threshold(0.1, 7) == calibration.whole.threshold(0.1)
    with pytest.raises(CalibrationError, match="expected classes by label"):
        calibrate(fitted, Stream.of(held), by="label", progress=False)


@pytest.mark.truth("the threshold that keeps every score with the same guarantee")
def test_the_guarantee_for_this_calibration(tmp_path):
    fitted = fit(Mahalanobis(), Stream.of(rows(300, 0)), calibrate=0, progress=False)
    held = rows(500, 1)
    found = calibrate(fitted, Stream.of(held), guarantee="pac", delta=0.1, progress=False)
    found.save(tmp_path / "c.sonde")
    whole = Calibration.from_scores(fitted.result("mahalanobis").score(held), "pac", 0.1)
    for bundle in (found, Fitted.load(tmp_path / "c.sonde")):
        calibration = bundle.result("mahalanobis").calibration
        assert calibration.threshold(0.05) == pytest.approx(whole.threshold(0.05))
        assert calibration.rate_interval(0.05) == pytest.approx(whole.rate_interval(0.05))
        table = score(bundle, Stream.of(3 * rows(50, 2)), progress=False)
        alarms = [p <= 0.05 for p in table["p"].to_pylist()]
        assert alarms == [s > whole.threshold(0.05) for s in table["score"].to_pylist()]


@pytest.mark.truth("one row of each group, scored by hand")
def test_one_score_for_each_group(fitted):
    group = [f"g{i // 5}" for i in range(200)]
    held = rows(200, 3)
    found = calibrate(fitted, Stream.of(held, group=group), progress=False)
    calibration = sample_of(found.result("knn").calibration)
    assert calibration.n == 40
    scores = found.result("knn").scorer.score(held).double().reshape(40, 5)
    kept = calibration.tail
    assert all(bool(torch.isin(kept, row).sum() >= 1) for row in scores)


@pytest.mark.truth("the usual rows of each group, scored one by one")
@pytest.mark.parametrize("spread", [True, False])
def test_a_usual_example_stands_for_each_group_that_has_one(spread):
    n = 600
    x, fitted_on = torch.randn(n, 3, generator=torch.Generator().manual_seed(0)), rows(300, 1)
    group = torch.arange(n) % 100 if spread else torch.arange(n) // 6
    label = (torch.arange(n) * 7 % 100 < group).long()
    known = Stream.of({"a": fitted_on[:, :3]}, label=torch.arange(300) % 2)
    found = fit(CLUE(), known, calibrate=0, progress=False)
    stream = Stream.of({"a": x}, label=label, group=group.tolist())
    ready = calibrate(found, stream, progress=False).result("clue")
    scores = found.result("clue").score([x]).double()
    usual = [scores[(group == g) & (label == 0)] for g in range(100)]
    usual = [of_group for of_group in usual if len(of_group)]
    kept = sample_of(ready.calibration).tail
    assert ready.calibration.n == len(usual) == len(kept) > 50
    assert all(int(torch.isin(of_group, kept).sum()) == 1 for of_group in usual)


@pytest.mark.truth("one calibration on all rows, through the file and the merge of the commands")
def test_merge_joins_calibrations_and_refuses_what_cannot_be(fitted):
    parts = [calibrate(fitted, Stream.of(rows(60, s)), progress=False) for s in (1, 2)]
    both = torch.cat([rows(60, 1), rows(60, 2)])
    whole = calibrate(fitted, Stream.of(both), progress=False).result("knn").calibration
    joined = merge(*parts).result("knn").calibration
    assert torch.equal(joined.tail, whole.tail)
    assert joined.n == 120
    with pytest.raises(StateError, match="calibrated on the same data"):
        merge(parts[0], parts[0])
    with pytest.raises(StateError, match="Merge first, then calibrate"):
        merge(parts[0], fitted)


@pytest.mark.truth("the rate of new rows; one calibration on all rows that differ")
def test_rows_known_to_both_calibrations_count_once(fitted):
    ids = [str(i) for i in range(301)]
    held = rows(301, 4)
    most, all_of_it = (
        calibrate(fitted, Stream.of(held[:n], ids=ids[:n]), progress=False) for n in (300, 301)
    )
    with pytest.raises(StateError, match="300 of 300 kept rows of one bundle"):
        merge_calibrations(most, all_of_it)
    few = calibrate(fitted, Stream.of(held[100:], ids=ids[100:]), m=150, progress=False)
    first = calibrate(fitted, Stream.of(held[:150], ids=ids[:150]), m=150, progress=False)
    with pytest.warns(SondeWarning, match="kept rows .* they now count twice"):  # not all is kept
        assert merge_calibrations(first, few).result("knn").calibration.n == 351
    some = calibrate(fitted, Stream.of(held[100:], ids=ids[100:]), progress=False)
    start = calibrate(fitted, Stream.of(held[:150], ids=ids[:150]), progress=False)
    merged = merge_calibrations(start, some).result("knn").calibration
    whole = all_of_it.result("knn").calibration
    assert merged.n == whole.n == 301
    assert merged.threshold(0.05) == whole.threshold(0.05)


def test_what_is_refused(fitted):
    with pytest.raises(InputError, match="not fitted on, got the 300 examples of the fit"):
        calibrate(fitted, Stream.of(rows(300, 0)), progress=False)
    with pytest.raises(StateError):
        calibrate(fitted, Stream.of(rows(30, 0)[:, :3]), progress=False)
    measures = fit(Spectrum(), Stream.of(rows(300, 0)), progress=False)
    with pytest.raises(StateError, match="no detector"):
        calibrate(measures, Stream.of(rows(30, 1)), progress=False)
    one = calibrate(fitted, Stream.of(rows(60, 1)), progress=False)
    other = fit([Mahalanobis(), KNN(k=5)], Stream.of(rows(300, 9)), progress=False)
    with pytest.raises(StateError, match="two calibrations of the same fitted bundle"):
        merge_calibrations(one, calibrate(other, Stream.of(rows(60, 2)), progress=False))


@pytest.mark.slow
def test_texts_that_are_cut_into_chunks_are_told_once(capsys):
    model = sonde.load("sonde:stdlib")
    short = [{"text": f"x = {i}\n" * (1 + i % 5)} for i in range(60)]
    probe = fit(Mahalanobis(), sonde.read(model, short, sites="layers.0"), progress=False)
    mixed = [{"text": f"y = {i}\n" * (200 if i == 7 else 3)} for i in range(40)]
    calibrate(probe, model, mixed, progress=True)
    assert (
        capsys.readouterr().err.count("note: 1 of 40 texts is longer than the model's context") == 1
    )
    calibrate(probe, model, mixed, progress=False)
    assert "chunks" not in capsys.readouterr().err
    calibrate(probe, model, mixed[8:], progress=True)
    assert "chunks" not in capsys.readouterr().err
