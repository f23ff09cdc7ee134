"""Tables of scores as figures: scikit-learn, exact intervals, what is refused."""

import numpy as np
import pyarrow as pa
import pytest
import scipy.stats
import sklearn.metrics
import torch
from pyarrow import parquet

from sonde.core import Stream
from sonde.core.errors import InputError
from sonde.detect import Mahalanobis
from sonde.run.fitting.fit import fit
from sonde.run.scoring.evaluate import evaluate
from sonde.run.scoring.score import score
from sonde.run.scoring.tables import read_table, write_table


def rows(n, seed, shift=0.0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + shift


@pytest.fixture(scope="module")
def tables():
    fitted = fit(Mahalanobis(), Stream.of(rows(300, 0)), progress=False)
    data = rows(80, 1), rows(60, 2, 1.5)
    return [score(fitted, Stream.of(x), progress=False) for x in data]


@pytest.mark.truth("scikit-learn; scipy.stats.binomtest")
def test_figures(tables):
    (found,) = evaluate(*tables, alpha=0.1, resamples=100)
    scores = np.concatenate([t["score"].to_numpy() for t in tables])
    truth = np.r_[np.zeros(80), np.ones(60)]
    assert found["auroc"] == pytest.approx(sklearn.metrics.roc_auc_score(truth, scores))
    assert found["aupr"] == pytest.approx(sklearn.metrics.average_precision_score(truth, scores))
    assert found["auroc_low"] < found["auroc"] < found["auroc_high"]
    false = int((tables[0]["p"].to_numpy() <= 0.1).sum())
    want = scipy.stats.binomtest(false, 80).proportion_ci(0.95, "exact")
    assert found["false_alarms"] == false / 80
    assert (found["false_alarms_low"], found["false_alarms_high"]) == pytest.approx(
        (want.low, want.high)
    )
    assert found["found"] > found["false_alarms"]
    assert (found["n_usual"], found["n_unusual"]) == (80, 60)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json", ".jsonl"])
def test_files_give_the_same_figures(tables, tmp_path, suffix):
    again = []
    for i, table in enumerate(tables):
        write_table(table, tmp_path / f"{i}{suffix}")
        again.append(read_table(tmp_path / f"{i}{suffix}"))
    assert evaluate(*again, resamples=20) == evaluate(*tables, resamples=20)


def test_without_calibration_nothing_is_said_of_alarms():
    fitted = fit(Mahalanobis(), Stream.of(rows(300, 0)), calibrate=0, progress=False)
    both = [score(fitted, Stream.of(rows(30, s)), progress=False) for s in (1, 2)]
    (found,) = evaluate(*both, resamples=20)
    assert found["false_alarms"] is None
    assert found["found"] is None


ROWS = {"id": ["a", "b"], "site": ["s", "s"], "instrument": ["k", "k"], "score": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"score": ["high", "low"]}, "expected numbers as score in the unusual rows, got string"),
        ({"score": [[1.0], [2.0]]}, "expected numbers as score"),
        ({"score": [1.0, float("nan")]}, "scores without NaN in the unusual rows, got 1 NaN"),
        ({"p": ["0.5", "low"]}, "expected numbers as p in the unusual rows, got string, such as"),
        ({"p": [0.5, 3.0]}, r"expected p-values in \[0, 1\] as p in the unusual rows, got 3.0"),
        ({"p": [0.5, float("nan")]}, r"expected p-values in \[0, 1\]"),
        ({"site": ["s", None]}, "expected a site in every row of the unusual rows, got 1 row "),
    ],
)
def test_columns_of_another_kind_are_refused(columns, said):
    usual = pa.table(ROWS)
    with pytest.raises(InputError, match=said):
        evaluate(usual, pa.table({**ROWS, **columns}))


def test_columns_that_stand_twice_and_empty_tables_are_refused(tmp_path):
    usual = pa.table(ROWS)
    path = tmp_path / "twice.csv"
    path.write_text("id,site,instrument,score,score\na,s,k,1,2\n")
    with pytest.raises(
        InputError, match=r"each column once in .*twice\.csv, got score more than once"
    ):
        read_table(path)
    with pytest.raises(InputError, match=r"got 0 rows\. Write"):
        evaluate(usual, usual.slice(0, 0))
    with pytest.raises(InputError, match=r"alpha in \(0, 1\)"):
        evaluate(usual, usual, alpha=3.0)


@pytest.mark.truth("the same places as texts")
def test_places_may_be_numbers():
    numbers = pa.table({**ROWS, "site": [1, 1], "instrument": [2, 2]})
    texts = pa.table({**ROWS, "site": ["1", "1"], "instrument": ["2", "2"]})
    assert evaluate(numbers, texts, resamples=5) == evaluate(texts, texts, resamples=5)


def test_a_score_whose_bytes_changed_is_refused(tables, tmp_path):
    path = tmp_path / "scores.parquet"
    write_table(tables[0], path)
    content = path.read_bytes()
    found = parquet.read_metadata(path).row_group(0)
    for k in range(found.num_columns):
        column = bytearray(content)
        start = found.column(k).dictionary_page_offset or found.column(k).data_page_offset
        column[start + found.column(k).total_compressed_size - 1] ^= 1
        path.write_bytes(column)
        with pytest.raises(InputError, match=r"not a table of scores.*CRC"):
            read_table(path)
    path.write_bytes(content)
    assert read_table(path).num_rows == tables[0].num_rows


def test_what_is_refused(tables, tmp_path):
    where = tables[1].column_names.index("instrument")
    renamed = tables[1].set_column(where, "instrument", [["other"] * 60])
    with pytest.raises(InputError, match="no detector at one site in common"):
        evaluate(tables[0], renamed)
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="not a table of scores"):
        read_table(tmp_path / "bad.parquet")
    for word in ("nan", "NaN"):
        (tmp_path / "nan.csv").write_text(f"id,site,instrument,score\na,s,k,{word}\nb,s,k,1\n")
        with pytest.raises(InputError, match=r"scores without NaN in .*nan\.csv, got 1 NaN"):
            read_table(tmp_path / "nan.csv")
    (tmp_path / "short.csv").write_text("id,score\na,1\n")
    with pytest.raises(InputError, match="without site, instrument"):
        read_table(tmp_path / "short.csv")
    with pytest.raises(InputError, match=r"\.parquet"):
        read_table(tmp_path / "x.pdf")
