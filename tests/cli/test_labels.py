"""``sonde labels``: the sentence, the table and the CSV of arrays with wrong labels."""

import csv
import json

import numpy as np

from cli_case import run_words


def test_labels_prints_how_many_and_writes_which(tmp_path):
    draw = np.random.default_rng(0)
    y = np.arange(300) % 4
    given = np.where(np.arange(300) < 20, (y + draw.integers(1, 4, 300)) % 4, y)
    x = draw.normal(size=(300, 6)) + 6 * np.eye(6)[y]
    np.savez(tmp_path / "a.npz", X=x, y=given)
    said = run_words("labels", str(tmp_path / "a.npz"), "-o", str(tmp_path / "a.csv"))
    assert said.code == 0, said.err
    assert "of 300 labels are wrong (95 % interval 1" in said.out
    assert "Of the first" in said.out
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    assert len(rows) == 300
    assert {int(row["row"]) for row in rows[:20]} == set(range(20))
    assert run_words("labels", str(tmp_path / "a.npz"), "-o", "a.txt").code == 2
    both = [*("-o", str(tmp_path / "b.csv")), *("-o", str(tmp_path / "b.json"))]
    said = run_words("labels", str(tmp_path / "a.npz"), *both)
    assert said.code == 0, said.err
    assert (tmp_path / "b.csv").read_bytes() == (tmp_path / "a.csv").read_bytes()
    assert len(json.loads((tmp_path / "b.json").read_text())["rows"]) == len(given)
    assert f"wrote {tmp_path / 'b.csv'}, {tmp_path / 'b.json'}" in said.err
    assert run_words("labels", str(tmp_path / "none.npz")).code == 2
