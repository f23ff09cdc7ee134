"""Generate texts first, then read the full sequences in one teacher-forced forward pass.

This gives the states of prompt and generated tokens for every decoding method (beams, sampling,
speculation), the last token included, at the cost of one more forward. Where rows stay in their
place while a model generates (greedy, sampling), ``record`` takes the states as they arise.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.tap.generating.generation import Generation
from sonde.tap.generating.growing import Marks
from sonde.tap.generating.recorder import RecordedOutput, StepRecorder
from sonde.tap.generating.settings import settings_of
from sonde.tap.model.fingerprint import fingerprint
from sonde.tap.rows.padding import left_padded


def replay(
    model: Model | nn.Module, inputs: Inputs, *, seed: int = 0, **generate: Any
) -> "ReplayInputs":
    """Return inputs whose texts are the prompts continued by the model.

    Positions after the first end-of-text token are masked. Columns: ``prompt_length``,
    ``generated_length`` (both in tokens) and, where ``max_new_tokens`` is given, ``generated``: the
    ids of the generated tokens, -1 after them. Sampling is seeded, so that the stream can be read
    again.

    Parameters
    ----------
    model : Model or nn.Module
        With a ``generate`` method.
    inputs : Inputs
        Prompts.
    seed : int, default=0
        Seed of sampling; the global random state is left alone.
    **generate
        What ``generate`` takes, e.g. ``max_new_tokens=20, num_beams=4``. Where ``stop_strings`` or
        ``stopping_criteria`` end texts, prompts come one by one (``batch_size=1``).
    """
    generate = settings_of(generate)
    model = Model(model) if isinstance(model, nn.Module) else model
    if not callable(getattr(model.module, "generate", None)):
        raise InputError(
            f"replay: expected a model that generates, got {type(model.module).__name__}. "
            "Read it without replay."
        )
    if generate.get("num_return_sequences", 1) != 1:
        raise InputError(
            "replay: expected one generated sequence for each prompt, got several. Repeat "
            "the prompts instead."
        )
    return ReplayInputs(model, inputs, seed, generate)


@dataclass(frozen=True, eq=False)
class ReplayInputs(Inputs):
    """Prompts with generated continuations; made by ``replay``.

    What is sampled depends on the batch. ``units`` says where batches begin, and the end: then any
    range of examples comes in whole batches, with the same texts as in a walk over all examples.
    """

    model: Model
    prompts: Inputs
    seed: int
    generate: dict[str, Any]
    units: tuple[int, ...] = ()

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The groups of the prompts."""
        return self.prompts.group_keys

    @property
    def grouped(self) -> bool:
        """True if the prompts are grouped."""
        return self.prompts.grouped

    @property
    def source_rows(self) -> np.ndarray | None:
        """Index of the data item of each prompt."""
        return self.prompts.source_rows

    @property
    def batch_size(self) -> int:
        """Most texts in a batch, if the prompts limit it."""
        return self.prompts.batch_size  # type: ignore[attr-defined]

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class index of the prompts; empty without labels."""
        return self.prompts.label_names

    @property
    def own_labels(self) -> bool:
        """True if the class indices are the model's own."""
        return self.prompts.own_labels

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on the prompts for the user."""
        return getattr(self.prompts, "notes", ())

    def identity(self) -> dict[str, Any]:
        """Return the identity: prompts, model, seed and settings."""
        return {
            "prompts": self.prompts.identity(),
            "generate": {name: repr(value) for name, value in sorted(self.generate.items())},
            "seed": self.seed,
            "model": fingerprint(self.model.module),
        }

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield batches of prompts with their generated continuations."""
        for batch in self.prompt_batches(start, stop):
            yield self.continued(batch)

    @cached_property
    def generation(self) -> Generation:
        """Generation after the prompts."""
        return Generation(self.model, self.seed, self.generate)

    def prompt_batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield the prompts of a range; with ``units`` every batch that overlaps it."""
        if not self.units:
            yield from self.prompts.batches(start, stop)
            return
        bounds = self.units[bisect_right(self.units, start) - 1 : bisect_left(self.units, stop) + 1]
        for low, high in pairwise(bounds):
            for batch in self.prompts.batches(low, high):
                if bool(((batch.order >= start) & (batch.order < stop)).any()):
                    yield batch

    def extended(self, prompts: InputBatch) -> InputBatch:
        """Return prompts padded by their last token to the maximal generated length."""
        prompts = left_padded(prompts)
        ids = prompts.kwargs["input_ids"]
        more = ids[:, -1:].expand(-1, self.generation.new_tokens or 1)
        return self.generation.as_text(prompts, torch.cat((ids, more), dim=1))

    def record(
        self, prompts: InputBatch, tapped_sites: Mapping[str, RecordedOutput]
    ) -> tuple[InputBatch, StepRecorder]:
        """Return a batch with its continuations, padded on the left, and its rows at some sites.

        The recorder has no rows if the model did not run over each token once, in order: then read
        the batch.
        """
        prompts, generation = left_padded(prompts), self.generation
        marks = Marks(prompts, generation.ends(), generation.special_ids())
        length = prompts.kwargs["input_ids"].shape[1] + (generation.new_tokens or 0)
        recorder = StepRecorder(self.model.module, tapped_sites, marks, length)
        sequences, cache = generation.run(prompts, recorder)
        batch = generation.as_text(prompts, sequences)
        if cache is not None:
            recorder.last_token(sequences, batch.kwargs["attention_mask"], cache)
        return batch, recorder

    def continued(self, batch: InputBatch) -> InputBatch:
        """Return a batch of prompts with their generated continuations."""
        generation = self.generation
        prompts = batch if generation.is_pair else left_padded(batch)
        sequences, _ = generation.run(prompts, None)
        if generation.is_pair:
            return generation.as_target(prompts, sequences)
        return generation.as_text(prompts, sequences)


@dataclass(frozen=True, eq=False)
class StandIns(Inputs):
    """Batches with the expected shapes of replayed inputs; only decoders generate for them."""

    replayed: ReplayInputs

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The groups of the prompts."""
        return self.replayed.group_keys

    @property
    def grouped(self) -> bool:
        """True if the prompts are grouped."""
        return self.replayed.grouped

    def identity(self) -> dict[str, Any]:
        """Return the identity of the replayed inputs."""
        return self.replayed.identity()

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield prompts at their maximal length."""
        if self.replayed.generation.is_pair:
            return self.replayed.batches(start, stop)
        return map(self.replayed.extended, self.replayed.prompts.batches(start, stop))
