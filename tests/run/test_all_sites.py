"""A detector that scores the rows of all sites together, from the fit to the table of scores."""

from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cli_case import run_words
from sonde.core.batch import Batch
from sonde.core.errors import InputError
from sonde.core.instrument import NotLabelled
from sonde.core.stream import Stream
from sonde.detect import CLUE, Mahalanobis
from sonde.engine.selection import JoinedRows
from sonde.run.fitting.calibrations import merge_calibrations
from sonde.run.fitting.fit import fit
from sonde.run.fitting.fitted import Fitted
from sonde.run.scoring.calibrate import calibrate
from sonde.run.scoring.score import score
from sonde.stats import CalibratedScorer


def _arrays(seed=0, n=600, gap=1.0):
    rng = torch.Generator().manual_seed(seed)
    label = torch.arange(n) % 2
    first = torch.randn(n, 3, generator=rng) + gap * label[:, None]
    second = torch.randn(n, 5, generator=rng) - gap * label[:, None]
    return {"first": first, "second": second}, label


def _stream(seed=0, n=600, **columns):
    arrays, label = _arrays(seed, n)
    return Stream.of(arrays, **cast("Any", {"label": label, **columns}))


def _plain(fit_rows, label, rows):
    """Return the scores by the formula, on the rows that were not held out."""
    total = torch.zeros(len(rows[0]), dtype=torch.float64)
    for x, new in zip(fit_rows, rows, strict=True):
        success, failure = x[label == 0].double().mean(0), x[label == 1].double().mean(0)
        far = (new.double() - success).norm(dim=1) - (new.double() - failure).norm(dim=1)
        total = total + far / len(rows)
    return total


def _held(stream, split):
    return torch.cat([split.is_held(b.split_draw) for b in stream])


@pytest.mark.truth("the formula on plain arrays; p-values counted over held-out successes")
def test_fit_calibrates_and_scores_all_sites_in_one_pass():
    stream, fresh = _stream(), _stream(1, 50)
    fitted = fit([CLUE(), Mahalanobis()], stream, progress=False)
    assert ("clue", "first & second") in fitted.names
    held = _held(stream, fitted.split)
    arrays, label = _arrays()
    rows = [x[~held] for x in arrays.values()]
    table = score(fitted, fresh, progress=False).to_pylist()
    mine = [r for r in table if r["instrument"] == "clue"]
    want = _plain(rows, label[~held], list(_arrays(1, 50)[0].values()))
    assert [r["score"] for r in mine] == pytest.approx(want.tolist(), rel=1e-4, abs=1e-5)
    usual = held & (label == 0)
    calibration = _plain(rows, label[~held], [x[usual] for x in arrays.values()])
    p = [(1 + int((calibration >= s - 1e-7).sum())) / (1 + len(calibration)) for s in want.tolist()]
    assert [r["p"] for r in mine] == pytest.approx(p)
    assert fitted.result("clue").calibration.n == int(usual.sum())
    assert fitted.result("mahalanobis", "first").calibration.n == int(held.sum())


@pytest.mark.slow
@pytest.mark.truth("the promise of split-conformal calibration: alarms on fresh successes")
def test_false_alarms_on_successes_stay_below_the_promise():
    rates = []
    for seed in range(12):
        fitted = fit(CLUE(), _stream(seed, 400), progress=False)
        table = score(fitted, _stream(100 + seed, 400), progress=False)
        p = np.array(table["p"].to_pylist())[::2]
        rates.append((p <= 0.1).mean())
    assert np.mean(rates) <= 0.1 + 3 * np.std(rates) / len(rates) ** 0.5


def test_saved_and_merged_bundles_score_alike(tmp_path):
    parts = [_stream(seed) for seed in (0, 1)]
    both = [fit(CLUE(), part, progress=False) for part in parts]
    path = tmp_path / "probe.sonde"
    both[0].save(path)
    loaded = Fitted.load(path)
    fresh = _stream(2, 60)
    table, again = (score(f, fresh, progress=False) for f in (both[0], loaded))
    assert table.equals(again)
    merged = both[0].merge(both[1])
    held = [_held(part, f.split) for part, f in zip(parts, both, strict=True)]
    arrays, labels = zip(*(_arrays(seed) for seed in (0, 1)), strict=True)
    rows = [torch.cat([a[s][~h] for a, h in zip(arrays, held, strict=True)]) for s in arrays[0]]
    label = torch.cat([y[~h] for y, h in zip(labels, held, strict=True)])
    want = _plain(rows, label, list(_arrays(2, 60)[0].values()))
    got = score(merged, fresh, progress=False)["score"].to_pylist()
    assert got == pytest.approx(want.tolist(), rel=1e-4, abs=1e-5)
    total = sum(f.result("clue").calibration.n for f in both)
    assert merged.result("clue").calibration.n == total


def test_calibrated_on_other_rows_and_merged():
    fitted = fit(CLUE(), _stream(0), calibrate=0, progress=False)
    assert not isinstance(fitted.result("clue"), CalibratedScorer)
    arrays, _ = _arrays(3, 200)
    unlabelled = calibrate(fitted, Stream.of(arrays), progress=False)
    assert unlabelled.result("clue").calibration.n == 200
    labelled = calibrate(fitted, _stream(3, 200), progress=False)
    assert labelled.result("clue").calibration.n == 100
    other = calibrate(fitted, _stream(4, 200), progress=False)
    joined = merge_calibrations(labelled, other)
    assert joined.result("clue").calibration.n == 200


def test_one_row_of_each_group_calibrates():
    n = 400
    fitted = fit(CLUE(), _stream(0, n, group=[i // 4 for i in range(n)]), progress=False)
    groups = len({i // 4 for i in range(n) if _held_group(fitted, i // 4)})
    assert fitted.result("clue").calibration.n == groups


def _held_group(fitted, group):
    stream = Stream.of(torch.zeros(1, 1), group=[group])
    return bool(_held(stream, fitted.split)[0])


def test_a_single_site_is_enough_where_the_method_says_so():
    arrays, label = _arrays()
    fitted = fit(CLUE(), Stream.of(arrays["first"], label=label), progress=False)
    assert fitted.names == [("clue", "x")]


def test_rows_that_are_not_finite_score_infinity():
    arrays, label = _arrays()
    fitted = fit(CLUE(), _stream(), progress=False)
    fresh = {k: x[:4].clone() for k, x in arrays.items()}
    fresh["second"][1, 2] = float("nan")
    table = score(fitted, Stream.of(fresh, label=label[:4]), progress=False)
    scores = table["score"].to_pylist()
    assert scores[1] == float("inf")
    assert np.isfinite([scores[0], *scores[2:]]).all()
    assert table["p"].to_pylist()[1] == min(table["p"].to_pylist())


def _batch():
    """Two examples; the second site lacks a row of the first example and has another order."""
    return Batch(
        rows={"a": torch.arange(3.0)[:, None], "b": torch.tensor([[20.0], [10.0]])},
        ids=["one", "two"],
        keys=[b"1" * 16, b"2" * 16],
        order=torch.arange(2),
        occurrence=[0, 0],
        example={"a": torch.tensor([0, 0, 1]), "b": torch.tensor([1, 0])},
        position={"a": torch.tensor([0, 1, 0]), "b": torch.tensor([0, 1])},
        group_keys=[b"1", b"2"],
        label=torch.tensor([5, 6]),
    )


@pytest.mark.truth("joined by hand")
def test_rows_are_joined_by_example_and_position():
    joined = JoinedRows.of(_batch(), ("a", "b"), ("x", "label"), "all")
    x, label = joined.columns
    assert [r.flatten().tolist() for r in x] == [[1.0, 2.0], [10.0, 20.0]]
    assert label.tolist() == [5, 6]
    assert joined.example.tolist() == [0, 1]
    assert joined.position.tolist() == [1, 0]
    assert NotLabelled(5).mask(_batch(), "a").tolist() == [False, False, True]


@pytest.fixture
def files(tmp_path):
    for name, seed, n in (("fit", 0, 600), ("new", 1, 40)):
        arrays, label = _arrays(seed, n)
        columns: dict[str, Any] = {k: v.numpy() for k, v in arrays.items()}
        np.savez(tmp_path / f"{name}.npz", label=label.numpy(), **columns)
    return tmp_path


def test_commands_fit_score_and_calibrate(files):
    probe, table = files / "probe.sonde", files / "scores.parquet"
    assert run_words("fit", "clue", "-", files / "fit.npz", "-o", probe).code == 0
    assert run_words("score", probe, "-", files / "new.npz", "-o", table).code == 0
    rows = pq.read_table(table).to_pylist()
    assert len(rows) == 40
    assert {r["site"] for r in rows} == {"first & second"}
    assert all(0 < r["p"] <= 1 for r in rows)
    failures, successes = ([r["score"] for r in rows[k::2]] for k in (1, 0))
    assert np.mean(failures) > np.mean(successes)


def test_a_failure_is_needed():
    arrays, label = _arrays()
    with pytest.raises(InputError, match="expected traces of label 1"):
        fit(CLUE(), Stream.of(arrays, label=label * 0), progress=False).result("clue")
