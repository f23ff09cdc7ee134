"""A table in memory is read without a model, as its file is."""

import json

import torch

import sonde


def rows_of(data):
    return torch.cat([batch.rows["columns:out"] for batch in sonde.read("-", data)])


def test_rows_in_memory_are_those_of_their_file(tmp_path):
    drawn = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).tolist()
    rows = [{"a": v, "b": -2 * v + 1, "c": w} for v, w in drawn]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ours, theirs = rows_of(rows), rows_of(str(file))
    assert ours.shape == (40, 3)
    torch.testing.assert_close(ours.sort(0).values, theirs.sort(0).values)
