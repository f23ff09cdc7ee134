"""Generate first, then read: full sequences as inputs for one teacher-forced forward.

This gives the states of prompt and generated tokens for every decoding method (beams, sampling,
speculation), the last token included, at the cost of one more forward. Where rows stay in their
place while a model generates (greedy, sampling), ``record`` takes the states as they arise.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.tap._growing import Marks
from sonde.tap._hooks import Session
from sonde.tap._inputs import left_padded
from sonde.tap._record import Recorder, Spot
from sonde.tap._vary import moved, placement
from sonde.tap.decoding import settings_of
from sonde.tap.fingerprint import fingerprint
from sonde.tap.seeding import gpus_of, seed_devices

NO_PROMPT = frozenset({"labels", "decoder_input_ids", "decoder_attention_mask", "position_ids"})
NO_TOKEN = -1
STOPPING = ("stop_strings", "stopping_criteria")
MOVING = (
    "assistant_model",
    "prompt_lookup_num_tokens",
    "penalty_alpha",
    "cache_implementation",
    "prefill_chunk_size",
    "custom_generate",
    "past_key_values",
)


def replay(
    model: Model | nn.Module, inputs: Inputs, *, seed: int = 0, **generate: Any
) -> "ReplayInputs":
    """Return inputs whose texts are the prompts with what the model generates after them.

    Positions after the first end-of-text token are masked. Columns: ``prompt_length``,
    ``generated_length`` (both in tokens) and, where ``max_new_tokens`` is given, ``generated``: the
    ids of the generated tokens, -1 behind them. Sampling is seeded, so that the stream can be read
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
            "replay: expected one sequence for each prompt. Repeat the prompts instead."
        )
    return ReplayInputs(model, inputs, seed, generate)


@dataclass(frozen=True, eq=False)
class ReplayInputs(Inputs):
    """Prompts with generated continuations; made by ``replay``.

    What is sampled depends on the batch. With ``units``, where they begin and the end, any range of
    examples comes in whole batches of these, with the texts of a walk over all of them.
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
        """Whether the prompts are grouped."""
        return self.prompts.grouped

    @property
    def source_rows(self) -> np.ndarray | None:
        """Which item of the data each prompt is."""
        return self.prompts.source_rows

    @property
    def batch_size(self) -> int:
        """Most texts of a batch, where the prompts say it."""
        return self.prompts.batch_size  # type: ignore[attr-defined]

    @property
    def new_tokens(self) -> int | None:
        """How many tokens are generated at most, or None where ``max_new_tokens`` is not given."""
        return self.generate.get("max_new_tokens")

    @property
    def label_names(self) -> tuple[str, ...]:
        """The name of each class number of the prompts; empty without labels."""
        return self.prompts.label_names

    @property
    def own_labels(self) -> bool:
        """Whether class numbers are the model's own."""
        return getattr(self.prompts, "own_labels", False)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know about the prompts."""
        return getattr(self.prompts, "notes", ())

    def identity(self) -> dict[str, Any]:
        """Name prompts, model, seed and settings."""
        return {
            "prompts": self.prompts.identity(),
            "generate": {name: repr(value) for name, value in sorted(self.generate.items())},
            "seed": self.seed,
            "model": fingerprint(self.model.module),
        }

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Generate after each batch of prompts."""
        for batch in self.prompt_batches(start, stop):
            yield self.continued(batch)

    def prompt_batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield the prompts of a range; with ``units`` every batch that holds one of them."""
        if not self.units:
            yield from self.prompts.batches(start, stop)
            return
        bounds = self.units[bisect_right(self.units, start) - 1 : bisect_left(self.units, stop) + 1]
        for low, high in pairwise(bounds):
            for batch in self.prompts.batches(low, high):
                if bool(((batch.order >= start) & (batch.order < stop)).any()):
                    yield batch

    def extended(self, prompts: InputBatch) -> InputBatch:
        """Return prompts followed by their last token as often as tokens may be generated."""
        prompts = left_padded(prompts)
        ids = prompts.kwargs["input_ids"]
        more = ids[:, -1:].expand(-1, self.new_tokens or 1)
        return self._as_text(prompts, torch.cat((ids, more), dim=1))

    @property
    def keeps_rows_in_place(self) -> bool:
        """Whether the rows of a batch stay in their order while it is generated from."""
        chosen = self.generate
        beams = self._setting("num_beams")
        is_moved = any(chosen.get(name) is not None for name in MOVING)
        plain = beams in (None, 1) and chosen.get("use_cache", True) and not is_moved
        return bool(plain) and not self.is_pair

    def record(self, prompts: InputBatch, spots: Mapping[str, Spot]) -> tuple[InputBatch, Recorder]:
        """Return a batch with its continuations, padded on the left, and the rows at some spots.

        The recorder has none where the model did not run over each token once, in order: read the
        batch instead.
        """
        prompts = left_padded(prompts)
        marks = Marks(prompts, self._ends(), self._special_ids())
        length = prompts.kwargs["input_ids"].shape[1] + (self.new_tokens or 0)
        recorder = Recorder(self.model.module, spots, marks, length)
        sequences, cache = self._run(prompts, recorder)
        batch = self._as_text(prompts, sequences)
        if cache is not None:
            recorder.last_token(sequences, batch.kwargs["attention_mask"], cache)
        return batch, recorder

    @property
    def is_pair(self) -> bool:
        """Whether an encoder reads the prompts and a decoder generates."""
        config = self.model.config or self.model.module.__dict__.get("config")
        return bool(getattr(config, "is_encoder_decoder", False))

    def continued(self, batch: InputBatch) -> InputBatch:
        """Return a batch of prompts with what is generated after them."""
        prompts = batch if self.is_pair else left_padded(batch)
        sequences, _ = self._run(prompts, None)
        if self.is_pair:
            return self._as_target(prompts, sequences)
        return self._as_text(prompts, sequences)

    def _as_text(self, prompts: InputBatch, sequences: Tensor) -> InputBatch:
        n = prompts.kwargs["input_ids"].shape[1]
        alive = self._alive(sequences[:, n:])
        mask = torch.cat((_mask(prompts), alive), dim=1)
        further = {
            name: torch.cat((x, *[x[:, -1:]] * alive.shape[1]), dim=1)
            for name, x in token_arguments(prompts).items()
        }
        whole = {"input_ids": sequences, "attention_mask": mask.long()}
        return replace(
            prompts,
            kwargs=_kept(prompts.kwargs) | further | whole,
            mask=mask,
            special=self._special(prompts, sequences, mask),
            length=mask.sum(dim=1),
            columns=prompts.columns
            | {"prompt_length": _mask(prompts).sum(dim=1)}
            | self._generated(sequences[:, n:], alive),
        )

    def _as_target(self, prompts: InputBatch, sequences: Tensor) -> InputBatch:
        start = torch.ones(len(sequences), 1, dtype=torch.bool)
        alive = self._alive(sequences[:, 1:])
        mask = torch.cat((start, alive), dim=1)
        target = {"decoder_input_ids": sequences, "decoder_attention_mask": mask.long()}
        columns = prompts.columns | {"prompt_length": _mask(prompts).sum(dim=1)}
        return replace(
            prompts,
            kwargs=_kept(prompts.kwargs) | target,
            decoder_mask=mask,
            columns=columns | self._generated(sequences[:, 1:], alive),
        )

    def _generated(self, tokens: Tensor, alive: Tensor) -> dict[str, Tensor]:
        """Return the columns about what was generated, as wide as the most that can be."""
        columns = {"generated_length": alive.sum(dim=1)}
        if self.new_tokens is None:
            return columns
        ids = torch.full((len(tokens), self.new_tokens), NO_TOKEN)
        ids[:, : tokens.shape[1]] = tokens.masked_fill(~alive, NO_TOKEN)
        return columns | {"generated": ids}

    def _run(self, prompts: InputBatch, recorder: Recorder | None) -> tuple[Tensor, Any]:
        """Return the sequences, and the cache if a recorder asks for it."""
        self._check_ends(prompts)
        module = self.model.module
        place = placement(module)
        _, kwargs = moved(place, (), _kept(prompts.kwargs))
        settings = {"pad_token_id": self._pad()} | self.generate
        session = Session(module) if recorder is None else recorder.session
        with session, torch.random.fork_rng(devices=gpus_of(module)), torch.no_grad():
            seed_devices(module, self.seed + int(prompts.order[0]))
            try:
                out = module.generate(  # type: ignore[operator]
                    **kwargs, **settings, return_dict_in_generate=recorder is not None
                )
            except (TypeError, ValueError, IndexError) as error:
                n = prompts.kwargs["input_ids"].shape[1]
                raise InputError(
                    f"replay: {type(module).__name__}.generate does not take {self.generate} "
                    f"after prompts of up to {n} tokens: {error}"
                ) from error
        if recorder is None:
            return out.cpu(), None
        return out.sequences.cpu(), out.get("past_key_values")

    def _setting(self, name: str) -> Any:
        """Return what was asked of ``generate``, else what the model does by itself."""
        config = getattr(self.model.module, "generation_config", None)
        return self.generate.get(name, getattr(config, name, None))

    def _check_ends(self, prompts: InputBatch) -> None:
        """Refuse several prompts where no token marks the end: padding looks like text there."""
        names = [name for name in STOPPING if self._setting(name)]
        if names and len(prompts) > 1:
            raise InputError(
                f"replay: expected prompts one by one where texts end by {' and '.join(names)}, as "
                f"nothing tells the padding behind such an end, got {len(prompts)} in a batch. "
                "Pass batch_size=1 (--batch-size 1), or name the end by eos_token_id."
            )

    def _ends(self) -> list[int]:
        ends = self._setting("eos_token_id")
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    def _special_ids(self) -> list[int]:
        return list(getattr(self.model.processor, "all_special_ids", None) or self._ends())

    def _pad(self) -> int:
        pad = self._setting("pad_token_id")
        return pad if pad is not None else next(iter(self._ends()), 0)

    def _alive(self, generated: Tensor) -> Tensor:
        """Return which tokens stand up to and including the first end of text."""
        ended = torch.isin(generated, torch.tensor(self._ends(), dtype=generated.dtype))
        return (ended.long().cumsum(dim=1) - ended.long()) == 0

    def _special(self, prompts: InputBatch, sequences: Tensor, mask: Tensor) -> Tensor | None:
        if prompts.special is None:
            return None
        n = prompts.special.shape[1]
        special = torch.tensor(self._special_ids(), dtype=sequences.dtype)
        new = torch.isin(sequences[:, n:], special)
        return torch.cat((prompts.special, new), dim=1) & mask


@dataclass(frozen=True, eq=False)
class StandIns(Inputs):
    """Batches of the shapes to expect of replayed inputs; only decoders generate for them."""

    replayed: ReplayInputs

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The groups of the prompts."""
        return self.replayed.group_keys

    @property
    def grouped(self) -> bool:
        """Whether the prompts are grouped."""
        return self.replayed.grouped

    def identity(self) -> dict[str, Any]:
        """Name what is replayed."""
        return self.replayed.identity()

    def batches(self, start: int, stop: int) -> Iterator[InputBatch]:
        """Yield prompts as long as they may become."""
        if self.replayed.is_pair:
            return self.replayed.batches(start, stop)
        return map(self.replayed.extended, self.replayed.prompts.batches(start, stop))


def token_arguments(prompts: InputBatch) -> dict[str, Tensor]:
    """Return what prompts say of each token beside its id; a new token has what the last one has.

    So does ``generate`` with ``token_type_ids``.
    """
    shape = prompts.kwargs["input_ids"].shape
    return {
        name: x
        for name, x in _kept(prompts.kwargs).items()
        if name not in ("input_ids", "attention_mask")
        and isinstance(x, Tensor)
        and x.shape[:2] == shape
    }


def _mask(batch: InputBatch) -> Tensor:
    if batch.mask is not None:
        return batch.mask
    return torch.ones(batch.kwargs["input_ids"].shape, dtype=torch.bool)


def _kept(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in NO_PROMPT}
