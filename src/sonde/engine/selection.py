"""Selection of a batch's rows for a request: finite, in its part, and kept by its filter."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.finite import all_finite, finite_rows
from sonde.core.statistic import Span
from sonde.engine.requests import Request

SITE_COLUMNS = ("x", "grad")


class FiniteRows:
    """Rows that are finite at a site and all earlier sites, and the number of other rows.

    Sites of one layout drop single rows. A site with another layout drops whole examples: each
    example with a row that is not finite at an earlier site.
    """

    def __init__(self, batch: Batch) -> None:
        self._kept: dict[str, Tensor | None] = {}
        self._chosen: dict[Hashable, list[Tensor] | None] = {}
        self.n_bad: dict[str, int] = {}
        bad_rows: dict[tuple[int, int], Tensor] = {}
        bad_examples: dict[tuple[int, int], Tensor] = {}
        whole = all_finite(list(batch.rows.values()))
        for (key, x), fine in zip(batch.rows.items(), whole, strict=True):
            example = batch.example[key]
            layout = (id(example), id(batch.position[key]))
            own = None if fine else ~finite_rows(x).cpu()
            self.n_bad[key] = 0 if own is None else int(own.sum())
            if own is not None:
                bad_rows[layout] = own | bad_rows.get(layout, torch.zeros_like(own))
                members = torch.zeros(len(batch), dtype=torch.bool)
                members[example[own]] = True
                bad_examples[layout] = members | bad_examples.get(layout, torch.zeros_like(members))
            inherited = [m[example] for other, m in bad_examples.items() if other != layout]
            present = [*inherited, *([bad_rows[layout]] if layout in bad_rows else [])]
            self._kept[key] = ~torch.stack(present).any(dim=0) if present else None

    def kept(self, key: str) -> Tensor | None:
        """Return the mask of rows to keep, or None for all."""
        return self._kept[key]

    def once(self, choice: Hashable, make: Callable[[], list[Tensor] | None]) -> Any:
        """Return the result of ``make``, called once for each ``choice`` in a batch."""
        if choice not in self._chosen:
            self._chosen[choice] = make()
        return self._chosen[choice]


def row_indices(
    request: Request, batch: Batch, finite: FiniteRows, held: Tensor | None
) -> list[Tensor] | None:
    """Return the row indices for each site of a request (joined for pairs); None for all."""
    key = request.keys[0]
    if len(request.keys) == 1 and request.where.by_layout and finite.kept(key) is None:
        layout = id(batch.example[key]), id(batch.position[key])
        choice = (request.where, request.part, layout)
        return finite.once(choice, lambda: _chosen(request, batch, finite, held))
    return _chosen(request, batch, finite, held)


def _chosen(
    request: Request, batch: Batch, finite: FiniteRows, held: Tensor | None
) -> list[Tensor] | None:
    masks: list[Tensor | None] = []
    for key in request.keys:
        whole = finite.kept(key) if request.where.finite else None
        parts = [whole, request.where.mask(batch, key)]
        if key in batch.sink and not request.where.sinks:
            parts.append(~batch.sink[key])
        if held is not None and request.part != "all":
            part = held if request.part == "held" else ~held
            parts.append(part[batch.example[key]])
        present = [p for p in parts if p is not None]
        masks.append(torch.stack(present).all(dim=0) if present else None)
    return _joined(request.keys, batch, masks)


def _joined(keys: Sequence[str], batch: Batch, masks: list[Tensor | None]) -> list[Tensor] | None:
    if len(keys) == 1:
        return None if masks[0] is None else [torch.nonzero(masks[0]).flatten()]
    layouts = {(id(batch.example[key]), id(batch.position[key])) for key in keys}
    if len(layouts) == 1:
        present = [m for m in masks if m is not None]
        if not present:
            return None
        rows = torch.nonzero(torch.stack(present).all(dim=0)).flatten()
        return [rows] * len(keys)
    names: list[dict[tuple[int, int], int]] = []
    for key, mask in zip(keys, masks, strict=True):
        example: list[int] = batch.example[key].numpy().tolist()
        position: list[int] = batch.position[key].numpy().tolist()
        rows = torch.arange(len(example)) if mask is None else torch.nonzero(mask).flatten()
        kept: list[int] = rows.cpu().numpy().tolist()
        names.append({(example[i], position[i]): i for i in kept})
    shared = sorted(set(names[0]).intersection(*names[1:]))
    return [torch.tensor([n[s] for s in shared], dtype=torch.int64) for n in names]


@dataclass(frozen=True)
class JoinedRows:
    """Columns of the rows that several sites of a batch have in common, without sinks.

    ``columns`` holds, for each name, the values at the rows. If the span is all, a column of
    ``SITE_COLUMNS`` is a tuple with an entry for each site; otherwise values are of the first site.
    """

    columns: tuple[Any, ...]
    example: Tensor
    position: Tensor

    @classmethod
    def of(
        cls, batch: Batch, keys: Sequence[str], names: Sequence[str], span: Span
    ) -> "JoinedRows":
        """Return the joined columns of a batch."""
        first = keys[0]
        kept = [~batch.sink[key] if key in batch.sink else None for key in keys]
        index = _joined(keys, batch, kept)

        def taken(name: str, i: int) -> Any:
            values = batch.column(name, keys[i])
            return values if index is None else values[index[i].to(values.device)]

        columns = tuple(
            tuple(taken(name, i) for i in range(len(keys)))
            if span == "all" and name in SITE_COLUMNS
            else taken(name, 0)
            for name in names
        )
        example, position = batch.example[first], batch.position[first]
        if index is not None:
            example, position = example[index[0]], position[index[0]]
        return cls(columns, example, position)
