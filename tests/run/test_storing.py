"""Rows written by processes beside this one: the files are those of one process."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from benchmarks.child import STEADY

from cli_case import run_words
from ray_case import source
from run_case import rows
from sonde.core.errors import InputError
from sonde.core.stream import Stream
from sonde.run.passes.crew import Crew
from sonde.run.passes.storing import StoreJob, filled_by
from sonde.store import append_store, verify_store, write_store
from sonde.store.writing import StoreWriter

pytestmark = pytest.mark.slow

DIGITS, MORE = ("sonde:digits", "sonde:digits/test"), ("sonde:digits", "sonde:digits/train")
GROWING = {
    "first": (*DIGITS, "--sites", "vit.layers.0", "--columns", "label", "--unit-size", "16"),
    "append": (*MORE, "--sites", "vit.layers.0", "--columns", "label", "--append"),
    "sites": (*DIGITS, "--sites", "vit.layers.0", "vit.layers.2", "--add-sites"),
}


def contents(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


@pytest.fixture
def small_files(monkeypatch):
    """Ranges of one or two units, so that there is something to hand out."""
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 20_000)


@pytest.mark.truth("the files of one process")
def test_a_store_grows_by_workers_into_the_same_files(tmp_path, small_files):
    for name, words in GROWING.items():
        for folder, workers in (("alone", 0), ("apart", 2 if name == "first" else 1)):
            ran = run_words(
                "read", *words, "--limit", "64", "--further", "patches", "--keep", "1/4",
                "--threads", "1", "--workers", workers, "-o", tmp_path / folder, "--quiet",
            )  # fmt: skip
            assert ran.code == 0, ran.err
        assert contents(tmp_path / "apart") == contents(tmp_path / "alone"), name
    names = list(contents(tmp_path / "alone"))
    for folder in ("", "data/1/", "sites/1/"):
        assert sum(name.startswith(f"{folder}ranges/") for name in names) > 1
    assert verify_store(tmp_path / "apart").is_sound


@pytest.mark.truth("the files of one process")
def test_equal_examples_count_on_in_workers(tmp_path, small_files):
    x, ids = rows(600), [str(k % 150) for k in range(600)]
    for name, crew in (("alone", Crew()), ("apart", Crew(2))):
        first, second = Stream.of(x[:400], ids=ids[:400]), Stream.of(x[400:], ids=ids[400:])
        place = write_store(first, tmp_path / name, unit_size=32, fill=filled_by(crew, 1))
        append_store(second, place, fill=filled_by(crew, 1))
    assert contents(tmp_path / "apart") == contents(tmp_path / "alone")


def test_what_workers_have_written_is_not_written_again(tmp_path, small_files):
    done: list[int] = []
    for _ in range(2):
        how = {"unit_size": 16, "tick": done.append, "fill": filled_by(Crew(1))}
        write_store(source(), tmp_path / "a", **how)
    assert sum(done) == 2 * len(source())
    assert done[0] == 0
    assert done[-1] == len(source())


def test_a_worker_that_does_not_see_the_folder_is_refused(tmp_path):
    writer = StoreWriter(source(), tmp_path, 16)
    with pytest.raises(InputError, match=r"a worker cannot see .*machines share"):
        StoreJob(writer.stream, 1, writer, "shared.tmp-nowhere").begin()


# Hashing is slowed down, so that rows wait for it as they do on a busy machine.
CHILD = """
import json, sys, time, torch, zlib
from pathlib import Path
from benchmarks.child import added_peak
from dataclasses import replace
from sonde.engine.derived import DerivedStream
from sonde.core.stream import Stream
from sonde.store.writing import StoreWriter
torch.set_num_threads(1)
crc32 = zlib.crc32
def late(view, before):
    time.sleep(len(view) * 6e-9)
    return crc32(view, before)
zlib.crc32 = late
folder = Path(sys.argv[2])
class Made(DerivedStream):
    seed = 0
    def __init__(self, inner):
        self.inner = inner
    def units(self, unit_size):
        return list(range(0, 8193, unit_size))
    def changed(self, batch):
        return replace(batch, rows={k: x.repeat(1, 8_192) for k, x in batch.rows.items()})
    @property
    def schema(self):
        return tuple(replace(s, dim=16_384) for s in self.inner.schema)
stream = Made(Stream.of(torch.ones(8192, 2)))
StoreWriter(Stream.of(torch.ones(8, 4)), folder / "warm", 4).start()
writer = StoreWriter(stream, folder / "a", int(sys.argv[1]))
writer.start()
taken = added_peak(lambda: writer.write(writer.manifest.ranges()))
print(json.dumps([taken * 2**20, writer.held_bytes(writer.largest_unit)]))
"""


@pytest.mark.truth("the largest resident size of a process that writes")
@pytest.mark.parametrize("unit_size", [16, 512])
def test_rows_on_their_way_take_no_more_than_was_said(unit_size, tmp_path):
    words = [sys.executable, "-c", CHILD, str(unit_size), str(tmp_path)]
    done = subprocess.run(
        words, capture_output=True, text=True, check=True, env=os.environ | STEADY
    )
    shutil.rmtree(tmp_path / "a")
    taken, said = json.loads(done.stdout.splitlines()[-1])
    assert taken <= 1.05 * said


def test_rows_that_do_not_fit_are_refused_before_the_start(tmp_path):
    words = ["read", *DIGITS, "--limit", "64", "-o", tmp_path / "acts"]
    line = run_words(*words, "--memory", "80MB").error()
    assert "rows that wait to be written and forward passes need about" in line
    assert "(batches of 64 examples, 0 KiB for a forward pass), but 76 MiB are" in line
    assert not (tmp_path / "acts").exists()
    assert run_words(*words, "--memory", "200MB", "--quiet").code == 0
