"""Bytes of a store that changed under the same names and sizes: no command takes them for rows."""

import json
import zlib
from typing import Any

import pytest

import sonde
from run_case import stream
from sonde.core.errors import StoreError
from sonde.detect import KNN
from sonde.run.scoring.opening import open_for
from sonde.store import Store, write_store
from sonde.store.exporting import export_store
from sonde.store.layout import sealed

QUIET: dict[str, Any] = {"progress": False}


@pytest.fixture
def place(tmp_path):
    return write_store(stream(90), tmp_path / "acts", unit_size=30)


def flip(path):
    """Flip the bit that makes the smallest change, in the middle of what the rows take."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.truth("zlib")
def test_every_file_has_its_checksum(place):
    for record in (place / "ranges").glob("*.json"):
        for table, said in json.loads(record.read_text())["files"].items():
            path = place / "rows" / table / f"{record.stem}.arrow"
            assert said["crc32"] == zlib.crc32(path.read_bytes())


def test_a_fit_refuses_the_unit_and_reading_alone_does_not_look(place):
    for path in sorted((place / "rows").rglob("*.arrow")):
        content = path.read_bytes()
        flip(path)
        with pytest.raises(StoreError, match=rf"{path} has other bytes .*verify --repair"):
            sonde.fit([KNN(k=3)], sonde.read(place), **QUIET)
        path.write_bytes(content)
    flip(next((place / "rows" / "pooled").glob("*.arrow")))
    assert sum(len(batch) for batch in Store(place).batches(0, 90)) == 90


def test_scores_and_exports_refuse_it(place, tmp_path):
    fitted = sonde.fit([KNN(k=3)], sonde.read(place), **QUIET)
    flip(next((place / "rows" / "pooled").glob("*.arrow")))
    with pytest.raises(StoreError, match="has other bytes"):
        list(open_for(fitted, place, None).batches(0, 90))
    with pytest.raises(StoreError, match="has other bytes"):
        export_store(place, tmp_path / "rows.npz")
    assert not (tmp_path / "rows.npz").exists()


def test_what_reads_in_another_process_looks_too(place):
    import pickle

    flip(next((place / "rows" / "pooled").glob("*.arrow")))
    for chosen in (sonde.read(place), Store(place, checked=True).select()):
        with pytest.raises(StoreError, match="has other bytes"):
            list(pickle.loads(pickle.dumps(chosen)).batches(0, 90))


def test_a_store_from_before_the_checksums_is_read(place):
    for record in (place / "ranges").glob("*.json"):
        raw = json.loads(record.read_text())
        for said in raw["files"].values():
            del said["crc32"]
        record.write_bytes(sealed(raw))
    assert sum(len(batch) for batch in sonde.read(place).batches(0, 90)) == 90
