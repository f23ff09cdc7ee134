"""One data set of a store: its first volume, and the volumes of sites added later."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import StoreError
from sonde.engine.classes import joined_names
from sonde.store._mapped import integer_column
from sonde.store.layout import EXAMPLES, GROUPS, HEAD, REPAIR, SITES, row_file, side_file
from sonde.store.volume import Span, Volume


class DataSet:
    """Rows of one data set; sites added later are in volumes with equal batches.

    Parameters
    ----------
    directory : Path
    checked : bool, default=False
        Check the bytes of each file of rows when it is opened.
    """

    def __init__(self, directory: Path, checked: bool = False) -> None:
        self.directory = directory
        first = Volume(directory, checked)
        self.manifest = first.manifest
        added = [directory / SITES / str(k + 1) for k in range(self.manifest.n_sites)]
        self.volumes = (first, *(Volume(folder, checked) for folder in added))
        for volume in self.volumes[1:]:
            if volume.manifest.bounds != self.manifest.bounds:
                raise StoreError(
                    f"Store: the units of {volume.directory} differ from those of {directory}."
                )

    def __len__(self) -> int:
        return self.manifest.bounds[-1]

    @cached_property
    def schema(self) -> dict[str, SiteSchema]:
        """The kinds of rows by their keys."""
        return {s.key: s for volume in self.volumes for s in volume.schema}

    @property
    def identities(self) -> list[dict[str, Any]]:
        """Identities of the streams that wrote the volumes."""
        return [volume.manifest.identity for volume in self.volumes]

    def missing(self) -> list[Span]:
        """Return the ranges of units that are not committed."""
        return [span for volume in self.volumes for span in volume.missing()]

    def check_files(self) -> None:
        """Raise if a file is missing or its size is wrong."""
        for volume in self.volumes:
            volume.check_files()

    def told(self, held: str) -> dict[int, Any]:
        """Return a column of the files of examples, by each stored example's planned number.

        Raises
        ------
        StoreError
            If a file is damaged.
        """
        values: dict[int, Any] = {}
        for table in self.volumes[0].examples():
            order = integer_column(table, "order").tolist()
            has_column = held in table.schema.names
            if not has_column or (order and not 0 <= min(order) <= max(order) < len(self)):
                what = "examples that were not planned" if has_column else f"no column {held}"
                raise StoreError(f"Store: {self.directory} is damaged: it holds {what}. {REPAIR}")
            values |= zip(order, table.column(held).to_pylist(), strict=True)
        return values

    def home(self, key: str) -> Volume:
        """Return the volume that contains a kind of rows."""
        return next(v for v in self.volumes if any(s.key == key for s in v.schema))

    def batches(self, unit: int, wanted: frozenset[str]) -> Iterator[Batch]:
        """Yield the batches of a unit at the wanted sites, joined over all volumes."""
        first, *others = self.volumes
        needed = [v for v in others if any(self.home(key) is v for key in wanted)]
        if not needed:
            yield from first.batches(unit, wanted)
            return
        parts = [v.batches(unit, wanted) for v in (first, *needed)]
        for batches in zip(*parts, strict=True):
            yield self._together(list(batches))

    def _together(self, batches: list[Batch]) -> Batch:
        first = batches[0]
        if not all(torch.equal(first.order, b.order) for b in batches[1:]):
            raise StoreError(
                f"Store: the sites that were added to {self.directory} come from other "
                "examples. Write the store again."
            )
        names = ("rows", "example", "position", "grad", "grid", "special", "sink")
        columns = {n: {k: x for b in batches for k, x in getattr(b, n).items()} for n in names}
        _share(columns["example"], columns["position"])
        return replace(first, head=next((b.head for b in batches if b.head), None), **columns)

    def verify(self) -> list[str]:
        """Return the faults found in the bytes of the files."""
        wrong: list[str] = []
        for volume in self.volumes:
            for name in sorted({GROUPS, HEAD} & volume.manifest.files.keys()):
                try:
                    side_file(volume.directory, name, volume.manifest.files)
                except StoreError as error:
                    wrong.append(str(error))
            for span in volume.manifest.ranges():
                for table in (EXAMPLES, *volume.manifest.tables):
                    path = row_file(volume.directory, table, span)
                    try:
                        recorded = volume.record(span)["files"][table]["blake2b"]
                        with path.open("rb") as file:
                            digest = hashlib.file_digest(file, _hasher).hexdigest()
                    except (OSError, KeyError, TypeError) as error:
                        wrong.append(f"{path}: {error}")
                        continue
                    if recorded != digest:
                        wrong.append(f"{path}: its bytes differ from those that were committed")
        return wrong


def common_schema(sets: Sequence[DataSet]) -> tuple[SiteSchema, ...]:
    """Return the kinds of rows that every data set has, in order of execution."""
    common = frozenset.intersection(*(frozenset(s.schema) for s in sets))
    shared = [schema for key, schema in sets[0].schema.items() if key in common]
    return tuple(sorted(shared, key=lambda s: (s.site.order, s.key)))


def class_names(sets: Sequence[DataSet]) -> tuple[str, ...]:
    """Return the name of each class number, which all data sets of a store share."""
    joined: tuple[str, ...] = ()
    for part in sets:
        names = joined_names(joined, part.manifest.label_names)
        if names is None:
            raise StoreError(
                f"Store: {part.directory} numbers its classes differently than the earlier data "
                "of the store. Write the store again."
            )
        joined = names
    return joined


def _hasher() -> Any:
    return hashlib.blake2b(digest_size=16)


def _share(example: dict[str, torch.Tensor], position: dict[str, torch.Tensor]) -> None:
    """Let kinds of rows with equal layouts share their tensors, as in a live batch."""
    layouts: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    for key, own in example.items():
        layout = (id(own), id(position[key]))
        if layout not in layouts:
            same = [k for k in layouts.values() if _equal(k, (own, position[key]))]
            layouts[layout] = same[0] if same else (own, position[key])
        example[key], position[key] = layouts[layout]


def _equal(a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]) -> bool:
    return torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])
