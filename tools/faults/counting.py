"""What a finished output holds: its bytes, and how often each example counts in it."""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sonde.core.errors import SondeError
from sonde.files.state_file import read_header

LOCK, TEMPORARY = "lock", ".tmp-"


@dataclass(frozen=True)
class Count:
    """Examples that an output lacks, and that count in it more often than once."""

    lost: int = 0
    twice: int = 0


def digest(path: Path) -> dict[str, str]:
    """Return the hash of every file of an output, by its name inside."""
    if path.is_file():
        return {path.name: _hash(path)}
    files = sorted(p for p in path.rglob("*") if p.is_file() and _counts(p.name))
    return {p.relative_to(path).as_posix(): _hash(p) for p in files}


def _counts(name: str) -> bool:
    return name != LOCK and TEMPORARY not in name


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def count(path: Path, whole: Path, n_rows: int) -> Count:
    """Return what an output lacks or counts twice against the undisturbed one."""
    if not path.exists():
        return Count(lost=n_rows)
    return _count_rows(path, whole) if path.is_dir() else _count_state(path, n_rows)


def _count_state(path: Path, n_rows: int) -> Count:
    """Count by what a state says of each site: rows that went in, and rows that were dropped."""
    try:
        counters = read_header(path)["counters"]
    except SondeError:
        return Count(lost=n_rows)
    found = [counters.get("examples", 0)]
    for name in counters:
        if name.startswith("rows|"):
            found.append(counters[name] + counters.get(name.replace("rows|", "nonfinite|"), 0))
    return Count(max(0, n_rows - min(found)), max(0, max(found) - n_rows))


def _count_rows(path: Path, whole: Path) -> Count:
    """Count by the ids in the files, read by Arrow alone; of its tables the worst one counts."""
    expected, found = _by_table(whole), _by_table(path)
    lost = [(ids - found.get(name, Counter())).total() for name, ids in expected.items()]
    twice = [(ids - expected.get(name, Counter())).total() for name, ids in found.items()]
    return Count(max(lost, default=0), max(twice, default=0))


def _by_table(store: Path) -> dict[str, Counter[tuple[str, int]]]:
    found: dict[str, Counter[tuple[str, int]]] = {}
    for table, example, occurrence in _ids(store):
        found.setdefault(table, Counter())[example, occurrence] += 1
    return found


def _ids(store: Path) -> Iterator[tuple[str, str, int]]:
    """Yield table, id and occurrence of every example, and for every row that of its example."""
    for record in sorted(store.rglob("ranges/*.json")):
        part = record.parent.parent
        examples = _table(part / "rows" / "examples" / f"{record.stem}.arrow")
        if examples is None:
            continue
        pairs = [
            list(zip(b.column("id").to_pylist(), b.column("occurrence").to_pylist(), strict=True))
            for b in examples
        ]
        yield from (("examples", str(i), n) for batch in pairs for i, n in batch)
        for folder in sorted((part / "rows").iterdir()):
            rows = None if folder.name == "examples" else _table(folder / f"{record.stem}.arrow")
            for batch, mine in zip(rows or [], pairs, strict=False):
                for index in batch.column("index").to_pylist():
                    yield (folder.name, str(mine[index][0]), mine[index][1])


def _table(path: Path) -> list[pa.RecordBatch] | None:
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            return [reader.get_batch(i) for i in range(reader.num_record_batches)]
    except (OSError, pa.ArrowInvalid):
        return None


def committed(folder: Path) -> set[tuple[str, int]]:
    """Return the units that a run directory or a store has committed."""
    found: set[tuple[str, int]] = set()
    for path in [*folder.rglob("states/*.sonde"), *folder.rglob("ranges/*.json")]:
        start, stop = (int(n) for n in path.stem.split("-"))
        where = path.parent.parent.relative_to(folder).as_posix()
        found |= {(where, unit) for unit in range(start, stop)}
    return found


def half_written(folder: Path) -> int:
    """Return how many files stand under a temporary name."""
    return sum(TEMPORARY in path.name for path in folder.rglob("*"))
