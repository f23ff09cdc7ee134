"""Rows on disk: the same bits back, the same fits, and files that may lie."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from models import mlp
from run_case import Stopping, rows, stream
from sonde.core.batch import Batch
from sonde.core.errors import InputError, StoreError
from sonde.core.stream import Stream
from sonde.detect import KNN, Mahalanobis
from sonde.measure import ParticipationRatio, UpdateSize
from sonde.run.fitting.fit import fit
from sonde.run.reading.read import read
from sonde.store import Store, describe_store, write_store

QUIET: dict[str, Any] = {"progress": False}

WORDS = {"float32": torch.int32, "float64": torch.int64, "float16": torch.int16}
PAYLOADS = {
    "float32": [0x7FC00001, -0x3FFFFF, 0x7F800000, 1, -(2**31)],
    "float64": [0x7FF8000000000001, -0x7FFFFFFFFFFFF, 0x7FF0000000000000, 1, -(2**63)],
    "float16": [0x7E01, -0x1FF, 0x7C00, 1, -(2**15)],
    "bfloat16": [0x7FC1, -0x3F, 0x7F80, 1, -(2**15)],
}


def bits(x):
    return x.contiguous().reshape(-1).view(torch.uint8).tolist()


def assert_same_batches(a: Stream, b: Stream, bounds):
    for start, stop in bounds:
        pairs = list(zip(a.batches(start, stop), b.batches(start, stop), strict=True))
        assert pairs
        for one, two in pairs:
            _assert_same(one, two)


def _assert_same(one: Batch, two: Batch):
    assert list(one.rows) == list(two.rows)
    for key, x in one.rows.items():
        assert x.dtype == two.rows[key].dtype
        assert bits(x) == bits(two.rows[key])
        assert torch.equal(one.example[key], two.example[key])
        assert torch.equal(one.position[key], two.position[key])
        assert torch.equal(one.draw(key), two.draw(key))
    assert list(one.ids) == list(two.ids)
    assert [bytes(k) for k in one.keys] == list(two.keys)
    assert [bytes(k) for k in one.group_keys] == list(two.group_keys)
    assert torch.equal(one.label, two.label)
    assert torch.equal(one.order, two.order)
    assert torch.equal(torch.as_tensor(np.asarray(one.occurrence)), torch.as_tensor(two.occurrence))
    assert (one.logits is None) == (two.logits is None)
    if one.logits is not None:
        assert bits(one.logits) == bits(two.logits)
    assert one.extra.keys() == two.extra.keys()
    for name, x in one.extra.items():
        assert x.dtype == two.extra[name].dtype
        assert bits(x) == bits(two.extra[name])


@pytest.mark.truth("the bits that were written")
@pytest.mark.parametrize("dtype", sorted(PAYLOADS))
def test_every_bit_comes_back(tmp_path, dtype):
    word = WORDS.get(dtype, torch.int16)
    odd = torch.tensor(PAYLOADS[dtype], dtype=word).view(getattr(torch, dtype))
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).to(odd.dtype)
    x[7] = odd
    source = Stream.of(x, label=[i % 3 - 1 for i in range(40)], group=[i // 4 for i in range(40)])
    store = Store(write_store(source, tmp_path / "a", unit_size=16))
    assert_same_batches(source, store, [(0, 16), (16, 32), (32, 40)])
    assert store.schema == source.schema
    assert store.identity() == source.identity()
    assert store.grouped
    assert list(store.group_keys) == list(source.group_keys)
    assert store.verify() == []


def live(n=70, sites=("0", "2", "4")):
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(3))
    return read(mlp(), list(x), sites=list(sites), logits=True)


@pytest.mark.truth("the live stream")
def test_a_live_stream_comes_back(tmp_path):
    source = live()
    store = Store(write_store(source, tmp_path / "a", unit_size=32))
    assert_same_batches(source, store, [(0, 32), (32, 64), (64, 70)])


@pytest.mark.truth("a fit on the live stream")
def test_a_fit_cannot_tell_which(tmp_path):
    source = live(sites=("0", "2"))
    instruments = [Mahalanobis(), UpdateSize(), ParticipationRatio()]
    store = Store(write_store(source, tmp_path / "a", unit_size=32))
    ids = [
        fit(instruments, s, unit_size=32, **QUIET).save(tmp_path / f"{i}.sonde")
        for i, s in enumerate((source, store))
    ]
    assert ids[0] == ids[1]


@pytest.mark.parametrize("after", [1, 3])
def test_an_interrupted_write_goes_on(tmp_path, monkeypatch, after):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    source = stream(300)
    whole = write_store(source, tmp_path / "whole", unit_size=50)
    stopping = Stopping(source, after + 1)  # the first example is asked for once
    with pytest.raises(KeyboardInterrupt):
        write_store(stopping, tmp_path / "a", unit_size=50)
    with pytest.raises(StoreError, match=rf"is not complete: {6 - after} of 6 ranges"):
        Store(tmp_path / "a")
    assert describe_store(tmp_path / "a")["ranges_written"] == f"{after} of 6"
    resumed = Stopping(source)
    write_store(resumed, tmp_path / "a", unit_size=50)
    assert len(resumed.asked) == 1 + 6 - after
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file()
    )
    assert all((whole / f).read_bytes() == (tmp_path / "a" / f).read_bytes() for f in files)


def test_rows_of_another_plan_stay_until_fresh(tmp_path):
    place = write_store(stream(100), tmp_path / "a")
    with pytest.raises(StoreError, match=r"another model, data or reading.*--fresh"):
        write_store(stream(100, seed=1), place)
    write_store(stream(100, seed=1), place, fresh=True)
    assert bits(next(iter(Store(place))).rows["x"]) == bits(rows(100, seed=1))


def test_records_of_another_plan_never_count(tmp_path):
    place = write_store(stream(100), tmp_path / "a")
    (place / "store.json").unlink()
    write_store(stream(100, seed=1), place)
    assert bits(next(iter(Store(place))).rows["x"]) == bits(rows(100, seed=1))


def test_a_folder_that_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "ranges").mkdir()
    (tmp_path / "ranges" / "mine.json").write_text("{}")
    with pytest.raises(InputError, match=r"it holds other files \(ranges\)"):
        write_store(stream(50), tmp_path, fresh=True)
    assert [p.name for p in tmp_path.rglob("*")] == ["ranges", "mine.json"]


def test_a_truncated_file_is_named(tmp_path):
    place = write_store(stream(100), tmp_path / "a")
    path = (
        next((place / "rows" / "pooled").glob("*.arrow"))
        if (place / "rows" / "pooled").exists()
        else sorted((place / "rows").rglob("*.arrow"))[-1]
    )
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(StoreError, match=r"arrow does not have the \d+ bytes that were committed"):
        next(iter(Store(place)))
    assert len(Store(place).verify()) == 1


LOSSES = {
    "rows/pooled missing": ("rows/pooled/1-2.arrow", None),
    "rows/examples missing": ("rows/examples/1-2.arrow", None),
    "rows truncated": ("rows/pooled/1-2.arrow", 100),
    "record truncated": ("ranges/1-2.json", 50),
    "record empty": ("ranges/1-2.json", 0),
    "record missing": ("ranges/1-2.json", None),
}


def lose(path, kept):
    if kept is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:kept])


@pytest.mark.truth("the store before the loss")
@pytest.mark.parametrize("loss", LOSSES)
def test_the_same_call_writes_what_is_lost_again(tmp_path, monkeypatch, loss):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    place = write_store(stream(90), tmp_path / "a", unit_size=30)
    before = {p: p.read_bytes() for p in place.rglob("*") if p.is_file()}
    name, kept = LOSSES[loss]
    lose(place / name, kept)
    with pytest.raises(StoreError, match=r"Run the command that wr[a-z]+ (it|this store) again"):
        Store(place).check_files()
    again = Stopping(stream(90))
    write_store(again, place, unit_size=30)
    assert again.asked[1:] == [(30, 60)]  # the first example is asked for once
    assert {p: p.read_bytes() for p in place.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("table", ["examples", "rows"])
def test_a_flipped_byte_is_found_and_never_ends_in_another_error(tmp_path, table):
    place = write_store(stream(60), tmp_path / "a")
    paths = sorted((place / "rows").rglob("*.arrow"))
    path = next(p for p in paths if (p.parent.name == "examples") == (table == "examples"))
    content = path.read_bytes()
    store = Store(place)
    for at in range(0, len(content), 97):
        path.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        assert len(store.verify()) == 1
        try:
            for batch in store.batches(0, 60):
                assert len(batch) == 60
        except StoreError:
            continue


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(format="other"), "expected a store of version 1"),
        (lambda m: m.update(version=2), "expected a store of version 1"),
        (lambda m: m.update(bounds=[0, 50, 40]), "units are not in order"),
        (lambda m: m.update(bounds=[0, 10**12]), "do not agree"),
        (lambda m: m.update(level=-1), "do not agree"),
        (lambda m: m.update(level=1e999), "damaged"),
        (lambda m: m.update(files={"groups.arrow": "00"}), "differ from those that were committed"),
        (lambda m: m.update(files=3), "damaged"),
        (lambda m: m.update(unit_size=0), "below 1"),
        (lambda m: m.update(n_sites=-1), "-1 further stores"),
        (lambda m: m.update(n_data=10**9), "further stores"),
        (lambda m: m.update(identity=7), "damaged"),
        (lambda m: m.update(tables={"../../up": _table(m)}), "table name '../../up'"),
        (lambda m: m.update(tables={"/etc": _table(m)}), "table name '/etc'"),
        (lambda m: m.update(tables={"examples": _table(m)}), "tables without sites"),
        (lambda m: m.update(tables={}), "named twice, or none"),
        (lambda m: m.update(tables={"a": _table(m), "b": _table(m)}), "named twice"),
        (lambda m: _table(m)[0].update(column="../x"), "table name '../x'"),
        (lambda m: _table(m)[0].update(dim=10**12), "width 1000000000000"),
        (lambda m: _table(m)[0].update(dim=0), "width 0"),
        (lambda m: _table(m)[0].update(dim=1e999), "damaged"),
        (lambda m: _table(m)[0].update(dtype="object"), "type 'object'"),
        (lambda m: _table(m)[0].update(site="a:b:c:d"), "damaged"),
        (lambda m: _table(m)[0].update(reducer="all"), "damaged"),
        (lambda m: m.update(tables={"a": [3]}), "damaged"),
        (lambda m: m.pop("plan"), "damaged"),
    ],
)
def test_hostile_manifests_are_refused(tmp_path, change, message):
    place = write_store(stream(60), tmp_path / "a")
    manifest = json.loads((place / "store.json").read_text())
    change(manifest)
    (place / "store.json").write_text(json.dumps(manifest))
    with pytest.raises(StoreError, match=message):
        Store(place)


def _table(manifest):
    return next(iter(manifest["tables"].values()))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, "\xff", '{"a": NaN'])
def test_what_is_no_manifest_is_refused(tmp_path, text):
    (tmp_path / "store.json").write_text(text, encoding="latin-1")
    with pytest.raises(StoreError, match=r"store\.json|expected a store"):
        Store(tmp_path)


def test_no_store_is_named(tmp_path):
    with pytest.raises(StoreError, match="expected a JSON file at"):
        Store(tmp_path / "none")


@pytest.mark.parametrize(
    "change",
    [
        {"batches": None},
        {"batches": [1, 2]},
        {"batches": ["1"]},
        {"batches": [-1]},
        {"batches": [7]},
        {"files": {}},
        {"plan": "another"},
    ],
)
def test_hostile_records_are_refused(tmp_path, change):
    place = write_store(stream(60), tmp_path / "a")
    record = next((place / "ranges").glob("*.json"))
    record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    with pytest.raises(StoreError):
        list(Store(place))


def test_a_row_that_points_at_no_example_is_refused(tmp_path):
    place = write_store(stream(60), tmp_path / "a")
    path = next(p for p in (place / "rows").rglob("*.arrow") if p.parent.name != "examples")
    table = pa.ipc.open_file(path).read_all()
    at = table.schema.get_field_index("index")
    wrong = pa.array([10**6] * 60, pa.int32())
    table = table.set_column(at, table.schema.field(at), wrong)
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    record = next((place / "ranges").glob("*.json"))
    raw = json.loads(record.read_text())
    raw["files"][path.parent.name]["size_bytes"] = path.stat().st_size
    record.write_text(json.dumps(raw))
    with pytest.raises(StoreError, match="refers to an example that does not exist"):
        list(Store(place))


@pytest.mark.truth("pyarrow reads the files")
def test_files_open_without_sonde(tmp_path):
    place = write_store(stream(60), tmp_path / "a")
    path = next(p for p in (place / "rows").rglob("*.arrow") if p.parent.name != "examples")
    table = pa.ipc.open_file(path).read_all()
    found = np.stack(table["s000"].combine_chunks().to_numpy(zero_copy_only=False))
    np.testing.assert_array_equal(found, rows(60).numpy())
    assert table.schema.field("s000").metadata[b"sonde.site"] == b"x"


def test_units_of_another_size_are_refused(tmp_path):
    store = Store(write_store(stream(100), tmp_path / "a", unit_size=50))
    with pytest.raises(InputError, match="expected the unit size of the store"):
        fit(KNN(), store, unit_size=30, **QUIET)


def test_types_that_cannot_be_stored_are_named(tmp_path):
    x = torch.zeros(4, 2).to(torch.float8_e4m3fn)
    with pytest.raises(StoreError, match="rows of type float8_e4m3fn cannot be stored"):
        write_store(Stream.of(x), tmp_path / "a")
