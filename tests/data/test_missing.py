"""Cells that hold nothing: no id, no group, no pair, in whatever way a table says so."""

import json

import pytest

from sonde.core.hashing import bytes_key
from sonde.data import load, open_inputs

NOTHING = [None, "", float("nan")]
KEYS = [bytes_key(text.encode()) for text in "abcd"]


@pytest.mark.truth("the hash of each text, by hand")
@pytest.mark.parametrize("nothing", NOTHING)
def test_items_without_a_group_are_groups_of_their_own(gpt2, nothing):
    rows = [{"text": t, "group": "g" if t == "c" else nothing} for t in "abcd"]
    inputs = open_inputs(load(gpt2), rows)
    assert inputs.group_keys == [KEYS[0], KEYS[1], b"g", KEYS[3]]


@pytest.mark.truth("the hash of each text, by hand")
@pytest.mark.parametrize("nothing", NOTHING)
def test_items_without_an_id_have_that_of_their_text(gpt2, nothing):
    rows = [{"text": t, "id": "n" if t == "c" else nothing} for t in "abcd"]
    names = [key.hex() for key in KEYS]
    assert open_inputs(load(gpt2), rows).ids == [names[0], names[1], "n", names[3]]


@pytest.mark.parametrize("nothing", NOTHING)
def test_items_without_a_side_have_no_pair(gpt2, nothing):
    rows = [{"text": "a", "pair": nothing, "side": nothing}, {"text": "b", "pair": 1, "side": 1.0}]
    listing = open_inputs(load(gpt2), rows).listing
    assert listing.side.tolist() == [-1, 1]
    assert listing.pair[0] == 0 != listing.pair[1]


@pytest.mark.truth("the same rows as JSON")
def test_every_kind_of_table_says_it_in_its_own_way(gpt2, tmp_path):
    pandas = pytest.importorskip("pandas")
    rows = [{"text": t, "group": "g" if t in "ac" else None} for t in "abcd"]
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    (tmp_path / "t.csv").write_text("text,group\na,g\nb,\nc,g\nd,\n")
    frame = pandas.DataFrame(rows)
    found = [
        open_inputs(load(gpt2), data).group_keys
        for data in (
            tmp_path / "t.jsonl",
            tmp_path / "t.csv",
            frame,
            frame.astype({"group": "string"}),
            frame.assign(group=frame.group.where(frame.group.notna(), pandas.NA)),
        )
    ]
    assert found == [[b"g", KEYS[1], b"g", KEYS[3]]] * 5
