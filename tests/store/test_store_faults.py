"""A store that is killed, that two processes write, or that finds the disk full."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from file_limit import files_up_to
from run_case import rows, stream
from sonde.core.errors import StoreError
from sonde.core.stream import Stream
from sonde.files.durable import TEMPORARY
from sonde.store import Store, append_store, verify_store, write_store
from sonde.store.writing import Background

TESTS = Path(__file__).parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
pytestmark = pytest.mark.slow

PROGRAM = """
import os, sys
import pyarrow
import sonde.store._planned as _planned
from run_case import stream
from sonde.store import append_store, write_store

_planned.FILE_BYTES = 1
place = sys.argv[1]

def in_child(work, fault):
    pid = os.fork()
    if pid == 0:
        os.environ["SONDE_FAULT"] = str(fault)
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

first, second = stream(120), stream(90, seed=1)
for _ in (first, second):
    list(_)[0].keys[0]
pyarrow.array([0])  # imports pandas: once, not in every child
def both():
    write_store(first, place, unit_size=50)
    append_store(second, place)
n = 1
while in_child(both, n) == 137:
    n += 1
print(n)
"""


def content(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_every_file_primitive_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    whole = write_store(stream(120), tmp_path / "whole", unit_size=50)
    append_store(stream(90, seed=1), whole)
    done = subprocess.run(
        [sys.executable, "-B", "-c", PROGRAM, tmp_path / "a"],
        cwd=TESTS, capture_output=True, text=True, check=False, env=ENV,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) > 21
    found = verify_store(tmp_path / "a")
    assert found.is_sound, found.faults
    mine = {n: c for n, c in content(tmp_path / "a").items() if not n.match(f"lock{TEMPORARY}*")}
    assert mine == content(whole)


@pytest.mark.truth("RLIMIT_FSIZE of the operating system")
def test_a_full_disk_is_named_and_leaves_nothing_half(tmp_path):
    said = "could not write .* Free some space"
    with pytest.raises(StoreError, match=said), files_up_to(4000):
        write_store(stream(300, 40), tmp_path / "a", unit_size=50)
    assert not [p for p in (tmp_path / "a").rglob("*") if ".tmp-" in p.name or p.name == "lock"]
    write_store(stream(300, 40), tmp_path / "b", unit_size=50)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_store_that_another_process_writes_is_left_alone(tmp_path):
    program = (
        "import sys, time\nfrom sonde.files.lock import RunLock\n"
        "with RunLock(sys.argv[1]):\n    print('held', flush=True)\n    input()\n"
    )
    place = write_store(stream(60), tmp_path / "a")
    with subprocess.Popen(
        [sys.executable, "-c", program, str(place)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENV,
    ) as other:  # fmt: skip
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        for write in (write_store, append_store):
            with pytest.raises(StoreError, match=f"in use by process {other.pid}"):
                write(stream(60), place)
        assert len(Store(place)) == 60  # readers are not kept out
        for record in (place / "ranges").glob("*.json"):
            record.unlink()
        with pytest.raises(StoreError, match=f"Process {other.pid} on .* is writing it: wait"):
            Store(place)
        other.stdin.write("\n")
    with pytest.raises(StoreError, match="Run the command that wrote this store again"):
        Store(place)


def test_a_store_of_a_later_version_says_so(tmp_path):
    from sonde.store.layout import read_json, sealed

    path = write_store(stream(60), tmp_path / "a") / "store.json"
    path.write_bytes(sealed({**read_json(path), "version": 2}))
    with pytest.raises(StoreError, match=r"got 'sonde-store' version 2. A later sonde wrote it"):
        Store(tmp_path / "a")


def test_batches_that_differ_in_their_columns_are_refused(tmp_path):
    class Odd(Stream):
        @property
        def schema(self):
            return stream(90).schema

        @property
        def group_keys(self):
            return stream(90).group_keys

        @property
        def grouped(self):
            return False

        def identity(self):
            return {}

        def batches(self, start, stop):
            n = stop - start
            kind: dict[str, Any] = {"label": [0] * n} if start < 50 else {"pair": range(n)}
            (batch,) = Stream.of(rows(90)[start:stop], **kind).batches(0, stop - start)
            batch.order.add_(start)
            yield batch

    with pytest.raises(StoreError, match="differ in their columns"):
        write_store(Odd(), tmp_path / "a", unit_size=50)
    assert not list((tmp_path / "a").rglob("*.arrow"))[1:]
    assert not [p for p in (tmp_path / "a").rglob("*") if ".tmp-" in p.name]


def test_what_waits_is_bounded():
    sizes: list[int] = []
    waiting, most = [0], 10
    held = threading.Event()

    def work(size: int) -> None:
        held.wait(5)
        waiting[0] -= size

    with Background(work, most) as background:

        def fill() -> None:
            for size in (4, 4, 4, 4):
                background.put(size, size)
                waiting[0] += size
                sizes.append(waiting[0])

        thread = threading.Thread(target=fill)
        thread.start()
        time.sleep(0.2)
        assert max(sizes) <= most
        held.set()
        thread.join()
    assert waiting == [0]


def test_an_error_of_the_work_reaches_the_caller():
    def work(item: int) -> None:
        if item == 2:
            raise StoreError("no space")

    def fill() -> None:
        with Background(work, 1) as background:
            for i in range(100):
                background.put(i, 1)

    with pytest.raises(StoreError, match="no space"):
        fill()


def test_the_types_of_columns_come_back(tmp_path):
    source = Stream.of(rows(30), logits=rows(30, 3), perturbed_logits=rows(30, 3, 1).bfloat16())
    store = Store(write_store(source, tmp_path / "a"))
    (one,), (two,) = list(source), list(store)
    assert one.extra.keys() == two.extra.keys()
    for name, x in one.extra.items():
        assert x.dtype == two.extra[name].dtype
        assert torch.equal(x, two.extra[name])
