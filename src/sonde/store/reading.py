"""Rows from disk as a stream: the same batches, bit for bit, as the live one that wrote them."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError, StoreError
from sonde.core.stream import Stream
from sonde.store.layout import EXAMPLES, RANGES, ROWS, Column, from_column, read_json, read_manifest


class Store(Stream):
    """The rows in a folder that ``write_store`` has filled.

    Parameters
    ----------
    directory : path

    Raises
    ------
    StoreError
        If the folder is no store, is damaged, or is not written to the end.
    """

    def __init__(self, directory: str | Path) -> None:
        self.directory = Path(directory)
        self.manifest = read_manifest(self.directory)
        self.seed = self.manifest.seed
        missing = [r for r in self.manifest.ranges() if not self._record(r).exists()]
        if missing:
            raise StoreError(
                f"Store: {self.directory} is not written to the end: {len(missing)} of "
                f"{len(self.manifest.ranges())} ranges of units are missing. Run the command that "
                "writes it again."
            )

    def _record(self, span: tuple[int, int]) -> Path:
        return self.directory / RANGES / f"{span[0]}-{span[1]}.json"

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """The kinds of rows, in order of execution."""
        found = [c.schema for columns in self.manifest.tables.values() for c in columns]
        return tuple(sorted(found, key=lambda s: (s.site.order, s.key)))

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The group key of every example."""
        return self.manifest.group_keys

    @property
    def grouped(self) -> bool:
        """Whether groups were given or examples were cut into chunks."""
        return self.manifest.grouped

    def identity(self) -> dict[str, Any]:
        """Return what the stream that wrote it said of itself."""
        return self.manifest.identity

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield the batches of one unit as they were written.

        Raises
        ------
        InputError
            If ``[start, stop)`` is no unit of the store, nor its first examples.
        """
        bounds = self.manifest.bounds
        if start == 0 and stop in (1, 2) and stop not in bounds:
            yield from self._first()
            return
        if start not in bounds or stop not in bounds:
            raise InputError(
                f"Store.batches: expected units of the store, got examples [{start}, {stop}). "
                "Use the unit size that it was written with."
            )
        for unit in range(bounds.index(start), bounds.index(stop)):
            yield from self._unit(unit)

    def _first(self) -> Iterator[Batch]:
        batch = next(iter(self._unit(0)))
        yield batch

    def _unit(self, unit: int) -> Iterator[Batch]:
        span = next(r for r in self.manifest.ranges() if r[0] <= unit < r[1])
        record = read_json(self._record(span))
        counts = record.get("batches")
        if (
            not isinstance(counts, list)
            or not all(type(c) is int and c >= 0 for c in counts)
            or len(counts) != span[1] - span[0]
            or record.get("plan") != self.manifest.plan
        ):
            raise StoreError(f"Store: the record of units {span} in {self.directory} is damaged.")
        first = sum(counts[: unit - span[0]])
        files = {name: self._open(name, span, record) for name in (EXAMPLES, *self.manifest.tables)}
        for i in range(first, first + counts[unit - span[0]]):
            try:
                parts = {name: file.get_batch(i) for name, file in files.items()}
                for name, part in parts.items():
                    part.validate(full=name == EXAMPLES)
                batch = self._batch(parts)
            except StoreError:
                raise
            except _DAMAGE as error:
                raise StoreError(
                    f"Store: units {span} in {self.directory} are damaged: {error}. "
                    "Write the store again."
                ) from error
            yield batch

    def _open(
        self, table: str, span: tuple[int, int], record: dict[str, Any]
    ) -> pa.ipc.RecordBatchFileReader:
        path = self.directory / ROWS / table / f"{span[0]}-{span[1]}.arrow"
        try:
            size = record["files"][table]["size_bytes"]
            if path.stat().st_size != size:
                raise StoreError(f"Store: {path} has not the {size} bytes that were committed.")
            reader = pa.ipc.open_file(pa.memory_map(str(path)))
        except _DAMAGE as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"Store: {path} cannot be read: {error}.") from error
        self._check_schema(reader.schema, table, path)
        return reader

    def _check_schema(self, found: pa.Schema, table: str, path: Path) -> None:
        for column in self.manifest.tables.get(table, ()):
            field = column.field()
            if column.name not in found.names or found.field(column.name).type != field.type:
                raise StoreError(
                    f"Store: expected column {column.name} of type {field.type} in {path}."
                )

    def _batch(self, parts: dict[str, pa.RecordBatch]) -> Batch:
        examples = parts[EXAMPLES]
        shared: dict[str, dict[str, Any]] = {
            name: {} for name in ("rows", "example", "position", "grad", "grid", "special")
        }
        for name, columns in self.manifest.tables.items():
            self._read_table(parts[name], columns, len(examples), shared)
        order = [s.key for s in self.schema]
        rows = {key: shared["rows"][key] for key in order}
        names = set(examples.schema.names)
        extra = {
            n.removeprefix("extra_"): _numbers(examples, n) for n in names if n.startswith("extra_")
        }
        logits = _numbers(examples, "logits") if "logits" in names else None
        return Batch(
            ids=examples.column("id").to_pylist(),
            keys=examples.column("key").to_pylist(),
            group_keys=examples.column("group_key").to_pylist(),
            order=_integers(examples, "order"),
            occurrence=_integers(examples, "occurrence"),
            label=_integers(examples, "label"),
            pair=_integers(examples, "pair") if "pair" in names else None,
            side=_integers(examples, "side") if "side" in names else None,
            length=_integers(examples, "length") if "length" in names else None,
            logits=logits,
            seed=self.seed,
            extra=extra,
            rows=rows,
            example=shared["example"],
            position=shared["position"],
            grad=shared["grad"],
            grid=shared["grid"],
            special=shared["special"],
        )

    def _read_table(
        self,
        part: pa.RecordBatch,
        columns: tuple[Column, ...],
        n_examples: int,
        shared: dict[str, dict[str, Any]],
    ) -> None:
        example, position = _integers(part, "index"), _integers(part, "position")
        if len(example) and not 0 <= int(example.min()) <= int(example.max()) < n_examples:
            raise StoreError(f"Store: a row of {self.directory} points at no example.")
        names = set(part.schema.names)
        for column in columns:
            key = column.schema.key
            shared["rows"][key] = from_column(part.column(column.name), column.schema.dtype)
            shared["example"][key], shared["position"][key] = example, position
            if f"{column.name}_grad" in names:
                grad = part.column(f"{column.name}_grad")
                shared["grad"][key] = from_column(grad, column.schema.dtype)
            if "special" in names:
                shared["special"][key] = torch.tensor(part.column("special").to_pylist())
            if "line" in names:
                grid = [_integers(part, "line"), _integers(part, "column")]
                shared["grid"][key] = torch.stack(grid, dim=1)

    def verify(self) -> list[str]:
        """Return what is wrong with the files, after reading every byte; empty when all is well."""
        wrong: list[str] = []
        for span in self.manifest.ranges():
            record = read_json(self._record(span))
            for table in (EXAMPLES, *self.manifest.tables):
                path = self.directory / ROWS / table / f"{span[0]}-{span[1]}.arrow"
                try:
                    said = record["files"][table]["blake2b"]
                    found = hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
                except (OSError, KeyError, TypeError) as error:
                    wrong.append(f"{path}: {error}")
                    continue
                if said != found:
                    wrong.append(f"{path}: its bytes are not those that were committed")
        return wrong

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of all its row files."""
        return sum(p.stat().st_size for p in (self.directory / ROWS).rglob("*.arrow"))


_DAMAGE = (
    OSError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    pa.ArrowException,
)

_ARROW_NAMES = {
    "float": "float32",
    "double": "float64",
    "halffloat": "float16",
    "uint16": "bfloat16",
}


def _numbers(part: pa.RecordBatch, name: str) -> Tensor:
    """Return a column with one or several numbers for each example."""
    column = part.column(name)
    if not pa.types.is_fixed_size_list(column.type):
        return torch.from_numpy(np.array(column))
    kind = str(column.type.value_type)
    return from_column(column, _ARROW_NAMES.get(kind, kind))


def _integers(part: pa.RecordBatch, name: str) -> Tensor:
    try:
        return torch.tensor(part.column(name).to_pylist(), dtype=torch.int64)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"Store: column {name!r} is missing or damaged: {error}.") from error
