"""What makes a row unusual: planted in one unit of one layer, at one position, and found there."""

import json

import pyarrow.csv
import pyarrow.parquet
import pytest
import torch

from sonde.core import InputError, Stream
from sonde.core.result import _placed
from sonde.detect import KNN, Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.scoring.score import score
from sonde.run.scoring.tables import read_table, write_table

SITES = ("first", "second", "third")


def rows(n, seed, dim=6):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)) + 2.0


def sites(n, seed):
    return {name: rows(n, seed + i) for i, name in enumerate(SITES)}


@pytest.fixture(scope="module")
def fitted():
    return fit([Mahalanobis(), KNN(k=5)], Stream.of(sites(400, 0)), progress=False)


@pytest.fixture(scope="module")
def planted(fitted):
    new = sites(20, 50)
    new["second"][7, 4] = 40.0
    ids = [f"r{i}" for i in range(20)]
    return new, score(fitted, Stream.of(new, ids=ids), explain=2, progress=False)


@pytest.mark.truth("where the fault was planted")
@pytest.mark.parametrize("method", ["mahalanobis", "knn"])
def test_a_planted_fault_is_named(planted, method):
    lines = [r for r in planted[1].to_pylist() if r["id"] == "r7" and r["instrument"] == method]
    assert [r["site"] for r in lines] == list(SITES)
    for line in lines:
        assert line["layers"][0] == "second"
        assert len(line["layers"]) == len(line["units"]) == 2
        assert line["layer_p"][0] == min(r["p"] for r in lines)
        assert line["positions"] is None
    if method == "mahalanobis":  # neighbours compare directions: all other units shrink
        assert lines[1]["units"][0] == 4
        assert 0.5 < lines[1]["unit_shares"][0] <= 1.0


@pytest.mark.truth("the distance from a fit without that unit")
def test_the_share_of_a_unit_is_what_the_distance_loses_without_it():
    x, new = rows(300, 1).double(), rows(5, 2).double()
    scorer = Mahalanobis(shrinkage=0.0).fit(x)
    found = scorer.contributions(new)
    for j in range(6):
        rest = [k for k in range(6) if k != j]
        without = Mahalanobis(shrinkage=0.0).fit(x[:, rest]).score(new[:, rest])
        assert torch.allclose(found[:, j], scorer.score(new) - without, rtol=1e-6)


@pytest.mark.truth("the variance of each unit alone")
def test_units_of_a_diagonal_metric_and_of_neighbours():
    x, new = rows(300, 1), rows(5, 2)
    diagonal = Mahalanobis(shrinkage=0.0, scatter="diag").fit(x)
    want = (new - x.mean(0)).square() / x.var(0, correction=0)
    assert torch.allclose(diagonal.contributions(new), want, rtol=1e-4)
    knn = KNN(k=3).fit(x)
    assert torch.allclose(knn.contributions(new).sum(1), knn.score(new).square(), rtol=1e-5)


@pytest.mark.truth("scores of the rows one by one")
def test_the_most_unusual_positions_of_an_example():
    fitted = fit(Mahalanobis(), Stream.of(rows(400, 0)), progress=False)
    new, ids = rows(12, 9), [f"t{i // 4}" for i in range(12)]
    stream = Stream.of(new, ids=ids, position=torch.arange(12) % 4)
    scores = fitted.result("mahalanobis").score(new).double().reshape(3, 4)
    best = scores.topk(2, dim=1)
    plain = score(fitted, stream, explain=2, progress=False).to_pylist()
    assert len(plain) == 12
    reduced = score(fitted, stream, explain=2, reduction="max", progress=False).to_pylist()
    for i, line in enumerate(reduced):
        assert line["positions"] == best.indices[i].tolist()
        assert line["position_scores"] == pytest.approx(best.values[i].tolist())
        assert line["position"] == line["positions"][0]
        assert plain[4 * i]["positions"] == line["positions"]


def test_a_scorer_is_copied_once_to_a_device():
    scorer, device = Mahalanobis().fit(rows(50, 0)), torch.device("meta")
    copy = _placed(scorer, device)
    assert copy.devices == {device}
    assert _placed(scorer, device) is copy
    assert _placed(scorer, torch.device("cpu")) is scorer


def test_units_that_are_not_finite_are_named(fitted):
    new = sites(3, 70)
    new["first"][1, 3] = float("nan")
    table = score(fitted, Stream.of(new, ids=["a", "b", "c"]), explain=2, progress=False)
    line = next(r for r in table.to_pylist() if (r["id"], r["site"]) == ("b", "first"))
    assert line["units"] == [3]
    assert line["unit_shares"] is None
    assert line["layers"][0] == "first"


def test_scores_that_are_not_finite_are_null_in_json(tmp_path):
    fitted = fit(Mahalanobis(), Stream.of(rows(400, 0)), progress=False)
    new = rows(4, 9)
    new[1, 1] = float("nan")
    stream = Stream.of(new, ids=["t"] * 4, position=torch.arange(4))
    table = score(fitted, stream, explain=2, reduction="max", progress=False)
    write_table(table, tmp_path / "t.jsonl")
    (line,) = map(json.loads, (tmp_path / "t.jsonl").read_text().splitlines())
    assert line["score"] is None
    assert line["positions"][0] == 1
    first, second = line["position_scores"]
    assert first is None
    assert second == table["position_scores"].to_pylist()[0][1]


def test_without_calibration_layers_are_not_compared():
    bare = fit(Mahalanobis(), Stream.of(sites(100, 0)), calibrate=0, progress=False)
    table = score(bare, Stream.of(sites(4, 9)), explain=1, progress=False)
    assert table["layers"].null_count == table.num_rows == 12
    assert table["units"].null_count == 0
    with pytest.raises(InputError, match="explain of at least 0"):
        score(bare, Stream.of(sites(4, 9)), explain=-1, progress=False)


def test_explanations_in_every_format(planted, fitted, tmp_path):
    new, table = planted
    for suffix in ("parquet", "csv", "jsonl"):
        write_table(table, tmp_path / f"t.{suffix}")
        assert read_table(tmp_path / f"t.{suffix}").num_rows == table.num_rows
    assert pyarrow.parquet.read_table(tmp_path / "t.parquet").equals(table)
    first = table.slice(0, 1).to_pylist()[0]
    assert json.loads((tmp_path / "t.jsonl").read_text().splitlines()[0]) == first
    read = pyarrow.csv.read_csv(tmp_path / "t.csv")
    assert read["layers"][0].as_py().split() == first["layers"]
    plain = score(fitted, Stream.of(new, ids=[f"r{i}" for i in range(20)]), progress=False)
    assert plain.equals(table.select(plain.column_names))
