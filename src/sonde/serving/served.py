"""The model with its detectors: from the items of requests to answers, batch by batch."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from sonde.core.batch import Batch
from sonde.core.errors import InputError, StateError
from sonde.core.inputs import InputBatch, Model
from sonde.data import load
from sonde.data.encoder import Prepared
from sonde.data.inputs import ItemInputs
from sonde.data.opening import class_names
from sonde.data.processors import is_image_processor, is_tokenizer
from sonde.data.sources import Row
from sonde.run.bundles.fitted import Fitted
from sonde.run.instruments.entries import Key
from sonde.run.reading.read import read
from sonde.run.reading.recipe import recipe_in
from sonde.run.scoring.batches import check_scoring
from sonde.run.scoring.invariant import InvariantReader, shape_of_item
from sonde.run.scoring.opening import open_for
from sonde.serving.verdicts import Verdict, Verdicts
from sonde.tap import LiveStream


@dataclass(frozen=True)
class Item:
    """One input, ready for a batch.

    Parameters
    ----------
    prepared : Prepared
    key : bytes
        Its own 16 bytes; nothing of the input is in it.
    shape : hashable
        What inputs of one batch must share.
    """

    prepared: Prepared
    key: bytes
    shape: Hashable


@dataclass(frozen=True)
class Answer:
    """What the model and the detectors say of one input.

    Parameters
    ----------
    answer : str, int, float, list or None
        The class, or the number that the model gives; None if it gives none, or none is finite.
    probability : float or None
        Of the class.
    verdict : Verdict or None
        None without detectors.
    """

    answer: Any = None
    probability: float | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Answered:
    """Answers of one forward, and the rows that the traffic's statistics are made of."""

    answers: tuple[Answer, ...]
    batch: Batch = field(repr=False)


class ServedModel:
    """A model and what was fitted on it, ready to answer.

    Parameters
    ----------
    model : Model, nn.Module, str
    fitted : Fitted, path or None
    alpha : float
        False-alarm rate of the verdicts.
    largest : int
        Most inputs of one forward.
    options : dict
        Named options of ``sonde.read`` that say how items become inputs.

    Raises
    ------
    StateError
        If the probe was fitted on another model, or holds no detector.
    """

    def __init__(
        self,
        model: Any,
        fitted: Fitted | str | Path | None,
        *,
        alpha: float = 0.05,
        largest: int = 32,
        options: dict[str, Any] | None = None,
    ) -> None:
        if not 0 < alpha < 1:
            raise InputError(f"serve: expected a false-alarm rate in (0, 1), got {alpha}.")
        self.model: Model = load(model)
        self.fitted = Fitted.load(fitted) if isinstance(fitted, str | Path) else fitted
        self.alpha, self.largest, self.options = alpha, largest, dict(options or {})
        self.verdicts = None if self.fitted is None else Verdicts(self.fitted, alpha)
        self._names = class_names(self.model) or {}
        self._reader: InvariantReader | None = None
        sample = self._sample()
        if sample is not None:
            self.open(sample)

    @property
    def name(self) -> str:
        """The name of the model in addresses: letters, digits, points, dashes."""
        raw = (self.model.name or type(self.model.module).__name__).rstrip("/").rpartition("/")[2]
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in raw) or "model"

    @property
    def is_open(self) -> bool:
        """Whether it is known how items become inputs; else the first request tells."""
        return self._reader is not None

    @property
    def most(self) -> int:
        """The most inputs of one forward."""
        return self.largest if self._reader is None else self._reader.largest

    @property
    def stream(self) -> LiveStream:
        """How the model is read."""
        return self._open_reader.stream

    @property
    def inputs(self) -> ItemInputs:
        """How items become inputs."""
        found = self.stream.inputs
        assert isinstance(found, ItemInputs)  # what ``open`` makes
        return found

    @property
    def _open_reader(self) -> InvariantReader:
        if self._reader is None:
            raise StateError("serve: no item has said yet how items become inputs.")
        return self._reader

    def open(self, row: Row) -> None:
        """Learn from one item how items become inputs, and check that the probe fits the model.

        Raises
        ------
        InputError, StateError
            If the model cannot read such items, or the probe belongs to another model.
        """
        self._reader = self._reader_for(self.fitted, row)

    def _reader_for(self, fitted: Fitted | None, row: Row) -> InvariantReader:
        options = {"check": False, "batch_size": self.largest, **self.options}
        if self.model.task == "causal":
            options["logits"] = True
        if fitted is None:
            stream = read(self.model, [row], **options)
            last = stream.schema[-1]
            stream = read(self.model, [row], sites=[last.site], reducer=last.reducer, **options)
        else:
            stream = open_for(fitted, self.model, [row], **options)
            check_scoring(fitted, stream, 0)
        if not isinstance(stream, LiveStream) or not isinstance(stream.inputs, ItemInputs):
            raise InputError(
                f"serve: expected a model that reads items, got {stream!r}. Serve the model that "
                "the probe was fitted on."
            )
        return InvariantReader(stream, fitted, self.largest)

    def calibrated(self, path: str | Path) -> None:
        """Take the detectors of another file, calibrated anew; the next batch uses them.

        Raises
        ------
        StateError
            If the file was fitted on another model, or holds other detectors.
        """
        fitted = Fitted.load(path)
        if self.fitted is None or [*fitted.scorers] != [*self.fitted.scorers]:
            raise StateError(
                "serve: expected a calibration of the detectors that are served. Calibrate the "
                "probe that the server was started with."
            )
        verdicts = Verdicts(fitted, self.alpha)
        if self._reader is not None:
            check_scoring(fitted, self.stream, 0)
            self._reader = InvariantReader(self.stream, fitted, self.largest)
        self.fitted, self.verdicts = fitted, verdicts

    def _sample(self) -> Row | None:
        """Return an item that shows how items become inputs, or None if only a request can."""
        recipe = {} if self.fitted is None else recipe_in(self.fitted.header)
        typed = {**recipe.get("options", {}), **self.options}
        if columns := typed.get("number_columns") or recipe.get("columns"):
            names = columns.split(",") if isinstance(columns, str) else columns
            return dict.fromkeys(names, 0.0)
        if is_tokenizer(self.model.processor):
            names = str(typed.get("text_column") or "text").split(",")
            return dict.fromkeys(names, "a")
        if self.model.task == "image_classifier" or is_image_processor(self.model.processor):
            from PIL import Image

            return {str(typed.get("image_column") or "image"): Image.new("RGB", (32, 32))}
        return None

    def prepare(self, rows: Sequence[Row], keys: Sequence[bytes], tokens: int | None) -> list[Item]:
        """Return rows of one request, ready for a batch.

        Raises
        ------
        InputError
            If the model cannot read a row.
        """
        if self._reader is None:
            self.open(rows[0])
        inputs = self.inputs
        pieces = inputs.encoder.pieces(rows)
        for i, mine in enumerate(pieces):
            if len(mine) != 1 or (tokens is not None and mine[0].length > tokens):
                most = getattr(inputs.encoder, "max_length", None) if tokens is None else tokens
                raise InputError(
                    f"input {i}: expected a text of at least one and at most {most} tokens. "
                    "Shorten it, or cut it into several."
                )
        prepared = inputs.encoder.prepare(rows, [(i, 0) for i in range(len(rows))])
        inputs.encoder.collate(prepared[:1])
        return [Item(one, key, shape_of_item(one)) for one, key in zip(prepared, keys, strict=True)]

    def answer(self, items: Sequence[Item]) -> Answered:
        """Return the answers to items of one shape."""
        reader, inputs, verdicts = self._open_reader, self.inputs, self.verdicts

        def make(numbers: Sequence[int]) -> InputBatch:
            chosen = [items[i] for i in numbers]
            return inputs.collated([i.prepared for i in chosen], [i.key for i in chosen])

        found = reader.read(make, len(items))
        n = len(items)
        said = self._said(found.batch, n)
        judged = [None] * n if verdicts is None else verdicts.of(found.scored, n)
        answers = (
            Answer(answer, probability, verdict)
            for (answer, probability), verdict in zip(said, judged, strict=True)
        )
        return Answered(tuple(answers), found.batch)

    def _said(self, batch: Batch, n: int) -> list[tuple[Any, float | None]]:
        """Return the model's own answer to each input, and its probability."""
        if batch.logits is None:
            return [(None, None)] * n
        logits = batch.logits[:n].float().cpu()
        fine = torch.isfinite(logits).all(dim=1).tolist()
        if logits.shape[1] == 1:
            return [
                (x if ok else None, None) for x, ok in zip(logits[:, 0].tolist(), fine, strict=True)
            ]
        most = logits.softmax(1).max(1)
        return [
            (self._named(i), p) if ok else (None, None)
            for i, p, ok in zip(most.indices.tolist(), most.values.tolist(), fine, strict=True)
        ]

    def _named(self, number: int) -> Any:
        if self.model.task == "causal" and is_tokenizer(self.model.processor):
            return self.model.processor.decode([number])
        names = () if self.fitted is None else self.fitted.label_names
        if number in self._names:
            return self._names[number]
        return names[number] if number < len(names) else number

    @cached_property
    def detectors(self) -> tuple[Key, ...]:
        """The detectors and sites of the probe."""
        return () if self.fitted is None else tuple(self.fitted.scorers)
