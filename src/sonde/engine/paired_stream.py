"""Several aligned runs as one stream, with the run's name in each site."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from sonde.core.batch import Batch, SiteSchema
from sonde.core.errors import InputError
from sonde.core.left_out import LeftOut
from sonde.core.stream import Stream
from sonde.engine.derived import DerivedStream
from sonde.engine.joining import join

FORBIDDEN = frozenset("@:/|")


@final
@dataclass(frozen=True, eq=False, repr=False)
class PairedStream(DerivedStream):
    """Several runs over the same examples as one stream.

    A site ``layers.3:out`` of the run ``clean`` is called ``clean/layers.3:out``, so that
    instruments for pairs of sites compare a state with the same state of another run. Labels,
    groups and logits are those of the first run.

    Parameters
    ----------
    sides : mapping of str to Stream
        Two data sets whose items belong together one by one (clean and corrupted), or two models on
        one data set (base and tuned).

    Raises
    ------
    InputError
        If the runs differ in their examples or in the order of examples.

    Examples
    --------
    >>> sides = {"clean": Stream.of(torch.ones(4, 2)), "noisy": Stream.of(torch.zeros(4, 2))}
    >>> [site.key for site in PairedStream(sides).schema]
    ['clean/x', 'noisy/x']
    """

    sides: Mapping[str, Stream]

    def __post_init__(self) -> None:
        if len(self.sides) < 2 or any(not n or FORBIDDEN & set(n) for n in self.sides):
            raise InputError(
                "PairedStream: expected at least two streams under plain names such as 'clean' "
                f"and 'corrupted', got {list(self.sides)}."
            )
        sizes = {name: len(stream) for name, stream in self.sides.items()}
        if len(set(sizes.values())) > 1:
            raise InputError(
                "PairedStream: expected the same number of examples in every run, got "
                f"{sizes}. Give data sets with the same number of items in the same order."
            )
        rows = [s.source_rows for s in self.sides.values() if s.source_rows is not None]
        if any(not np.array_equal(rows[0], other) for other in rows[1:]):
            raise InputError(
                "PairedStream: expected the same examples in the same order in all runs, got "
                "different items at some positions. Read all runs with the same options, and "
                "do not cut texts into chunks (long='error')."
            )

    @property
    def inner(self) -> Stream:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The first run, which defines groups and labels."""
        return next(iter(self.sides.values()))

    @property
    def schema(self) -> tuple[SiteSchema, ...]:
        """The kinds of rows of all runs, run after run."""
        schemas = ((name, s) for name, stream in self.sides.items() for s in stream.schema)
        return tuple(
            replace(
                s,
                key=f"{name}/{s.key}",
                site=replace(s.site, path=f"{name}/{s.site.path}", order=order),
            )
            for order, (name, s) in enumerate(schemas)
        )

    @property
    def left_out(self) -> tuple[LeftOut, ...]:
        """Sites of all runs that are not read by default."""
        return tuple(left for stream in self.sides.values() for left in stream.left_out)

    def identity(self) -> dict[str, Any]:
        """Return the JSON that identifies every run."""
        return {"paired": {name: stream.identity() for name, stream in self.sides.items()}}

    def first_batch(self) -> Batch:
        """Return a batch of the first two examples, or of the only example."""
        return next(iter(self.batches(0, min(2, len(self)))))

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Yield a single batch: the examples of a unit that occur in every run."""
        read = {name: list(s.batches(start, stop)) for name, s in self.sides.items()}
        if not all(read.values()):
            return
        whole = {name: join(batches) for name, batches in read.items()}
        orders = [set(batch.order.tolist()) for batch in whole.values()]
        shared = torch.tensor(sorted(set.intersection(*orders)), dtype=torch.int64)
        if len(shared):
            parts = {name: _chosen(batch, shared) for name, batch in whole.items()}
            yield _side_by_side(parts)


def _chosen(batch: Batch, order: Tensor) -> Batch:
    """Return a batch's examples with these planned indices, in this order."""
    place = {number: i for i, number in enumerate(batch.order.tolist())}
    index = torch.tensor([place[number] for number in order.tolist()])
    new = torch.full((len(batch),), -1)
    new[index] = torch.arange(len(index))
    layouts: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    taken: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
    for key in batch.rows:
        layout = id(batch.example[key]), id(batch.position[key])
        if layout not in layouts:
            example = new[batch.example[key]]
            rows = torch.nonzero(example >= 0).flatten()
            rows = rows[example[rows].argsort(stable=True)]
            layouts[layout] = rows, example[rows], batch.position[key][rows]
        taken[key] = layouts[layout]

    def of_rows(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {key: x[taken[key][0].to(x.device)] for key, x in values.items()}

    def of_examples(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[index.to(values.device)]

    numbers = index.tolist()
    return replace(
        batch,
        rows=of_rows(batch.rows),
        ids=[batch.ids[i] for i in numbers],
        keys=[batch.keys[i] for i in numbers],
        order=order,
        occurrence=np.asarray(batch.occurrence)[index.numpy()].tolist(),
        example={key: example for key, (_, example, _) in taken.items()},
        position={key: position for key, (_, _, position) in taken.items()},
        group_keys=[batch.group_keys[i] for i in numbers],
        label=batch.label[index],
        logits=of_examples(batch.logits),
        grad=of_rows(batch.grad),
        grid=of_rows(batch.grid),
        special=of_rows(batch.special),
        sink=of_rows(batch.sink),
        pair=of_examples(batch.pair),
        side=of_examples(batch.side),
        length=of_examples(batch.length),
        extra={name: x[index] for name, x in batch.extra.items()},
    )


def _side_by_side(parts: dict[str, Batch]) -> Batch:
    """Return the rows of all runs, with the columns of examples from the first run."""

    def named(field: str) -> dict[str, Tensor]:
        fields = ((name, getattr(batch, field)) for name, batch in parts.items())
        return {f"{name}/{key}": x for name, values in fields for key, x in values.items()}

    by_site = ("rows", "example", "position", "grad", "grid", "special", "sink")
    first = next(iter(parts.values()))
    layouts: dict[tuple[bytes, bytes], tuple[Tensor, Tensor]] = {}
    columns: dict[str, Any] = {field: named(field) for field in by_site}
    for key in columns["rows"]:
        example, position = columns["example"][key], columns["position"][key]
        bits = example.numpy().tobytes(), position.numpy().tobytes()
        columns["example"][key], columns["position"][key] = layouts.setdefault(
            bits, (example, position)
        )
    return replace(first, **columns)
