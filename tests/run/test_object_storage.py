"""Stores, runs and outputs in a bucket: the bytes of local files, under planned faults."""

import io
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import object_storage
from cli_case import run_words
from kill_case import attempt, fit
from ledger_case import case
from object_storage import BUCKET, SECRET
from run_case import Stopping, rows
from sonde.core.errors import InputError, StoreError
from sonde.core.stream import Stream
from sonde.data.opening import open_source
from sonde.files import durable, services
from sonde.files.lock import RunLock
from sonde.files.places import to_path
from sonde.store import Store, write_store

pytestmark = pytest.mark.slow


@contextmanager
def proxied_server(name: str) -> Iterator[object_storage.Proxy]:
    object_storage.require_packages()
    with (
        object_storage.s3_server(name) as server,
        object_storage.proxied(server) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for variable, value in object_storage.settings(proxy.address).items():
            patch.setenv(variable, value)
        patch.setattr(services, "MAX_RETRIES", 4)
        services.service_of.cache_clear()
        yield proxy
    services.service_of.cache_clear()


@pytest.fixture(scope="module", params=["moto", "seaweedfs", "azurite"])
def proxy(request):
    with proxied_server(request.param) as proxy:
        yield proxy


@pytest.fixture
def bucket(proxy, request):
    proxy.reset()
    name = request.node.name.translate(str.maketrans("[]", "__"))  # brackets are a pattern
    server = request.node.callspec.params["proxy"]
    yield to_path(f"{object_storage.scheme_of(server)}://{BUCKET}/{name}")
    proxy.reset()


def contents(folder: Path) -> dict[str, bytes]:
    found = [p for p in folder.rglob("*") if p.is_file()]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in found}


def test_a_store_has_the_bytes_of_a_local_one(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 20_000)
    stream = Stream.of({"x": rows(2000, 16), "y": rows(2000, 3, 1)})
    here, there = (write_store(stream, p, unit_size=50) for p in (tmp_path / "a", bucket / "a"))
    assert contents(here) == contents(there)
    assert len(contents(here)) > 8
    for a, b in zip(Store(here).batches(0, 2000), Store(there).batches(0, 2000), strict=True):
        assert all(torch.equal(a.rows[k], b.rows[k]) for k in a.rows)


@pytest.mark.truth("indexing of the whole array")
def test_rows_by_number_are_read_by_ranges(bucket, proxy, monkeypatch):
    """At most twice the bytes that were asked for, with the order of the rows."""
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 4 * 2**20)
    x = rows(10_000, 1024)
    store = Store(write_store(Stream.of(x), bucket / "a", unit_size=1000))
    wanted = np.random.default_rng(0).choice(10_000, 300, replace=False)
    proxy.reset()
    assert torch.equal(store.take(wanted), x[torch.as_tensor(wanted)])
    asked = 300 * 1024 * 4
    assert asked <= proxy.n_bytes_sent <= 2 * asked
    assert store.who([17])[0][1:] == (0, 0)


@pytest.mark.parametrize("proxy", ["moto"], indirect=True)  # a minute of model runs
def test_commands_write_into_a_bucket_what_they_write_here(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = "".join(f'{{"text": "a line of {i}"}}\n' for i in range(40))
    Path("t.jsonl").write_text(table)
    durable.atomic_write(bucket / "t.jsonl", table.encode())
    for home in (".", str(bucket)):
        for words in (
            f"read sonde:stdlib {home}/t.jsonl -o {home}/acts --sites blocks",
            f"fit knn(k=3) {home}/acts -o {home}/p.sonde",
            f"score {home}/p.sonde sonde:stdlib {home}/t.jsonl -o {home}/s.csv",
            f"verify {home}/acts",
            f"scan {home}/acts -o {home}/r.html",
        )[: 3 if home == "." else 5]:
            ran = run_words(*words.split())
            assert ran.code == 0, ran.err
            assert SECRET not in ran.out + ran.err
    for name in ("p.sonde", "s.csv"):
        assert Path(name).read_bytes() == (bucket / name).read_bytes(), name
    assert (bucket / "r.html").read_bytes()[:15] == b"<!doctype html>"
    assert not Path("s3:").exists()
    refused = run_words(*f"compress sonde:digits no.csv --to 4bit -o {bucket}/model".split())
    assert refused.code == 2
    assert "expected a path on this machine" in refused.err


@pytest.mark.parametrize("n", [4, 20, 60])
def test_a_killed_run_goes_on_to_the_same_bytes(bucket, tmp_path, n):
    job = case(0)
    fit(tmp_path, job)
    assert attempt(bucket, job, n, random.Random(n))
    fit(bucket, job, random.Random(-n))
    assert contents(bucket) == contents(tmp_path)


KILLED = """
import sys, torch
from run_case import rows
from sonde.core.stream import Stream
from sonde.store import write_store
write_store(Stream.of(rows(400, 8)), sys.argv[1], unit_size=50)
"""


@pytest.mark.parametrize("n", [6, 14])
def test_a_killed_process_leaves_a_lock_that_the_next_one_takes(bucket, tmp_path, n):
    tests = Path(__file__).parent.parent
    told = {**os.environ, "SONDE_FAULT": str(n)}
    command = [sys.executable, "-c", KILLED, str(bucket / "a")]
    done = subprocess.run(command, cwd=tests, env=told, check=False, capture_output=True)
    assert done.returncode == 137, done.stderr
    assert (bucket / "a" / "lock").exists()
    stream = Stream.of(rows(400, 8))
    write_store(stream, bucket / "a", unit_size=50)
    assert contents(bucket / "a") == contents(write_store(stream, tmp_path / "a", unit_size=50))


def test_of_two_runs_at_one_place_the_second_is_told(bucket):
    with RunLock(bucket / "a"), pytest.raises(StoreError, match="is in use by process"):
        write_store(Stream.of(rows(10)), bucket / "a")
    assert not list((bucket / "a").iterdir())


def test_of_two_writers_of_one_object_the_first_wins(bucket):
    durable.atomic_write(bucket / "x", b"first", once=True)
    durable.atomic_write(bucket / "x", b"first", once=True)
    with pytest.raises(StoreError, match="another writer committed other bytes"):
        durable.atomic_write(bucket / "x", b"other", once=True)
    assert (bucket / "x").read_bytes() == b"first"


@pytest.mark.parametrize("proxy", ["moto", "seaweedfs"], indirect=True)  # Azure signs the condition
def test_a_service_without_conditional_writes_is_refused_at_the_start(bucket, proxy):
    proxy.reset(lambda method, path, n: "strip")
    with pytest.raises(StoreError, match=r"conditional write \(If-None-Match\)"):
        write_store(Stream.of(rows(10)), bucket / "a")
    proxy.reset()
    assert not list(bucket.rglob("*"))


def test_a_server_that_overwrites_in_spite_of_the_condition_is_refused():
    """The server of rclone has no conditional writes, without any proxy's help."""
    with proxied_server("rclone"):
        place = to_path(f"s3://{BUCKET}/a")
        with pytest.raises(StoreError, match=r"conditional write \(If-None-Match\)"):
            write_store(Stream.of(rows(10)), place)
        assert not list(place.rglob("*"))


@pytest.mark.parametrize("fault", ["503", "cut", 0.4])
def test_faults_that_pass_are_not_seen(bucket, proxy, tmp_path, fault):
    proxy.reset(lambda method, path, n: fault if n % 4 == 1 else None)
    stream = Stream.of(rows(200, 8))
    there = write_store(stream, bucket / "a", unit_size=50)
    assert contents(there) == contents(write_store(stream, tmp_path / "a", unit_size=50))
    assert len(proxy.requests) > 20


def test_a_fault_that_stays_is_one_line_and_keeps_what_was_committed(
    bucket, proxy, tmp_path, monkeypatch
):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1000)
    stream = Stream.of(rows(400, 8))
    there = bucket / "a"
    is_put = []

    def down(method, path, n):
        is_put.append(method == "PUT")
        return "503" if sum(is_put) > 12 else None

    proxy.reset(down)
    with pytest.raises(StoreError, match=r"503.*SlowDown.*What was committed is kept") as caught:
        write_store(stream, there, unit_size=50)
    assert SECRET not in str(caught.value)
    assert "\n" not in str(caught.value)
    proxy.reset()
    done = {p.name: p.read_bytes() for p in (there / "ranges").iterdir()}
    assert done
    (there / "lock").unlink()  # it could not be removed
    proxy.reset()
    write_store(stream, there, unit_size=50)
    again = [path for method, path in proxy.requests if method == "PUT"]
    assert not any(name in path for name in done for path in again)
    assert contents(there) == contents(write_store(stream, tmp_path / "a", unit_size=50))


def test_an_interrupted_store_goes_on(bucket, tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1000)
    stream = Stream.of(rows(400, 8))
    with pytest.raises(KeyboardInterrupt):
        write_store(Stopping(stream, 4), bucket / "a", unit_size=50)
    assert 0 < len(list((bucket / "a" / "ranges").iterdir())) < 8
    with pytest.raises(StoreError, match="is not complete"):
        Store(bucket / "a")
    write_store(stream, bucket / "a", unit_size=50)
    assert contents(bucket / "a") == contents(write_store(stream, tmp_path / "a", unit_size=50))


def test_data_are_read_where_they_lie_or_from_a_copy(bucket, proxy, tmp_path, monkeypatch):
    """A table by ranges, also from a web server; arrays and folders from a copy that is kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    table = "".join(f'{{"text": "line {i}", "label": {i % 2}}}\n' for i in range(30))
    durable.atomic_write(bucket / "t.jsonl", table.encode())
    packed = io.BytesIO()
    np.savez(packed, x=np.arange(12.0).reshape(4, 3))
    durable.atomic_write(bucket / "arrays.npz", packed.getvalue())
    columns = pa.table({"text": [f"line {i}" for i in range(30)]})
    file = io.BytesIO()
    pq.write_table(columns, file)
    durable.atomic_write(bucket / "t.parquet", file.getvalue())
    import obstore

    stores = {"s3": obstore.store.S3Store, "az": obstore.store.AzureStore}
    bare = stores[bucket.scheme](BUCKET, client_options={"allow_http": True})
    web = obstore.sign(bare, "GET", (bucket / "t.jsonl").key, timedelta(minutes=5))
    assert "?" in web
    assert "?" not in str(to_path(web))
    for address in (bucket / "t.jsonl", bucket / "t.parquet", web):
        source, _ = open_source(str(address))
        assert [row["text"] for row in source.rows()] == [f"line {i}" for i in range(30)]
        assert source.take(7, 9)[1]["text"] == "line 8"
    durable.atomic_write(bucket / "parts" / "1.jsonl", b'{"text": "a"}\n')
    durable.atomic_write(bucket / "parts" / "2.jsonl", b'{"text": "b"}\n')
    listed = [str(bucket / "parts" / name) for name in ("1.jsonl", "2.jsonl")]
    for k in (1, 2):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            info = tarfile.TarInfo("row.txt")
            info.size = 1
            tar.addfile(info, io.BytesIO(b"ab"[k - 1 : k]))
        durable.atomic_write(bucket / "tars" / f"{k}.tar", file.getvalue())
        table = io.BytesIO()
        pq.write_table(pa.table({"text": ["ab"[k - 1]]}), table)
        durable.atomic_write(bucket / "tables" / f"{k}.parquet", table.getvalue())
    folders = [str(bucket / name) for name in ("parts", "tars", "tables")]
    numbered = str(bucket / "tars" / "{1..2}.tar")
    for several in (*folders, str(bucket / "parts" / "*.jsonl"), listed, numbered):
        source, _ = open_source(several)
        assert [row["text"] for row in source.rows()] == ["a", "b"]
        assert source.take(1, 2)[0]["text"] == "b"
    assert not (tmp_path / "cache").exists()
    for _ in range(2):
        source, _ = open_source(str(bucket / "arrays.npz"))
        assert len(list(source.rows())) == 4
    assert len(list((tmp_path / "cache" / "sonde" / "places").iterdir())) == 1
    with pytest.raises(InputError, match="there is no object"):
        open_source(str(bucket / "none.jsonl"))
