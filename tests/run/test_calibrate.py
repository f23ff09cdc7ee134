"""Detectors calibrated on other rows: equal to plain arrays, mergeable, refused on fit rows."""

import pytest
import torch

from sonde.core import Calibration, Stream
from sonde.core.errors import InputError, StateError
from sonde.detect import KNN, Mahalanobis
from sonde.measure import Spectrum
from sonde.run.calibrate import calibrate, merge_calibrations
from sonde.run.fit import fit
from sonde.run.fitted import Fitted
from sonde.run.score import score


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
        assert torch.equal(
            merged.result(name).calibration.scores, both.result(name).calibration.scores
        )
    assert sum(c["n_examples"] for c in merged.header["calibrations"]) == 200


@pytest.mark.truth("the number of rows asked for")
def test_memory_is_bounded(fitted):
    found = calibrate(fitted, Stream.of(rows(300, 5)), m=50, progress=False)
    assert found.result("knn").calibration.n == 50


def test_what_is_refused(fitted):
    with pytest.raises(InputError, match="not fitted on"):
        calibrate(fitted, Stream.of(rows(300, 0)), progress=False)
    with pytest.raises(StateError):
        calibrate(fitted, Stream.of(rows(30, 0)[:, :3]), progress=False)
    measures = fit(Spectrum(), Stream.of(rows(300, 0)), progress=False)
    with pytest.raises(StateError, match="no detector"):
        calibrate(measures, Stream.of(rows(30, 1)), progress=False)
    one = calibrate(fitted, Stream.of(rows(60, 1)), progress=False)
    other = fit([Mahalanobis(), KNN(k=5)], Stream.of(rows(300, 9)), progress=False)
    with pytest.raises(StateError, match="two calibrations of one fitted bundle"):
        merge_calibrations(one, calibrate(other, Stream.of(rows(60, 2)), progress=False))
