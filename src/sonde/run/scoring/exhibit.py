"""Examples to inspect: the score of every part and, if requested, the input."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, final

import torch
from torch import Tensor

from sonde.core.batch import Batch
from sonde.core.inputs import InputBatch
from sonde.core.stream import Stream
from sonde.data.pieces import pieces_of
from sonde.run.fitting.fitted import Fitted
from sonde.run.reading.row_places import Place, places_of
from sonde.run.scoring.batches import record, scored_rows
from sonde.store._subset import with_examples
from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.streams.live import LiveStream

MOST_VALUES: Final = 12
PER_TOKEN: Final = ("tokens", "predictions")


@final
@dataclass(frozen=True)
class Exhibit:
    """An example with its scores by one detector at a site.

    Parameters
    ----------
    kind : {"image", "text", "steps", "row"}
    position : sequence of int
        Position of each part that has a score: patch, token, step, or the example itself.
    score, p : sequence
        Score and p-value of each part; ``p`` is None if parts were not calibrated.
    grid : sequence of (int, int)
        Line and column of each patch.
    pixels : Float[Tensor, "channel line column"] or None
        The image as the model reads it; None unless inputs are shown.
    pieces : sequence of str
        Tokens or steps as text, by position from ``first``; empty unless inputs are shown.
    first : int
        Position of the first piece.
    values : sequence of (int, float)
        Unit and value of the largest entries of a plain row; empty unless inputs are shown.
    place : str or None
        File, line or row of the example in the user's data.
    """

    kind: str
    position: Sequence[int]
    score: Sequence[float]
    p: Sequence[float | None]
    grid: Sequence[tuple[int, int]] = ()
    pixels: Tensor | None = None
    pieces: Sequence[str] = ()
    first: int = 0
    values: Sequence[tuple[int, float]] = ()
    place: str | None = None


@final
@dataclass
class Exhibits:
    """Reads examples of a stream again and scores their parts.

    Parameters
    ----------
    fitted : Fitted
    stream : Stream
        What was scored.
    inputs : bool, default=False
        Whether exhibits hold inputs: pixels, texts, values. Without it they hold scores alone.
    hashed : bool, default=False
        Whether lines name examples by ``hashed_id``, and no file is named.
    """

    fitted: Fitted
    stream: Stream
    inputs: bool = False
    hashed: bool = False
    _places: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def of(self, line: dict[str, Any]) -> Exhibit | None:
        """Return the exhibit for a line of the table.

        None if its example is not found again, or if the line joins several detectors.
        """
        name = (line["instrument"], line["site"])
        task = dict(zip(self.fitted.names, self.fitted.tasks, strict=True)).get(name)
        if task is None:
            return None
        if not self._places:
            known_places = places(self.stream)
            change = hashed_id if self.hashed else str
            self._places = {change(name): place for name, place in known_places.items()}
        indices = [
            place for place in self._places.get(line["id"], ()) if place[0] <= line["position"]
        ]
        if not indices:
            return None
        index = max(indices)[1]
        batch = next(iter(self._source.batches(index, index + 1)), None)
        if batch is None:
            return None
        batch = with_examples(batch, torch.as_tensor(batch.order) == index)
        scorer = self.fitted.scorers[name]
        columns = record(batch, name, scorer, scored_rows(batch, task, scorer, None))
        raw = self._raw(index) if self.inputs else None
        exhibit = self._exhibit(columns, batch, task.keys[0], raw, line)
        return replace(exhibit, place=self._place(index))

    @cached_property
    def _place(self) -> Place:
        return places_of(self.stream, self.hashed)

    @cached_property
    def _source(self) -> Stream:
        return in_whole_batches(self.stream)

    def _raw(self, index: int) -> InputBatch | None:
        if not isinstance(self._source, LiveStream):
            return None
        return next(iter(self._source.inputs.batches(index, index + 1)), None)

    def _exhibit(
        self,
        found: dict[str, Any],
        batch: Batch,
        key: str,
        raw: InputBatch | None,
        line: dict[str, Any],
    ) -> Exhibit:
        parts: dict[str, Any] = {k: found[k] for k in ("position", "score", "p")}
        if not parts["position"]:
            parts = {k: [line[k]] for k in parts}
        place = dict(
            zip(batch.position[key].tolist(), range(len(batch.position[key])), strict=True)
        )
        reducer = next(s.reducer for s in self.stream.schema if s.key == key)
        pixels = None if raw is None else pixels_of(raw)
        if key in batch.grid:
            lines = batch.grid[key].tolist()
            grid = [(lines[place[i]][0], lines[place[i]][1]) for i in parts["position"]]
            return Exhibit("image", **parts, grid=grid, pixels=pixels)
        if pixels is not None:
            return Exhibit("image", **parts, pixels=pixels)
        task = self.stream.model.task if isinstance(self.stream, LiveStream) else ""
        at = 0 if raw is None else raw.order.tolist().index(int(batch.order[0]))
        if reducer.name.startswith("step"):
            pieces = () if raw is None else pieces_of(raw, self._tokenizer(), True, at)
            return Exhibit("steps", **parts, pieces=pieces)
        if reducer.name in PER_TOKEN or task in ("causal", "classifier", "encoder", "seq2seq"):
            pieces = () if raw is None else pieces_of(raw, self._tokenizer(), example=at)
            first = 0 if raw is None or raw.first is None else int(raw.first[at])
            if reducer.name not in PER_TOKEN:
                parts = {k: [] for k in parts}
            return Exhibit("text", **parts, pieces=pieces, first=first)
        row = place.get(line["position"], 0)
        values = largest(batch.rows[key][row]) if self.inputs and len(batch.rows[key]) else ()
        return Exhibit("row", **parts, values=values)

    def _tokenizer(self) -> Any:
        return self.stream.model.processor if isinstance(self.stream, LiveStream) else None


def in_whole_batches(stream: Stream) -> Stream:
    """Return a stream whose parts generate the same texts as a pass over the whole stream."""
    if not (isinstance(stream, LiveStream) and isinstance(stream.inputs, ReplayInputs)):
        return stream
    return replace(stream, inputs=replace(stream.inputs, units=tuple(stream.units())))


def hashed_id(name: str) -> str:
    """Return 16 hexadecimal digits for an id, the same in every table and report."""
    return blake2b(name.encode(), digest_size=8).hexdigest()


def places(stream: Stream) -> dict[str, list[tuple[int, int]]]:
    """Return each id's position of its first row and its index in the stream.

    Of several equal examples the first counts; chunks of a document are several places.
    """
    rows_of: dict[str, dict[int, int]] = {}
    if isinstance(stream, LiveStream):
        inputs = stream.inputs
        inputs = inputs.prompts if isinstance(inputs, ReplayInputs) else inputs
        for raw in inputs.batches(0, len(stream)):
            first = [0] * len(raw) if raw.first is None else raw.first.tolist()
            for name, index, at in zip(raw.ids, raw.order.tolist(), first, strict=True):
                rows_of.setdefault(name, {}).setdefault(at, index)
    else:
        for batch in stream.batches(0, len(stream)):
            key = next(iter(batch.rows))
            rows = zip(batch.example[key].tolist(), batch.position[key].tolist(), strict=True)
            for example, at in rows:
                rows_here = rows_of.setdefault(batch.ids[int(example)], {})
                rows_here.setdefault(at, int(batch.order[example]))
    return {name: sorted(rows_here.items()) for name, rows_here in rows_of.items()}


def pixels_of(raw: InputBatch) -> Tensor | None:
    """Return the image in the arguments of a forward pass."""
    for value in (*raw.args, *raw.kwargs.values()):
        if isinstance(value, Tensor) and value.ndim == 4 and value.shape[1] in (1, 3):
            return value[0].detach().float().cpu()
    return None


def largest(row: Tensor) -> list[tuple[int, float]]:
    """Return unit and value of the entries of largest size, non-finite entries first."""
    size = row.detach().double().abs().nan_to_num(torch.inf, torch.inf)
    top = size.topk(min(MOST_VALUES, len(row))).indices.tolist()
    return [(unit, float(row[unit])) for unit in top]
