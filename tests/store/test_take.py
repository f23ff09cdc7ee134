"""Rows by number, and who they are."""

import pickle
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from run_case import rows, stream
from sonde.core.errors import InputError, SiteError, StoreError
from sonde.core.stream import Stream
from sonde.store import Store, append_store, write_store
from sonde.store._mapped import MappedFile


@pytest.mark.truth("indexing of the whole array")
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_rows_are_those_of_the_whole(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 2000)
    x = rows(500, 5).to(getattr(torch, dtype))
    y = rows(500, 3, 1).to(getattr(torch, dtype))
    store = Store(write_store(Stream.of({"x": x, "y": y}), tmp_path / "a", unit_size=20))
    assert len(list((tmp_path / "a" / "rows" / "examples").glob("*.arrow"))) > 3
    wanted = np.random.default_rng(0).integers(0, 500, 200)
    for key, whole in (("x", x), ("y", y)):
        found = store.take(wanted, key)
        assert found.dtype == whole.dtype
        assert torch.equal(found, whole[torch.as_tensor(wanted)])
    assert torch.equal(store.take([7]), x[7:8])
    assert store.take([]).shape == (0, 5)
    assert store.n_rows() == 500


@pytest.mark.truth("the ids of the stream")
def test_rows_say_who_they_are(tmp_path):
    source = Stream.of(rows(100), ids=[f"{i % 90}" for i in range(100)])
    store = Store(write_store(source, tmp_path / "a", unit_size=30))
    batches = list(source)
    keys = torch.cat([b.column("ids", "x") for b in batches]).numpy()
    found = store.who([3, 95, 5])
    assert [w[0] for w in found] == [keys[i].tobytes().hex() for i in (3, 95, 5)]
    assert [w[1] for w in found] == [0, 1, 0]
    assert found[1][0] == found[2][0]


@pytest.mark.truth("indexing of the whole array")
def test_threads_take_the_rows_that_one_takes(tmp_path, monkeypatch):
    x = rows(300, 5)
    store = Store(write_store(Stream.of(x), tmp_path / "a", unit_size=20))
    found = MappedFile.start

    def slow(*arguments):
        time.sleep(0.002)  # while one thread looks where batches begin, the others ask
        return found(*arguments)

    monkeypatch.setattr(MappedFile, "start", slow)
    assert store.n_rows() == 300
    begin = threading.Barrier(4)

    def take(k):
        begin.wait()
        time.sleep(0.005 * k)
        return store.take(range(300))

    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(y, x) for y in threads.map(take, range(4)))


@pytest.mark.slow
@pytest.mark.truth("the rows that one thread reads")
def test_threads_read_the_batches_that_one_reads(tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    monkeypatch.setattr("sonde.store.reading.FILES_OPEN", 2)
    x = rows(120, 5)
    store = Store(write_store(Stream.of(x), tmp_path / "a", unit_size=10))
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # threads often change while a file is looked up

    def read(k):
        found = torch.cat([batch.rows["x"] for batch in store])
        return torch.equal(found, x) and torch.equal(store.take(range(k, 120)), x[k:])

    try:
        with ThreadPoolExecutor(4) as threads:
            assert all(threads.map(read, range(100)))
    finally:
        sys.setswitchinterval(before)


@pytest.mark.truth("indexing of the whole array")
def test_a_store_is_read_from_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    monkeypatch.chdir(tmp_path)
    x = rows(60, 5)
    store = Store(write_store(Stream.of(x), "a", unit_size=10))
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    write_store(Stream.of(x + 1), "a", unit_size=10)  # a store of other rows has the same name
    assert torch.equal(torch.cat([batch.rows["x"] for batch in store]), x)
    assert torch.equal(pickle.loads(pickle.dumps(store)).take(range(60)), x)


def test_a_store_that_was_written_anew_is_not_read_as_the_old_one(tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    place = write_store(stream(60), tmp_path / "a", unit_size=10)
    opened = Store(place), Store(place)
    opened[0].take([0, 5])
    batches = iter(opened[1])
    next(batches)
    write_store(stream(60, seed=1), place, unit_size=10, fresh=True)
    for read in (lambda: opened[0].take([55]), lambda: next(batches)):
        with pytest.raises(StoreError, match="of another plan than the store that was opened"):
            read()


@pytest.mark.truth("indexing of both arrays")
def test_rows_count_on_over_data_sets(tmp_path):
    place = write_store(stream(70), tmp_path / "a", unit_size=16)
    append_store(stream(40, seed=1), place)
    both = torch.cat([rows(70), rows(40, seed=1)])
    wanted = [109, 0, 69, 70, 70]
    assert torch.equal(Store(place).take(wanted), both[wanted])


@pytest.mark.parametrize("wrong", [[-1], [60], [0, 99], [0.5], ["a"], [[1, 2]]])
def test_rows_that_are_not_there_are_named(tmp_path, wrong):
    store = Store(write_store(stream(60), tmp_path / "a"))
    with pytest.raises(InputError, match=r"Store\.take: expected"):
        store.take(wrong)
    with pytest.raises(SiteError, match="no site 'z'"):
        store.take([0], "z")


def test_a_damaged_file_is_named(tmp_path):
    place = write_store(stream(60), tmp_path / "a")
    path = next((place / "rows" / "flat").glob("*.arrow")) if (place / "rows" / "flat").exists() \
        else next((place / "rows" / "pooled").glob("*.arrow"))  # fmt: skip
    content = path.read_bytes()
    at = len(content) - 200
    path.write_bytes(content[:at] + bytes(100) + content[at + 100 :])
    with pytest.raises(StoreError, match=path.name):
        Store(place).take([1])


def test_who_of_a_damaged_file_is_named_and_never_another_error(tmp_path):
    place = write_store(stream(40), tmp_path / "a")
    path = next((place / "rows" / "pooled").glob("*.arrow"))
    raw, refused = path.read_bytes(), list[str]()
    for at in range(0, len(raw), 37):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
        try:
            Store(place).who([0, 39])
        except StoreError as error:
            refused.append(str(error))
    assert len(refused) > 3
    assert all(path.name in said for said in refused)


def test_writing_into_a_tensor_changes_no_file(tmp_path):
    place = write_store(stream(60), tmp_path / "a")
    batch = next(iter(Store(place)))
    batch.rows["x"].zero_()
    assert torch.equal(next(iter(Store(place))).rows["x"], rows(60))
    assert Store(place).verify() == []


def test_a_loader_of_items_is_told_what_to_write(tmp_path):
    store = Store(write_store(stream(40), tmp_path / "a"))
    for each, written in (
        (store, r"DataLoader\(store.torch\(batch_size=64, shuffle=4096\), batch_size=None\)"),
        (stream(40), r"found = sonde.gather"),
    ):
        with pytest.raises(InputError, match=f"For a DataLoader write: {written}"):
            next(iter(torch.utils.data.DataLoader(each)))  # type: ignore[arg-type]
    batches = store.torch(batch_size=8, shuffle=16)
    assert len(list(torch.utils.data.DataLoader(batches, batch_size=None))) == 5
