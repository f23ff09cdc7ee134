"""The column ``row`` of scores: which item of the data a line belongs to."""

from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch

import sonde
from models import mlp
from sonde.core import SondeWarning, Stream
from sonde.detect import Mahalanobis, TokenStatistics
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.run.scoring.score import score
from sonde.store import Store, append_store, write_store

QUIET: dict[str, Any] = {"progress": False}
TEXTS = [f"x{i} = " + " + ".join(map(str, range(i % 9))) for i in range(60)]


@pytest.fixture(scope="module")
def python():
    model = sonde.load("sonde:stdlib")
    stream = read(model, TEXTS, sites="model.layers.0", reducer="last")
    return model, fit(Mahalanobis(), stream, **QUIET)


def ids_of(texts):
    return [blake2b(text.encode(), digest_size=16).hexdigest() for text in texts]


@pytest.mark.truth("the hash of each text by hashlib")
def test_each_line_names_the_text_that_it_belongs_to(python):
    model, fitted = python
    table = score(fitted, read(model, TEXTS, sites="model.layers.0", reducer="last"), **QUIET)
    rows = table["row"].to_pylist()
    assert rows == list(range(60))
    assert table["id"].to_pylist() == [ids_of(TEXTS)[row] for row in rows]


def test_a_batch_of_one_row_is_scored_too(python):
    model, fitted = python
    stream = read(model, TEXTS[:3], sites="model.layers.0", reducer="last", batch_size=1)
    table = score(fitted, stream, explain=2, **QUIET)
    assert sorted(table["row"].to_pylist()) == [0, 1, 2]


@pytest.mark.truth("the hash of each text by hashlib")
def test_pieces_of_a_text_name_the_text(python):
    model, fitted = python
    texts = ["a = 1\n", "b = 2\n" * 20, "c = 3\n" * 9, "a = 1\n"]
    stream = read(model, texts, sites="model.layers.0", reducer="last", max_length=32)
    with pytest.warns(SondeWarning, match="max_length=32, but the state was fitted with 256"):
        table = score(fitted, stream, **QUIET)
    assert table.num_rows > len(texts)
    rows = table["row"].to_pylist()
    assert rows == sorted(rows)
    assert set(rows) == {0, 1, 2, 3}
    assert table["id"].to_pylist() == [ids_of(texts)[row] for row in rows]


LINES = {
    "t.jsonl": ['{"text": "a = 1"}', "{", '{"text": null}', '{"text": "b"}', "[]", '{"text": "c"}'],
    "t.csv": ["n,text", "0,a = 1", "1", "", '2,"b\n"', "3,\udcff", "4,5,6", "5,c"],
}
PLACES = {"t.jsonl": {"a = 1": 0, "b": 3, "c": 5}, "t.csv": {"a = 1": 0, "b\n": 2, "c": 5}}


@pytest.mark.truth("the places of the texts in the file, by hand")
@pytest.mark.parametrize("name", LINES)
def test_broken_records_keep_their_numbers(python, tmp_path, name):
    model, fitted = python
    path = tmp_path / name
    path.write_bytes("\n".join(LINES[name]).encode("utf-8", "surrogateescape"))
    options = {"text_column": "text", "skip_bad": True, "sites": "model.layers.0"}
    table = score(fitted, read(model, path, reducer="last", **options), **QUIET)
    found = dict(zip(table["id"].to_pylist(), table["row"].to_pylist(), strict=True))
    expected = PLACES[name]
    assert found == dict(zip(ids_of(expected), expected.values(), strict=True))


@pytest.mark.slow
@pytest.mark.truth("the table of this process")
def test_a_worker_names_the_same_items(python):
    model, fitted = python
    stream = read(model, TEXTS * 5, sites="model.layers.0", reducer="last")
    alone = score(fitted, stream, threads=1, **QUIET)
    assert score(fitted, stream, workers=1, threads=1, **QUIET).equals(alone)
    assert set(alone["row"].to_pylist()) == set(range(300))


def test_rows_of_an_array_are_numbered():
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    fitted = fit(Mahalanobis(), Stream.of(x), **QUIET)
    assert score(fitted, Stream.of(x[:9]), **QUIET)["row"].to_pylist() == list(range(9))


def test_a_store_keeps_them_until_data_are_appended(tmp_path):
    items = list(np.random.default_rng(0).normal(size=(40, 8)).astype("f4"))
    stream = read(mlp(), items, sites="0")
    fitted = fit(Mahalanobis(), stream, **QUIET)
    write_store(stream, tmp_path / "acts")
    assert score(fitted, stream, **QUIET)["row"].to_pylist() == list(range(40))
    stored = score(fitted, Store(tmp_path / "acts"), **QUIET)
    assert stored["row"].to_pylist() == list(range(40))
    append_store(read(mlp(), [x + 1 for x in items[:9]], sites="0"), tmp_path / "acts")
    assert score(fitted, Store(tmp_path / "acts"), **QUIET)["row"].null_count == 49


@pytest.mark.slow
def test_items_without_a_line_are_told(python, recwarn):
    model, _ = python
    reading: dict[str, Any] = {"sites": "lm_head", "reducer": "predictions"}
    fitted = fit(TokenStatistics(), read(model, TEXTS, **reading), calibrate=0, **QUIET)
    texts = ["a = 1\n", "x", "b = 2\n", "y"]
    with pytest.warns(SondeWarning, match="2 of 4 items get no score; the first is item 1"):
        table = score(fitted, read(model, texts, **reading), **QUIET)
    assert set(table["row"].to_pylist()) == {0, 2}
    recwarn.clear()
    score(fitted, read(model, texts[::2], **reading), **QUIET)
    assert not [w for w in recwarn if "no line" in str(w.message)]
