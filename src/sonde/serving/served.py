"""The model with its detectors: from items of requests to answers, in batches."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sonde.core.batch import Batch
from sonde.core.errors import InputError, SondeError, StateError
from sonde.core.inputs import InputBatch, Model
from sonde.data.encoder import LongText, Prepared
from sonde.data.inputs import ItemInputs
from sonde.data.processors import is_image_processor, is_tokenizer
from sonde.data.sources import Row
from sonde.data.text_encoding import context_of
from sonde.run.fitting.fitted import Fitted, as_fitted
from sonde.run.fitting.live_model import require_live_model
from sonde.run.instruments.entries import Key
from sonde.run.reading.load import load
from sonde.run.reading.read import read
from sonde.run.reading.recipe import recipe_in
from sonde.run.scoring.batches import check_scoring
from sonde.run.scoring.invariant import InvariantReader, shape_of_item
from sonde.run.scoring.opening import open_for
from sonde.serving.class_names import names_of_outputs
from sonde.serving.refusals import Refusal
from sonde.serving.unusual_columns import UnusualColumn, scales_in, unusual_columns
from sonde.serving.verdicts import Verdict, Verdicts
from sonde.tap import LiveStream
from sonde.tap.generating.generation import Generation
from sonde.tap.generating.replay import ReplayInputs
from sonde.tap.model.placement import placement

PADDED_INPUTS = ("text", "pair", "messages", "tokens")
PLAIN_INPUTS = (*PADDED_INPUTS, "numbers", "tensor")
MOST_SHAPES = 10_000
"""Shapes of items that are remembered."""
MOST_TRIED = 3
"""Arrays of whole numbers that are tried as floats."""


@dataclass(frozen=True)
class Cut:
    """Tokens of a text that was cut at the end.

    Parameters
    ----------
    n_read : int
        Tokens that the model read.
    n_given : int
        Tokens of the whole text.
    """

    n_read: int
    n_given: int


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
    length : int, default=1
        Its tokens. The longest input of a batch has less than twice as many as the shortest.
    columns : tuple of UnusualColumn or None, default=None
        Of a row of a table, if the probe knows where its columns usually lie.
    cut : Cut or None, default=None
        Tokens of a text that is longer than the model reads; None for a whole text.
    content : bytes, default=b""
        Hash of the input, by which repetitions are known; it stays in memory. Empty without a
        probe.
    numbers : mapping of str to float
        The columns of a row of a table whose calibration is known.
    caller : bytes, default=b""
        Hash of the name of the caller; it stays in memory. Empty without a name.
    """

    prepared: Prepared
    key: bytes
    shape: Hashable
    length: int = 1
    columns: tuple[UnusualColumn, ...] | None = None
    cut: Cut | None = None
    content: bytes = b""
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])
    caller: bytes = b""


@dataclass(frozen=True)
class Answer:
    """The model's answer to one input, and the detectors' verdict.

    Parameters
    ----------
    answer : str, int, float, list or None
        The class, or the number that the model gives; None if it gives none, or none is finite.
    probability : float or None
        Of the class.
    verdict : Verdict or None
        None without detectors.
    columns, cut
        See ``Item``.
    refusal : Refusal or None, default=None
        Why this input was not answered, although others of its request were.
    ignored : tuple of str, default=()
        Names that the input has and the model does not read.
    """

    answer: Any = None
    probability: float | None = None
    verdict: Verdict | None = None
    columns: tuple[UnusualColumn, ...] | None = None
    cut: Cut | None = None
    refusal: Refusal | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answered:
    """Answers of one forward pass, and the rows for the traffic's statistics."""

    answers: tuple[Answer, ...]
    batch: Batch = field(repr=False)


class ServedModel:
    """A model with its fitted detectors, ready to answer.

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
    batch_invariant : bool, default=False
        Whether scores have the same bits in any batch.

    Raises
    ------
    StateError
        If the probe was fitted on another model, or holds no detector.

    Attributes
    ----------
    floats : tuple of str
        Names of the arrays that the model reads as floats.
    classes : tuple of str or None
        Names of a classifier's outputs; None for other models, and before the form of the inputs is
        known.
    """

    def __init__(
        self,
        model: Any,
        fitted: Fitted | str | Path | None,
        *,
        alpha: float = 0.05,
        largest: int = 32,
        options: dict[str, Any] | None = None,
        batch_invariant: bool = False,
    ) -> None:
        if not 0 < alpha < 1:
            raise InputError(f"serve: expected a false-alarm rate in (0, 1), got {alpha}.")
        self.model: Model = load(model)
        self.fitted = None if fitted is None else as_fitted(fitted, "serve")
        self.batch_invariant = batch_invariant
        self.alpha, self.largest, self.options = alpha, largest, dict(options or {})
        self.verdicts = None if self.fitted is None else Verdicts(self.fitted, alpha)
        self.column_scales = scales_in(self.fitted)
        self.classes: tuple[str, ...] | None = None
        self._reader: InvariantReader | None = None
        self.floats: tuple[str, ...] = ()
        self._known = set[Hashable]()
        sample = self._sample()
        if sample is not None:
            self.open(sample)
        elif self.fitted is not None:  # before a client could be told that its input is wrong
            require_live_model(self.fitted.header, self.model, "serve", same_dtype=True)

    @property
    def name(self) -> str:
        """The model's name in addresses: letters, digits, dots, dashes."""
        raw = (self.model.name or type(self.model.module).__name__).rstrip("/").rpartition("/")[2]
        return "".join(c if c.isalnum() or c in "._-" else "-" for c in raw) or "model"

    @cached_property
    def float_type(self) -> Any:
        """The NumPy type for floats of a request: double precision if the model has it."""
        _, dtype = placement(self.model.module)
        return np.float64 if dtype == torch.float64 else np.float32

    @property
    def is_open(self) -> bool:
        """True if the form of the inputs is known; else the first request determines it."""
        return self._reader is not None

    @property
    def most(self) -> int:
        """The largest number of inputs in one forward pass."""
        return self.largest if self._reader is None else self._reader.largest

    @property
    def stream(self) -> LiveStream:
        """The stream through which the model is read."""
        return self._open_reader.stream

    @property
    def inputs(self) -> ItemInputs:
        """The conversion of items to inputs."""
        prompts = prompts_of(self.stream)
        assert prompts is not None  # what ``open`` makes
        return prompts

    @property
    def has_plain_inputs(self) -> bool:
        """True if inputs are texts or numbers, which are quick to decode."""
        return self.inputs.encoder.kind in PLAIN_INPUTS

    @property
    def generation(self) -> Generation | None:
        """The generation after prompts; None if the model only reads."""
        replay = self.stream.inputs
        return replay.generation if isinstance(replay, ReplayInputs) else None

    @property
    def _open_reader(self) -> InvariantReader:
        if self._reader is None:
            raise StateError(
                "serve: the form of the inputs is not known before the first request. Send a "
                "request first."
            )
        return self._reader

    def open(self, row: Row) -> None:
        """Determine the form of inputs from one item, and check that the probe fits the model.

        Raises
        ------
        InputError, StateError
            If the model cannot read such items, or the probe belongs to another model.
        """
        reader = self._reader_for(self.fitted, row)
        self.classes = self._names_of_outputs(reader.stream)
        if self.classes is None and self.options.get("classes"):
            raise InputError(
                "serve: expected a classifier with --classes, got a model without one output for "
                "each class. Leave out --classes, or serve the model that ends in its logits."
            )
        self._reader = reader

    def _names_of_outputs(self, stream: LiveStream) -> tuple[str, ...] | None:
        if self.model.task == "causal" or isinstance(stream.inputs, ReplayInputs):
            return None
        logits = stream.first_batch().logits
        if logits is None or logits.ndim != 2 or logits.shape[1] < 2:
            return None
        header = {} if self.fitted is None else self.fitted.header
        typed = self.options.get("classes") or recipe_in(header).get("options", {}).get("classes")
        return names_of_outputs(self.model, typed, header.get("data", {}), logits.shape[1])

    def _open_with(self, row: Row) -> None:
        """Determine the form of inputs and the float columns from a request's first row.

        JSON has one kind of number: a float of a client may arrive as a whole number. Arrays of
        whole numbers are tried as they are, then as floats.
        """
        arrays = {name: x for name, x in row.items() if isinstance(x, np.ndarray)}
        floats = tuple(name for name, x in arrays.items() if x.dtype.kind == "f")
        whole = [name for name in arrays if name not in floats][:MOST_TRIED]
        first: Exception | None = None
        for more in (each for n in range(len(whole) + 1) for each in combinations(whole, n)):
            try:
                self.open(_with_floats(row, more, self.float_type))
            except (SondeError, RuntimeError, TypeError, ValueError, IndexError) as error:
                first = first or error
            else:
                self.floats = (*floats, *more)
                return
        assert first is not None  # the row as it is was tried
        raise first

    def _reader_for(self, fitted: Fitted | None, row: Row) -> InvariantReader:
        options = {"check": False, "batch_size": self.largest, **self.options}
        kept = {} if fitted is None else recipe_in(fitted.header).get("options", {})
        if self.model.task == "causal" and not (options.get("generate") or kept.get("generate")):
            options["logits"] = True
        if fitted is None:
            stream = read(self.model, [row], **options)
            last = stream.schema[-1]
            stream = read(self.model, [row], sites=[last.site], reducer=last.reducer, **options)
        else:
            stream = open_for(fitted, self.model, [row], **options)
            check_scoring(fitted, stream, 0)
        if not isinstance(stream, LiveStream) or prompts_of(stream) is None:
            raise InputError(
                f"serve: expected a model that reads items, got {stream!r}. Serve the model that "
                "the probe was fitted on."
            )
        if isinstance(stream.inputs, ReplayInputs) and stream.inputs.generation.new_tokens is None:
            raise InputError(
                "serve: expected max_new_tokens among the settings of generation, because this "
                "setting limits the time of a request. Pass --generate max_new_tokens=64, and "
                "fit the probe with it."
            )
        return InvariantReader(stream, fitted, self.largest)

    def calibrated(self, path: str | Path) -> None:
        """Replace the calibration of the detectors; it applies from the next batch on.

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
        self.fitted, self.verdicts, self.column_scales = fitted, verdicts, scales_in(fitted)

    def _sample(self) -> Row | None:
        """Return an item from which the form of inputs follows, or None if unavailable."""
        recipe = {} if self.fitted is None else recipe_in(self.fitted.header)
        typed = {**recipe.get("options", {}), **self.options}
        if columns := typed.get("number_columns") or recipe.get("columns"):
            names = columns.split(",") if isinstance(columns, str) else columns
            return dict.fromkeys(names, 0.0)
        if is_tokenizer(self.model.processor):
            names = str(typed.get("text_column") or "text").split(",")
            return dict.fromkeys(names, "a")
        takes_pixels = recipe.get("pixels") or typed.get("image_mean") is not None
        is_for_images = self.model.task == "image_classifier" or takes_pixels
        if is_for_images or is_image_processor(self.model.processor):
            from PIL import Image

            return {str(typed.get("image_column") or "image"): Image.new("RGB", (32, 32))}
        return None

    def prepare(
        self,
        rows: Sequence[Row],
        keys: Sequence[bytes],
        tokens: int | None,
        callers: Sequence[bytes],
    ) -> list[Item]:
        """Return the rows of one request, ready for a batch.

        Parameters
        ----------
        rows : sequence of Row
        keys : sequence of bytes
            16 bytes for each row that reveal nothing about it.
        tokens : int or None
            Largest number of tokens of a row; None for that of the model.
        callers : sequence of bytes
            A hash of the name of each row's caller.

        Raises
        ------
        InputError
            If the model cannot read a row.
        Refusal
            413 for an input with more tokens.
        """
        if self._reader is None:
            self._open_with(rows[0])
        rows = [_with_floats(row, self.floats, self.float_type) for row in rows]
        encoder, most = self.inputs.encoder, self._most_tokens(tokens)
        is_text = encoder.kind in PADDED_INPUTS
        cuts = {} if is_text else self._check_pieces(rows, range(len(rows)), most)
        prepared = encoder.prepare(rows, [(i, 0) for i in range(len(rows))])
        if is_text:
            cuts = self._check_texts(rows, [one.length for one in prepared], most)
        for one in {shape_of_item(one): one for one in prepared}.values():
            self._check_form(one)
        scales = self.column_scales
        return [
            Item(
                one,
                key,
                self._shape(one),
                one.length,
                unusual_columns(row, scales) if scales else None,
                cuts.get(i),
                b"" if self.verdicts is None else encoder.key(row),
                {name: float(row[name]) for name in scales if name in row},
                caller,
            )
            for i, (one, key, row, caller) in enumerate(
                zip(prepared, keys, rows, callers, strict=True)
            )
        ]

    def _check_form(self, item: Prepared) -> None:
        """Raise if a batch cannot be built from an item; known shapes are not tried."""
        shape = shape_of_item(item)
        if shape in self._known and self.has_plain_inputs:
            return
        self.inputs.encoder.collate([item])
        if len(self._known) < MOST_SHAPES:
            self._known.add(shape)

    def _check_texts(
        self, rows: Sequence[Row], lengths: Sequence[int], most: int | None
    ) -> dict[int, Cut]:
        """Refuse texts that are empty or too long, by the tokens of their first pieces.

        Returns
        -------
        dict of int to Cut
            The texts that are cut at the end, by number.
        """
        context = getattr(self.inputs.encoder, "max_length", None)
        if most is not None and max(lengths) > most:
            raise _too_long(most)
        whole = range(1, max(lengths) + 1 if context is None else context)
        doubtful = [i for i, length in enumerate(lengths) if length not in whole]
        return self._check_pieces(rows, doubtful, most)

    def _check_pieces(
        self, rows: Sequence[Row], which: Sequence[int], most: int | None
    ) -> dict[int, Cut]:
        """Refuse inputs that are more than one example, or too long; return those that are cut."""
        context = getattr(self.inputs.encoder, "max_length", None)
        cuts: dict[int, Cut] = {}
        for i in which:
            try:
                pieces = self.inputs.encoder.pieces([rows[i]])[0]
            except LongText:
                raise _too_long(context) from None
            if len(pieces) != 1 or (most is not None and pieces[0].length > most):
                raise _too_long(context if most is None else most)
            if pieces[0].truncated:
                cuts[i] = Cut(pieces[0].length, pieces[0].length + pieces[0].truncated)
        return cuts

    def _shape(self, item: Prepared) -> Hashable:
        """Return the key that inputs of one batch share; with detectors, their exact shape.

        Texts are padded without detectors, and if bits may depend on the batch; never for a model
        that takes no mask.
        """
        encoder, may_pad = self.inputs.encoder, self.verdicts is None or not self.batch_invariant
        if may_pad and encoder.kind in PADDED_INPUTS and not encoder.even:
            return None
        return shape_of_item(item)

    def _most_tokens(self, tokens: int | None) -> int | None:
        """Return the token limit of a text; for a prompt, new tokens must fit as well."""
        generation, context = self.generation, self._context
        if generation is None or generation.new_tokens is None or context is None:
            return tokens
        room = context - generation.new_tokens
        return room if tokens is None else min(tokens, room)

    def answer(self, items: Sequence[Item]) -> Answered:
        """Return the answers to items of one shape."""
        reader, inputs, verdicts = self._open_reader, self.inputs, self.verdicts

        def make(numbers: Sequence[int]) -> InputBatch:
            chosen = [items[i] for i in numbers]
            return inputs.collated([i.prepared for i in chosen], [i.key for i in chosen])

        n = len(items)
        if self.generation is None:
            is_padded = verdicts is not None and not self.batch_invariant
            read = reader.read_padded(make(range(n))) if is_padded else reader.read(make, n)
            texts = self._said(read.batch, n)
        else:
            read = reader.read_generated(make(range(n)))
            texts = [(text, None) for text in self._texts(read.batch)]
        judged = [None] * n if verdicts is None else verdicts.of(read.scored, n)
        answers = (
            Answer(answer, probability, verdict, item.columns, item.cut)
            for (answer, probability), verdict, item in zip(texts, judged, items, strict=True)
        )
        return Answered(tuple(answers), read.batch)

    def _texts(self, batch: Batch) -> list[Any]:
        """Return the text generated after each prompt, or token ids without a tokenizer."""
        each = [[i for i in ids if i >= 0] for ids in batch.extra["generated"].tolist()]
        if not is_tokenizer(self.model.processor):
            return each
        return [self.model.processor.decode(ids, skip_special_tokens=True) for ids in each]

    def _said(self, batch: Batch, n: int) -> list[tuple[Any, float | None]]:
        """Return the model's answer to each input, and its probability."""
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
        if self.classes is not None:
            return self.classes[number]
        if self.model.task == "causal" and is_tokenizer(self.model.processor):
            return self.model.processor.decode([number])
        return number

    @cached_property
    def _context(self) -> int | None:
        return context_of(self.model)

    @cached_property
    def detectors(self) -> tuple[Key, ...]:
        """The detectors and sites of the probe."""
        return () if self.fitted is None else tuple(self.fitted.scorers)


def _with_floats(row: Row, names: Sequence[str], dtype: Any) -> Row:
    """Return a row whose arrays of some names are floats."""
    numbers = {name: row.get(name) for name in names}
    whole = {
        name: x.astype(dtype)
        for name, x in numbers.items()
        if isinstance(x, np.ndarray) and x.dtype.kind == "i"
    }
    return {**row, **whole} if whole else row


def _too_long(most: int | None) -> Refusal:
    return Refusal(
        413,
        f"Expected a text of at most {most} tokens. Shorten the text, or split it into several "
        "inputs.",
    )


def prompts_of(stream: LiveStream) -> ItemInputs | None:
    """Return the items that a stream reads or continues; None if it has no items."""
    inputs = stream.inputs
    prompts = inputs.prompts if isinstance(inputs, ReplayInputs) else inputs
    return prompts if isinstance(prompts, ItemInputs) else None
