"""Copies of rows are left out; rows that are equal by chance, or named apart, stay."""

import json

import numpy as np
import pytest
import torch

from sonde import load, read
from sonde.data import different_rows, row_number, rows_of


def measured(n: int, seed: int = 0) -> list[dict]:
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))
    return [{"x": row, "label": i % 3} for i, row in enumerate(x)]


@pytest.mark.truth("rows that were copied by hand")
def test_copies_of_measured_rows_are_left_out_in_order():
    rows = measured(7)
    copied = [*rows, rows[3], rows[0], *rows]
    found = different_rows(copied)
    assert (found.n, found.n_different, found.n_named_apart) == (16, 7, 0)
    assert all(a is b for a, b in zip(found.data, rows, strict=True))
    other = [row | {"label": row["label"] + 1} for row in rows]
    assert different_rows(rows + other).n_different == 14


def test_data_without_copies_are_the_given_object():
    rows = measured(7)
    assert different_rows(rows).data is rows
    assert different_rows("no such file.csv").data == "no such file.csv"


@pytest.mark.truth("categories that were drawn by lot")
def test_rows_of_few_categories_are_equal_by_chance():
    draw = np.random.default_rng(2)
    table = draw.integers(0, 3, (200, 4))
    rows = [{"a": int(a), "b": str(b), "x": torch.tensor([c, d])} for a, b, c, d in table]
    found = different_rows(rows)
    assert found.data is rows
    assert found.n == found.n_different == 200
    wide = [{"x": torch.from_numpy(r)} for r in draw.integers(0, 3, (50, 60))]
    assert different_rows(wide * 2).n_different == 50


def test_rows_of_other_ids_stay_and_are_counted():
    rows = measured(6)
    same = [row | {"id": i} for i, row in enumerate(rows)] * 2
    apart = [row | {"id": i} for i, row in enumerate(rows * 2)]
    assert different_rows(same).n_different == 6
    found = different_rows(apart)
    assert found.data is apart
    assert (found.n_different, found.n_named_apart) == (12, 6)


def test_a_file_keeps_the_places_of_its_rows(tmp_path):
    file = tmp_path / "rows.csv"
    lines = [f"{v},{i % 2}" for i, v in enumerate([0.125, 3.5, 0.125, 9.75, 3.25, 9.75, 8.5])]
    file.write_text("\n".join(["a,label", *lines]) + "\n")
    found = different_rows(str(file))
    assert (found.n, found.n_different) == (7, 5)
    assert [row["a"] for row in rows_of(found.data)] == [
        row["a"] for i, row in enumerate(rows_of(str(file))) if i not in (2, 5)
    ]
    assert found.data.take(1, 3) == [*found.data.rows()][1:3]
    assert [*found.data.labels("label")] == [row["label"] for row in found.data.rows()]
    assert "5" in found.data.where(2) or "4" in found.data.where(2)


def test_pictures_are_compared_by_their_bytes_and_read_by_a_model(tmp_path):
    from PIL import Image

    draw = np.random.default_rng(0)
    for name in ("a", "b", "c"):
        Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(
            tmp_path / f"{name}.png"
        )
    (tmp_path / "copy.png").write_bytes((tmp_path / "b.png").read_bytes())
    found = different_rows(str(tmp_path))
    assert (found.n, found.n_different) == (4, 3)
    assert [row["image"].name for row in rows_of(found.data)] == ["a.png", "b.png", "c.png"]
    assert len(read(load("sonde:digits"), found.data)) == 3


def test_a_limit_bounds_the_search():
    rows = [{"text": str(i // 2)} for i in range(1000)]
    found = different_rows(rows, limit=2)
    assert (found.n, found.n_different, len(found.data)) == (200, 100, 900)


@pytest.mark.truth("the places of different rows among copies made by hand")
def test_a_row_that_is_left_has_its_number_in_the_given_data(tmp_path):
    words = ["one", "one", "two", "one", "three", "three", "four"]
    rows = [{"text": word} for word in words]
    file = tmp_path / "words.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for given in (rows, str(file)):
        left = different_rows(given, limit=None).data
        assert [r["text"] for r in rows_of(left)] == ["one", "two", "three", "four"]
        assert [row_number(left, i) for i in range(4)] == [0, 2, 4, 6]
        assert row_number(given, 3) == 3
