"""The order of examples: p-values first, then how far a score lies beyond its site."""

import math

import numpy as np
import pyarrow as pa
import pytest

from sonde.core.errors import InputError
from sonde.run.scoring.unusual import beyond, most_unusual


def table(rows):
    names = ("id", "position", "site", "instrument", "score", "p")
    columns = list(zip(*rows, strict=True)) if rows else [[]] * 6
    types = (pa.string(), pa.int64(), pa.string(), pa.string(), pa.float64(), pa.float64())
    return pa.table({n: pa.array(c, t) for n, c, t in zip(names, columns, types, strict=True)})


@pytest.mark.truth("by hand")
def test_each_example_once_where_it_stands_out_most():
    rows = [
        ("a", 0, "s", "knn", 1.0, 0.5),
        ("a", 1, "s", "knn", 3.0, 0.01),
        ("b", 0, "s", "knn", 2.0, 0.01),
        ("c", 0, "s", "knn", None, 0.01),
        ("a", 0, "t", "knn", 900.0, 0.3),
        ("b", 0, "t", "vim", 5.0, None),
    ]
    found = most_unusual(table(rows), 3)
    assert [(r["id"], r["position"], r["site"]) for r in found["knn"]] == [
        ("c", 0, "s"), ("a", 1, "s"), ("b", 0, "s"),
    ]  # fmt: skip
    assert math.isinf(found["knn"][0]["score"])
    assert [r["id"] for r in found["vim"]] == ["b"]
    assert [r["id"] for r in most_unusual(table(rows), 1)["knn"]] == ["c"]


@pytest.mark.truth("numpy quantiles")
def test_beyond():
    scores = np.random.default_rng(0).normal(size=50)
    middle, high = np.quantile(scores, [0.5, 0.9])
    np.testing.assert_allclose(beyond(scores), (scores - middle) / (high - middle))
    assert beyond(np.array([math.inf, math.inf])).tolist() == [math.inf] * 2


def test_nothing_and_one_row():
    assert most_unusual(table([("a", 0, "s", "knn", 1.0, None)]), 0) == {"knn": []}
    with pytest.raises(InputError, match="at least 0"):
        most_unusual(table([]), -1)
    assert most_unusual(table([]), 3) == {}
    assert len(most_unusual(table([("a", 0, "s", "knn", 1.0, None)]), 3)["knn"]) == 1
