"""Stores that grow: more data, more sites, a share of the rows, and columns of the data."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import sonde
from models import gpt2, mlp
from run_case import Stopping, rows
from sonde.core.errors import InputError, StoreError
from sonde.core.hashing import splitmix64
from sonde.core.stream import Stream
from sonde.detect import KNN
from sonde.run.fitting.fit import fit
from sonde.store import (
    KeptRows,
    Store,
    add_sites,
    append_store,
    repair,
    verify_store,
    write_store,
)
from sonde.store.exporting import export_store
from sonde.tap import LiveStream

QUIET: dict[str, Any] = {"progress": False}


def items(n, seed):
    return list(torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)))


def live(data, sites=("0", "2", "4"), seed=0):
    return sonde.read(mlp(seed=seed), data, sites=list(sites), logits=True)


def content(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }


def all_rows(stream: Stream, key="0:out"):
    """Return every row with its draw, which holds id, position and occurrence."""
    batches = list(stream)
    draws = torch.cat([b.draw(key) for b in batches])
    return torch.cat([b.rows[key] for b in batches])[draws.argsort()], draws.sort()[0]


@pytest.mark.truth("one reading of all data")
def test_appended_data_are_those_of_one_reading(tmp_path):
    first, second = items(70, 1), items(50, 2)
    second += first[:20]  # equal examples become later occurrences
    place = write_store(live(first), tmp_path / "a", unit_size=32)
    before = content(place)
    append_store(live(second), place)
    after = content(place)
    assert {n: c for n, c in after.items() if n in before and n != "store.json"} == {
        n: c for n, c in before.items() if n != "store.json"
    }
    store, whole = Store(place), live([*first, *second])
    assert len(store) == 140
    assert [k for b in store for k in b.order.tolist()] == list(range(140))
    x, draws = all_rows(store)
    wanted, its_draws = all_rows(whole)
    assert torch.equal(draws, its_draws)
    torch.testing.assert_close(x, wanted)
    occurrence = torch.cat([torch.as_tensor(b.occurrence) for b in store])
    assert occurrence[-20:].tolist() == [1] * 20
    assert occurrence[:-20].sum() == 0
    found = fit(KNN(k=3), store, **QUIET)
    assert found.header["data"]["n_examples"] == 140
    assert verify_store(place).is_sound


def test_the_same_data_are_appended_once(tmp_path):
    place = write_store(live(items(40, 1)), tmp_path / "a")
    append_store(live(items(30, 2)), place)
    before = content(place)
    append_store(live(items(30, 2)), place)
    append_store(live(items(40, 1)), place)
    assert content(place) == before
    append_store(live(items(20, 3)), place)
    assert len(Store(place)) == 90


@pytest.mark.truth("a fit on the live stream at all sites")
def test_an_added_site_is_as_if_read_at_once(tmp_path):
    data = items(150, 1)
    place = write_store(live(data, ["2"]), tmp_path / "a", unit_size=64)
    before = content(place)
    assert add_sites(live(data), place) == ["0:out", "4:out"]
    assert all(content(place)[n] == c for n, c in before.items() if n != "store.json")
    store = Store(place)
    assert store.identity() == live(data).identity()
    batch = next(iter(store))
    assert batch.example["0:out"] is batch.example["2:out"]
    one = fit(KNN(k=3), live(data), unit_size=64, **QUIET).save(tmp_path / "live.sonde")
    assert fit(KNN(k=3), store, **QUIET).save(tmp_path / "store.sonde") == one
    assert add_sites(live(data), place) == []
    assert verify_store(place).is_sound


def test_a_site_counts_when_every_data_set_has_it(tmp_path):
    first, second = items(40, 1), items(30, 2)
    place = write_store(live(first, ["2"]), tmp_path / "a")
    append_store(live(second), place)
    assert [s.key for s in Store(place).schema] == ["2:out"]
    add_sites(live(first), place)
    assert [s.key for s in Store(place).schema] == ["2:out"]
    add_sites(live(second), place)
    assert [s.key for s in Store(place).schema] == ["0:out", "2:out", "4:out"]
    wanted = all_rows(live([*first, *second]), "4:out")[0]
    torch.testing.assert_close(all_rows(Store(place), "4:out")[0], wanted)


@pytest.mark.parametrize("grow", [append_store, add_sites])
@pytest.mark.parametrize("after", [1, 3])
def test_interrupted_growth_is_unseen_and_goes_on(tmp_path, monkeypatch, grow, after):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    first = items(60, 1)
    more = live(items(60, 2), ["2"]) if grow is append_store else live(first)
    base = live(first, ["2"])
    whole = write_store(base, tmp_path / "whole", unit_size=10)
    grow(more, whole)
    place = write_store(base, tmp_path / "a", unit_size=10)
    seen = [s.key for s in Store(place).schema], len(Store(place))
    with pytest.raises(KeyboardInterrupt):
        grow(Stopping(more, after + 1), place)
    assert ([s.key for s in Store(place).schema], len(Store(place))) == seen
    assert not [n for n in content(place) if ".tmp-" in n or n == "lock"]
    other = live(items(60, 9), ["2"]) if grow is append_store else live(first, ["2", "4"])
    with pytest.raises(StoreError, match=r"an interrupted .* of other data or sites"):
        grow(other, place)
    resumed = Stopping(more)
    grow(resumed, place)
    assert len(resumed.asked) == 1 + 6 - after
    assert content(place) == content(whole)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: live(items(9, 2), seed=1), "got another model."),
        (lambda: live(items(9, 2), ["0"]), "got another 2:out."),
        (lambda: KeptRows(live(items(9, 2)), 1), "got another keep."),
        (lambda: Stream.of(rows(9)), "got another"),
    ],
)
def test_data_of_another_kind_are_not_appended(tmp_path, make, message):
    place = write_store(live(items(20, 1)), tmp_path / "a")
    before = content(place)
    with pytest.raises(StoreError, match=message):
        append_store(make(), place)
    assert content(place) == before


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: live(items(20, 1), seed=1), "model differs"),
        (lambda: live(items(20, 2)), "data differs"),
    ],
)
def test_sites_of_other_rows_are_not_added(tmp_path, make, message):
    place = write_store(live(items(20, 1), ["0"]), tmp_path / "a")
    before = content(place)
    with pytest.raises(StoreError, match=message):
        add_sites(make(), place)
    assert content(place) == before


def read_texts(module, first, sites):
    return sonde.read(module, texts()[first : first + 20], sites=sites)


@pytest.mark.slow
def test_a_store_that_does_not_know_the_attention_kernel_grows(tmp_path, monkeypatch):
    known = LiveStream.identity
    module, more = gpt2(), ["transformer.h.0", "transformer.h.1"]
    with monkeypatch.context() as before:
        before.setattr(
            LiveStream, "identity", lambda s: {k: v for k, v in known(s).items() if k != "attn"}
        )
        place = write_store(read_texts(module, 0, more[:1]), tmp_path / "a", unit_size=8)
    append_store(read_texts(module, 20, more[:1]), place)
    for first in (0, 20):
        assert add_sites(read_texts(module, first, more), place) == ["transformer.h.1:out"]
    assert len(Store(place)) == 40
    assert [s.key for s in Store(place).schema] == [f"{site}:out" for site in more]
    place = write_store(read_texts(module, 0, more[:1]), tmp_path / "b", unit_size=8)
    module.config._attn_implementation = "eager"
    with pytest.raises(StoreError, match=r"attn is .eager. here and was .sdpa. in the store"):
        append_store(read_texts(module, 20, more[:1]), place)
    with pytest.raises(StoreError, match="attn differs"):
        add_sites(read_texts(module, 0, more), place)


class TestArrays:
    """Rows of plain arrays, which no model and no file names."""

    def test_sites_are_matched_by_ids_alone(self, tmp_path):
        place = write_store(Stream.of({"a": rows(30)}), tmp_path / "a")
        with pytest.raises(StoreError, match="matched by their ids, got none"):
            add_sites(Stream.of({"b": rows(30, seed=1)}), place)
        ids = [f"r{i}" for i in range(30)]
        place = write_store(Stream.of({"a": rows(30)}, ids=ids), tmp_path / "b")
        with pytest.raises(StoreError, match="columns differs"):
            add_sites(Stream.of({"b": rows(30)}, ids=ids[::-1]), place)
        assert add_sites(Stream.of({"b": rows(30, seed=1)}, ids=ids), place) == ["b"]

    def test_two_data_sets_of_the_same_ids_are_not_told_apart(self, tmp_path):
        ids = [f"r{i}" for i in range(30)]
        place = write_store(Stream.of({"a": rows(30)}, ids=ids), tmp_path / "a")
        append_store(Stream.of({"a": rows(30, seed=1)}, ids=ids), place)
        with pytest.raises(StoreError, match=r"2 data sets of .* have these ids"):
            add_sites(Stream.of({"b": rows(30)}, ids=ids), place)

    def test_the_same_rows_beside_further_arrays_are_appended_once(self, tmp_path):
        place = write_store(Stream.of({"a": rows(30)}), tmp_path / "a")
        more = {"a": rows(20, seed=1), "b": rows(20, seed=2)}
        for stream in (Stream.of(more), Stream.of(more), Stream.of({"a": more["a"]})):
            append_store(stream, place)
        append_store(Stream.of({"a": rows(30), "b": rows(30)}), place)
        assert len(Store(place)) == 50


@pytest.mark.parametrize(
    ("first", "later", "kept"),
    [
        ([1, 2], [3, None], [1, 2, 3, None]),
        ([1.5, 2.0], [3, 4], [1.5, 2.0, 3.0, 4.0]),
        (["x", "y"], [3, 4], ["x", "y", "3", "4"]),
        ([True, False], [None, None], [True, False, None, None]),
        ([1, 2], [2.5, 3], None),
        ([1, 2], ["x", "y"], None),
        ([1, 2], [True, False], None),
    ],
)
def test_a_column_keeps_its_kind(tmp_path, first, later, kept):
    place = write_store(live(items(2, 1)), tmp_path / "a", columns={"c": first})
    if kept is None:
        with pytest.raises(StoreError, match=r"column 'c' .* contains integer values, got"):
            append_store(live(items(2, 2)), place, columns={"c": later})
        return
    append_store(live(items(2, 2)), place, columns={"c": later})
    export_store(Store(place), tmp_path / "a.parquet")
    assert pq.read_table(tmp_path / "a.parquet").column("c").to_pylist() == kept


@pytest.mark.truth("the values as Python's own")
@pytest.mark.parametrize("of", [np.array, torch.tensor, pa.array, pa.scalar])
@pytest.mark.parametrize("values", [[3, 1], [0.5, 2.0], [True, False], ["a", "b"]])
def test_a_column_of_an_array_is_one_of_its_values(tmp_path, of, values):
    if of is torch.tensor and isinstance(values[0], str):
        return
    first = [pa.scalar(v).as_py() for v in values] if of is pa.scalar else of(values)
    given = {"array": first, "entries": [*np.array(values)]}
    place = write_store(live(items(2, 1)), tmp_path / "a", columns=given)
    append_store(live(items(2, 2)), place, columns=given)
    for name in given:
        found = Store(place).column(name)
        assert found == values * 2
        assert {type(v) for v in found} == {type(values[0])}


@pytest.mark.parametrize("n", [40, 70])
def test_other_values_of_a_column_are_refused(tmp_path, monkeypatch, n):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    place, user = tmp_path / "a", ["a"] * 30 + ["b"] * 40
    data = items(70, 1)
    later = [*user[:50], "a", *user[51:]]
    if n < 70:
        with pytest.raises(KeyboardInterrupt):
            write_store(Stopping(live(data), 2), place, unit_size=20, columns={"user": user})
    else:
        write_store(live(data), place, unit_size=20, columns={"user": user})
    with pytest.raises(StoreError, match=r"\(its columns\)"):
        write_store(live(data), place, unit_size=20, columns={"user": later})
    write_store(live(data), place, unit_size=20, columns={"user": user})
    assert Store(place).column("user") == user
    for more in (data, items(5, 2)):
        columns = {"user": ["a"] * len(more)}
        if more is data:
            with pytest.raises(StoreError, match="with other values of the column 'user'"):
                append_store(live(data), place, columns=columns)
            append_store(live(data), place, columns={"user": user})
        else:
            append_store(live(more), place, columns=columns)
    assert Store(place).column("user") == [*user, *"aaaaa"]


@pytest.mark.truth("the store before the loss")
@pytest.mark.parametrize("place", ["data/1", "sites/1", "data/1/sites/1"])
@pytest.mark.parametrize("kept", [None, 100])
def test_the_command_that_wrote_it_writes_a_lost_file_again(tmp_path, place, kept):
    first, second = items(40, 1), items(30, 2)
    store = write_store(live(first, ["2"]), tmp_path / "a")
    append_store(live(second, ["2"]), store)
    for data in (first, second):
        add_sites(live(data), store)
    before = content(store)
    lost = next((store / place / "rows" / "pooled").iterdir())
    lost.unlink() if kept is None else lost.write_bytes(lost.read_bytes()[:kept])
    data = second if "data" in place else first
    if place == "data/1":
        append_store(live(data, ["2"]), store)
    else:
        add_sites(live(data), store)
    assert content(store) == before


def test_nothing_is_added_to_a_store_that_lost_a_file(tmp_path):
    store = write_store(live(items(30, 1)), tmp_path / "a")
    next((store / "rows" / "pooled").iterdir()).unlink()
    for grow in (append_store, add_sites):
        with pytest.raises(StoreError, match="is not complete: 1 ranges"):
            grow(live(items(30, 1)), store)
    assert not (store / "data").exists()


def test_lost_data_are_appended_again_where_sites_were_added(tmp_path):
    first, second = items(40, 1), items(30, 2)
    whole = write_store(live(first, ["2"]), tmp_path / "a")
    append_store(live(second, ["2"]), whole)
    for data in (first, second):
        add_sites(live(data), whole)
    before = content(whole)
    next((whole / "data" / "1" / "rows" / "pooled").iterdir()).write_bytes(b"")
    assert repair(whole, verify_store(whole))
    with pytest.raises(StoreError, match="lacks ranges"):
        Store(whole)
    append_store(live(second, ["2"]), whole)
    assert content(whole) == before


def test_nothing_is_added_to_an_unfinished_store(tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        write_store(Stopping(live(items(30, 1)), 2), tmp_path / "a", unit_size=10)
    for grow in (append_store, add_sites):
        with pytest.raises(StoreError, match="is not complete: 2 ranges"):
            grow(live(items(30, 2)), tmp_path / "a")


def texts():
    ids = torch.randint(1, 60, (40, 12), generator=torch.Generator().manual_seed(0))
    return [row[: 4 + i % 9] for i, row in enumerate(ids)]


def tokens(batch_size=8):
    return sonde.read(
        gpt2(), texts(), sites=["transformer.h.0"], further=("tokens",), batch_size=batch_size
    )


@pytest.mark.slow
@pytest.mark.truth("the hash of rows, computed one by one")
def test_kept_rows_are_those_of_the_hash(tmp_path):
    store = Store(write_store(KeptRows(tokens(), 4), tmp_path / "a", unit_size=16))
    pooled, every = [s.key for s in store.schema]
    kept = {p for b in store for p in _places(b, every)}
    wanted = set()
    for batch in tokens():
        base = batch._base("subsample")
        for i, at in zip(batch.example[every], batch.position[every], strict=True):
            with np.errstate(over="ignore"):
                z = base[int(i)] + (np.uint64(int(at)) << np.uint64(20))
            if int(splitmix64(np.asarray([z]))[0]) % 4 == 0:
                wanted.add((batch.ids[int(i)], int(at)))
    assert kept == wanted
    n_all = sum(len(b.rows[every]) for b in tokens())
    assert 0.1 * n_all < len(kept) < 0.45 * n_all
    assert sum(len(b.rows[pooled]) for b in store) == 40
    other = KeptRows(tokens(batch_size=3), 4)
    assert {p for b in other for p in _places(b, every)} == kept


def _places(batch, key):
    pairs = zip(batch.example[key].tolist(), batch.position[key].tolist(), strict=True)
    return [(batch.ids[i], at) for i, at in pairs]


def in_pieces(data):
    """Return the tokens of texts of up to three contexts."""
    long = [torch.cat([text] * 12) for text in data]
    return sonde.read(gpt2(), long, sites=["transformer.h.0"], reducer="tokens", batch_size=8)


def named(stream):
    """Return every row as its id, occurrence, position and draw."""
    found = []
    for batch in stream:
        (key,) = batch.rows
        which = np.asarray(batch.occurrence)[batch.example[key]].tolist()
        places = zip(_places(batch, key), which, batch.draw(key).tolist(), strict=True)
        found += [(*place, n, draw) for place, n, draw in places]
    return sorted(found)


@pytest.mark.slow
@pytest.mark.truth("one reading of all data")
@pytest.mark.parametrize("every", [1, 3])
def test_pieces_of_equal_texts_count_as_texts(tmp_path, every):
    first, second = texts()[:10], [*texts()[5:15], *texts()[:3]]
    place = write_store(KeptRows(in_pieces(first), every), tmp_path / "a", unit_size=8)
    append_store(KeptRows(in_pieces(second), every), place)
    append_store(KeptRows(in_pieces(first[4:]), every), place)
    whole = KeptRows(in_pieces([*first, *second, *first[4:]]), every)
    assert len(whole) > 29  # texts
    assert named(Store(place)) == named(whole)
    assert verify_store(place).is_sound


@pytest.mark.truth("one array of all rows")
def test_rows_of_one_example_count_by_their_position(tmp_path):
    parts = [("aaab", [0, 1, 2, 0]), ("aaac", [2, 3, 3, 0]), ("aabc", [3, 3, 0, 0])]
    ids, position = "".join(p[0] for p in parts), [at for p in parts for at in p[1]]
    x = rows(12)
    split = [Stream.of(x[4 * k : 4 * k + 4], ids=list(i), position=at)
             for k, (i, at) in enumerate(parts)]  # fmt: skip
    place = write_store(split[0], tmp_path / "a")
    for part in split[1:]:
        append_store(part, place)
    assert named(Store(place)) == named(Stream.of(x, ids=list(ids), position=position))
    again = write_store(Store(place), tmp_path / "b")
    append_store(Stream.of(x[:4] + 1, ids=list("aaab"), position=parts[0][1]), again)
    assert [n for *_, at, n, _ in named(Store(again)) if at == 2] == [0, 1, 2]


def test_a_share_of_pooled_rows_is_refused():
    with pytest.raises(InputError, match="no rows to choose"):
        KeptRows(live(items(4, 1)), 8)
    with pytest.raises(InputError, match="one row in 1 or more, got 0"):
        KeptRows(tokens(), 0)


@pytest.mark.truth("the values that were given")
def test_chosen_columns_stand_beside_the_rows(tmp_path):
    columns = {
        "name": [f"n{i}" for i in range(30)],
        "share": [None if i == 3 else i / 7 for i in range(30)],
        "count": list(range(30)),
        "good": [i % 2 == 0 for i in range(30)],
        "mixed": [i if i % 2 else f"t{i}" for i in range(30)],
    }
    place = write_store(live(items(30, 1)), tmp_path / "a", unit_size=10, columns=columns)
    table = pa.concat_tables(
        pa.ipc.open_file(p).read_all() for p in (place / "rows" / "examples").glob("*.arrow")
    ).sort_by("order")
    for name in ("name", "share", "count", "good"):
        assert table[f"column_{name}"].to_pylist() == columns[name]
    assert table["column_mixed"].to_pylist() == [str(v) for v in columns["mixed"]]
    kinds = json.loads((place / "store.json").read_text())["columns"]
    assert kinds == {
        "name": "text", "share": "number", "count": "integer", "good": "bool", "mixed": "text"
    }  # fmt: skip
    with pytest.raises(StoreError, match="its columns"):
        write_store(live(items(30, 1)), place, unit_size=10)
    with pytest.raises(StoreError, match="other columns"):
        append_store(live(items(9, 2)), place)
    with pytest.raises(InputError, match="expected 30 values of 'a', got 2"):
        write_store(live(items(30, 1)), tmp_path / "b", columns={"a": [1, 2]})
