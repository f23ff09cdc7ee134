"""A check of a store finds every kind of damage, and a repair removes that and nothing else."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from run_case import rows, stream
from sonde.core.errors import InputError, StoreError
from sonde.core.stream import Stream
from sonde.files.durable import TEMPORARY
from sonde.store import (
    Store,
    add_sites,
    append_store,
    is_store,
    repair,
    verify_store,
    write_store,
)
from sonde.store.describe import describe_store
from sonde.store.layout import sealed
from sonde.store.soundness import removals

N, UNIT = 90, 16


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A store of six ranges of one unit each."""
    patch = pytest.MonkeyPatch()
    patch.setattr("sonde.store._planned.FILE_BYTES", 1)
    place = write_store(source(), tmp_path_factory.mktemp("store") / "a", unit_size=UNIT)
    patch.undo()
    return place


def source() -> Stream:
    x = {"a": rows(N, 3), "b": rows(N, 5, seed=1).half()}
    return Stream.of(x, label=[i % 3 - 1 for i in range(N)], group=[i // 4 for i in range(N)])


@pytest.fixture
def place(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "a"))


def content(folder: Path) -> dict[str, bytes]:
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def write_again(place: Path, monkeypatch) -> None:
    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    write_store(source(), place, unit_size=UNIT)


@pytest.mark.truth("what was written")
def test_a_sound_store_is_sound_and_counted(whole):
    before = content(whole)
    ticks: list[int] = []
    found = verify_store(whole, ticks.append)
    assert found.is_sound, found.faults
    assert not found.leftovers
    assert not found.notes
    arrow = [size for name, size in before.items() if name.startswith("rows")]
    assert found.checked == {
        "n_files": len(before),
        "n_bytes": sum(map(len, arrow)),
        "n_ranges": 6,
        "n_examples": N,
        "n_rows": N,
    }
    assert sum(ticks) == N
    assert content(whole) == before
    assert repair(whole, found) == []


@pytest.mark.parametrize("values", [["t", None, "u"], [1, None, 2], [None, None, None]])
def test_a_column_of_the_user_may_be_empty(tmp_path, values):
    place = write_store(Stream.of(rows(3)), tmp_path / "a", columns={"note": values})
    assert verify_store(place).is_sound


@pytest.mark.parametrize("kind", ["store.json", "ranges/*.json", "rows/examples/*", "rows/[!e]*/*"])
@pytest.mark.parametrize("keep", [0.0, 0.5, 0.999])
def test_a_truncated_file_is_found_and_written_again(whole, place, monkeypatch, kind, keep):
    path = sorted(place.glob(kind))[-1]
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    found = verify_store(place)
    assert {fault.path for fault in found.faults} == {path}
    assert path in repair(place, found)
    assert not path.exists()
    assert not verify_store(place).is_sound
    write_again(place, monkeypatch)
    assert content(place) == content(whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["store.json", "ranges/*.json", "rows/examples/*", "rows/[!e]*/*"])
def test_any_flipped_bit_is_found(place, kind):
    rng = random.Random(0)
    for path in sorted(place.glob(kind))[:2]:
        raw = path.read_bytes()
        for at in {0, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(40))}:
            flipped = bytes([raw[at] ^ 1 << rng.randrange(8)])
            path.write_bytes(raw[:at] + flipped + raw[at + 1 :])
            try:
                found = verify_store(place)
            except StoreError:  # the digit of the version became a higher one
                assert path.name == "store.json"
                assert raw[at - 10 : at] == b'"version":'
                continue
            assert not found.is_sound, (path, at)
            assert all(path in fault.removes for fault in found.faults)
        path.write_bytes(raw)
    assert verify_store(place).is_sound


def test_only_the_damaged_range_is_removed(whole, place, monkeypatch):
    record = place / "ranges" / "2-3.json"
    path = next((place / "rows").glob("[!e]*/2-3.arrow"))
    path.write_bytes(path.read_bytes()[:-1])
    gone = repair(place, verify_store(place))
    assert gone[0] == record
    assert {p.name for p in gone} == {"2-3.json", "2-3.arrow"}
    kept = {name: raw for name, raw in content(whole).items() if "/2-3." not in name}
    assert content(place) == kept
    write_again(place, monkeypatch)
    assert content(place) == content(whole)


@pytest.mark.parametrize("removed", ["ranges/3-4.json", "rows/examples/3-4.arrow"])
def test_a_gap_is_named(whole, place, monkeypatch, removed):
    (place / removed).unlink()
    found = verify_store(place)
    assert [fault.path for fault in found.faults] == [place / removed]
    assert ("1 of 6 ranges" in found.faults[0].what) == removed.startswith("ranges")
    repair(place, found)
    assert not list(place.rglob("3-4.*"))
    write_again(place, monkeypatch)
    assert content(place) == content(whole)


def test_a_range_under_another_name_is_a_duplicate(place):
    for path in place.rglob("1-2.*"):
        shutil.copy(path, path.with_name(path.name.replace("1-2", "4-5")))
    found = verify_store(place)
    assert {fault.what for fault in found.faults} == {"unit 4 holds 16 examples of other units"}
    assert {p.name for p in repair(place, found)} == {"4-5.json", "4-5.arrow"}
    assert [f.what for f in verify_store(place).faults] == [
        "1 of 6 ranges of units are not written, the first is units 4 to 4"
    ]


def test_a_range_of_no_plan_is_left_over(whole, place):
    for path in place.rglob("0-1.*"):
        shutil.copy(path, path.with_name(path.name.replace("0-1", "0-2")))
    found = verify_store(place)
    assert found.is_sound
    assert {p.name for p in found.leftovers} == {"0-2.json", "0-2.arrow"}
    repair(place, found)
    assert content(place) == content(whole)


def test_temporary_files_are_left_over_and_others_stay(whole, place):
    (place / f"store.json{TEMPORARY}12ab").write_bytes(b"x")
    (place / "rows" / "examples" / f"0-1.arrow{TEMPORARY}12ab").write_bytes(b"x")
    (place / "notes.txt").write_text("mine")
    found = verify_store(place)
    assert found.is_sound
    assert len(found.leftovers) == 2
    repair(place, found)
    assert content(place) == {**content(whole), "notes.txt": b"mine"}


def rewritten(place: Path, table: str, change) -> None:
    """Change the rows of the second range and give its record the hash of what was changed."""
    import hashlib

    path = next(p for p in place.glob("rows/*/1-2.arrow") if (p.parent.name == "examples") == (
        table == "examples"))  # fmt: skip
    found = change(pa.ipc.open_file(path).read_all())
    with pa.ipc.new_file(path, found.schema) as writer:
        writer.write_table(found)
    record = place / "ranges" / "1-2.json"
    raw = json.loads(record.read_text())
    said = raw["files"][path.parent.name]
    said["size_bytes"] = path.stat().st_size
    said["blake2b"] = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    record.write_bytes(sealed(raw))


def replaced(name: str, values):
    def change(table: pa.Table) -> pa.Table:
        at = table.schema.get_field_index(name)
        field = table.schema.field(at)
        return table.set_column(at, field, pa.array(values(table[name].to_pylist()), field.type))

    return change


def without_site(table: pa.Table) -> pa.Table:
    return table.replace_schema_metadata().cast(
        pa.schema([f.with_metadata({}) for f in table.schema])
    )


@pytest.mark.parametrize(
    ("table", "change", "what"),
    [
        ("examples", replaced("order", lambda v: [v[1], *v[1:]]), "unit 1 holds 1 example twice"),
        (
            "examples",
            replaced("order", lambda v: [0, *v[1:]]),
            "unit 1 holds 1 example of other units",
        ),
        ("examples", replaced("order", lambda v: [None, *v[1:]]), "empty values in order"),
        ("examples", replaced("group_key", lambda v: [b"x", *v[1:]]), "groups of unit 1"),
        ("examples", lambda t: t.drop_columns("key"), "lacks the columns key"),
        (
            "rows",
            replaced("index", lambda v: [99, *v[1:]]),
            "refers to an example that does not exist",
        ),
        ("rows", replaced("index", lambda v: [v[1], *v[1:]]), "stand there twice"),
        ("rows", replaced("label", lambda v: [v[0] + 1, *v[1:]]), "the column label"),
        ("rows", lambda t: t.drop_columns("s000"), "lacks the column s000 of a"),
        ("rows", without_site, "is not of the site"),
        ("rows", lambda t: t.slice(0, 15), "15 rows, its record says 16"),
        ("rows", lambda t: t.slice(0, 0), "another number of batches"),
    ],
)
def test_rows_that_disagree_are_found_though_their_hash_is_right(place, table, change, what):
    rewritten(place, table, change)
    found = verify_store(place)
    assert any(what in fault.what for fault in found.faults), found.faults
    assert all("1-2" in path.name for fault in found.faults for path in fault.removes)


def test_what_arrow_refuses_is_found(place):
    def wrong(table: pa.Table) -> pa.Table:
        column = table["id"].combine_chunks()
        _, offsets, words = column.buffers()
        moved = np.frombuffer(offsets, dtype=np.int32).copy()
        moved[3] = 10**6
        bad = pa.Array.from_buffers(
            column.type, len(column), [None, pa.py_buffer(moved.tobytes()), words]
        )
        return table.set_column(table.schema.get_field_index("id"), "id", bad)

    rewritten(place, "examples", wrong)
    found = verify_store(place)
    assert found.faults
    assert any("Arrow rejects" in f.what or "cannot be read" in f.what for f in found.faults)


def test_a_later_version_is_not_judged(place):
    raw = json.loads((place / "store.json").read_text())
    (place / "store.json").write_bytes(sealed({**raw, "version": 2}))
    before = content(place)
    with pytest.raises(StoreError, match=r"a later sonde \(version 2"):
        verify_store(place)
    assert content(place) == before


def test_a_lost_manifest_loses_no_row(whole, place, monkeypatch):
    (place / "store.json").unlink()
    assert is_store(place)
    found = verify_store(place)
    assert [fault.what for fault in found.faults] == ["the manifest is missing"]
    assert repair(place, found) == []
    monkeypatch.setattr("sonde.store.writing.StoreWriter.open", None)  # nothing is written again
    write_again(place, monkeypatch)
    assert content(place) == content(whole)


def test_an_unfinished_store_has_gaps_and_no_damage(tmp_path, monkeypatch):
    from run_case import Stopping

    monkeypatch.setattr("sonde.store._planned.FILE_BYTES", 1)
    with pytest.raises(KeyboardInterrupt):
        write_store(Stopping(stream(300), 3), tmp_path / "a", unit_size=50)
    found = verify_store(tmp_path / "a")
    assert len(found.faults) == 1
    assert "of 6 ranges of units are not written" in found.faults[0].what
    assert removals(tmp_path / "a", found) == []


def grown(place: Path) -> Path:
    """Write a store, add a site, append further data; or do again what is missing of that."""
    ids = [f"r{i}" for i in range(60)]
    more = [f"s{i}" for i in range(30)]
    a, b, head = rows(60, 3), rows(60, 2, seed=1), (rows(4, 3, seed=2), None)
    write_store(Stream.of({"a": a}, ids=ids, head=head), place, unit_size=UNIT)
    add_sites(Stream.of({"b": b}, ids=ids, head=head), place)
    return append_store(Stream.of({"a": a[:30] + 1, "b": b[:30]}, ids=more, head=head), place)


@pytest.mark.slow
def test_a_store_that_grew_is_checked_and_repaired_as_a_whole(tmp_path):
    whole = grown(tmp_path / "whole")
    found = verify_store(whole)
    assert found.is_sound
    assert found.checked["n_files"] == len(content(whole))
    assert found.checked["n_examples"] == describe_store(whole)["n_examples"]
    for name, raw in content(whole).items():
        place = Path(shutil.copytree(whole, tmp_path / "a"))
        (place / name).write_bytes(raw[:-3])
        found = verify_store(place)
        assert len(found.faults) == 1, name
        rows_gone = [p for p in repair(place, found) if p.parent.parent.name == "rows"]
        damaged = Path(name).parts[-3:-1][:1] == ("rows",) or Path(name).parent.name == "ranges"
        assert bool(rows_gone) == damaged, name
        assert content(grown(place)) == content(whole), name
        assert verify_store(place).is_sound
        shutil.rmtree(place)


@pytest.mark.parametrize("place", [".", "sites/1", "data/1"])
def test_a_lost_head_is_found(tmp_path, place):
    whole = grown(tmp_path / "a")
    store, before = Store(whole), content(whole)
    assert store.verify() == []
    path = whole / place / "head.safetensors"
    path.unlink()
    assert [str(path) in line for line in store.verify()] == [True]
    found = verify_store(whole)
    assert [(f.path, f.what) for f in found.faults] == [(path, "the file is missing")]
    assert not [p for p in repair(whole, found) if p.suffix == ".arrow"]
    assert content(grown(whole)) == before


def test_nothing_outside_is_removed(place, tmp_path):
    outside = tmp_path / "mine"
    outside.mkdir()
    (outside / "1-2.arrow").write_bytes(b"mine")
    folder = next(p for p in (place / "rows").iterdir() if p.name != "examples")
    shutil.rmtree(folder)
    folder.symlink_to(outside, target_is_directory=True)
    repair(place, verify_store(place))
    assert (outside / "1-2.arrow").read_bytes() == b"mine"


def test_what_is_no_store_is_refused(tmp_path):
    with pytest.raises(InputError, match="is not a store"):
        verify_store(tmp_path)
    (tmp_path / "store.json").write_text('{"format": "other"}')
    with pytest.raises(InputError, match="not the manifest of a store"):
        verify_store(tmp_path)
