"""Rows whose squares overflow their type: left out of fits, counted, and scored as infinite."""

import json
import math

import numpy as np
import pytest
import torch

from sonde.cli.main import main
from sonde.core.instrument import score_needs
from sonde.core.stream import Stream
from sonde.detect import FDBD, KNN, SHE, Mahalanobis, NNGuide, RelativeMahalanobis, ViM
from sonde.engine.running import Running
from sonde.findings.scan import scan_stream
from sonde.measure import Covariance
from sonde.run.comparing.drift import drift
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.fitting.sklearn import OutlierDetector
from sonde.stats import Moments, MomentsState

SIZES = (1e19, 1e25, 3e38)
N, DIM, AT = 120, 5, 7
SIGNS = torch.tensor([1.0, -1.0, 1.0, 0.5, -1.0])


def rows(seed=0, n=N):
    return torch.randn(n, DIM, generator=torch.Generator().manual_seed(seed))


def with_huge(size, dtype=torch.float32):
    x = rows()
    x[AT] = SIGNS * size
    return x.to(dtype)


def without(x):
    return torch.cat([x[:AT], x[AT + 1 :]])


def columns_of(x):
    g = torch.Generator().manual_seed(1)
    weight = torch.randn(3, DIM, generator=g)
    logits = 6 + torch.randn(len(x), 3, generator=g)
    return {"label": logits.argmax(1), "logits": logits}, (weight, torch.zeros(3))


@pytest.mark.truth("the detector fitted without the row")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "detector",
    [Mahalanobis(), RelativeMahalanobis(), KNN(k=3), ViM(), NNGuide(k=3), FDBD(), SHE()],
    ids=lambda d: type(d).__name__,
)
def test_a_row_that_cannot_be_squared_is_left_out_and_scored_as_infinite(detector, size):
    x = with_huge(size)
    columns, head = columns_of(x)
    kept = {k: without(v) for k, v in columns.items()}
    ids = [f"{i}" for i in range(N)]
    want = detector.fit(without(x), head=head, ids=ids[:AT] + ids[AT + 1 :], **kept)
    got = detector.fit(x, head=head, ids=ids, **columns)
    assert got.n == want.n
    needs = score_needs(got)
    scores = got.score(*({"x": x, **columns}[n] for n in needs))
    assert scores[AT] == math.inf
    usual = want.score(*({"x": without(x), **kept}[n] for n in needs))
    torch.testing.assert_close(without(scores), usual, rtol=1e-6, atol=1e-7)


@pytest.mark.truth("numpy in float64")
def test_what_can_be_squared_stays():
    half = with_huge(6e4, torch.float16)
    wide = with_huge(1e25, torch.float64)
    for x, n in ((half, N), (wide, N), (with_huge(1e14), N)):
        running = Running(Moments())
        running.update(x)
        state = running.state
        assert isinstance(state, MomentsState)
        assert state.n == n
        z = x.double().numpy() - x.double().numpy().mean(0)
        assert np.allclose(state.scatter.numpy(), z.T @ z, rtol=1e-5)


@pytest.mark.truth("the same rows without it")
@pytest.mark.parametrize("size", SIZES)
def test_states_with_such_rows_can_be_saved_and_compared(tmp_path, size):
    both = []
    for name, x in (("a", rows(2)), ("b", with_huge(size)), ("c", without(with_huge(size)))):
        fitted = fit(Covariance(), Stream.of(x), progress=False)
        fitted.save(tmp_path / name)
        both.append(Fitted.load(tmp_path / name))
    assert both[1].header["counters"]["nonfinite|x"] == 1
    found, want = dict(drift(both[0], both[1])), dict(drift(both[0], both[2]))
    assert found.keys() - want.keys() == {("nonfinite", "x")}
    assert {key: found[key].p for key in want} == pytest.approx({k: c.p for k, c in want.items()})


@pytest.mark.truth("the estimator fitted without the row")
@pytest.mark.parametrize("word", ["mahalanobis", "knn"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scikit_learn_has_them_as_outliers(word, dtype):
    size = 3e38 if dtype == np.float32 else 1e200
    x = rows().numpy().astype(dtype)
    x[AT] = size
    found = OutlierDetector(word, calibrate=0.0).fit(x)
    want = OutlierDetector(word, calibrate=0.0).fit(np.delete(x, AT, axis=0))
    scores = found.score_samples(x)
    assert scores[AT] == -np.inf
    assert found.predict(x)[AT] == -1
    assert np.allclose(np.delete(scores, AT), want.score_samples(np.delete(x, AT, axis=0)))


@pytest.mark.parametrize("size", SIZES)
def test_a_scan_counts_them(size):
    checks = scan_stream(Stream.of(with_huge(size))).checks
    (finding,) = [c.finding for c in checks if c.finding and c.finding.code == "SND001"]
    assert f"1 of {N} rows" in finding.sentence


def test_the_command_line_counts_them(tmp_path, capsys):
    np.savez(tmp_path / "x.npz", x=with_huge(1e25).numpy())
    probe, table = str(tmp_path / "x.sonde"), str(tmp_path / "x.jsonl")
    data = ["-", str(tmp_path / "x.npz")]
    assert main(["fit", "mahalanobis", *data, "-o", probe]) == 0
    assert main(["score", probe, *data, "-o", table]) == 0
    lines = [json.loads(t) for t in (tmp_path / "x.jsonl").read_text().splitlines()]
    assert [i for i, line in enumerate(lines) if line["score"] is None] == [AT]
    assert "infinite" in capsys.readouterr().err
