"""Generate first, then read: full sequences as inputs for one teacher-forced forward.

This gives the states of prompt and generated tokens for every decoding method (beams, sampling,
speculation), the last token included, at the cost of one more forward.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Inputs, Model
from sonde.tap._hooks import Session
from sonde.tap._inputs import left_padded
from sonde.tap._vary import moved, placement
from sonde.tap.fingerprint import fingerprint

NO_PROMPT = frozenset({"labels", "decoder_input_ids", "decoder_attention_mask", "position_ids"})


def replay(
    model: Model | nn.Module, inputs: Inputs, *, seed: int = 0, **generate: Any
) -> "ReplayInputs":
    """Return inputs whose texts are the prompts with what the model generates after them.

    Positions after the first end-of-text token are masked. The column ``prompt_length`` says where
    the generated part begins. Sampling is seeded, so that the stream can be read again.

    Parameters
    ----------
    model : Model or nn.Module
        With a ``generate`` method.
    inputs : Inputs
        Prompts.
    seed : int, default=0
        Seed of sampling; the global random state is left alone.
    **generate
        What ``generate`` takes, e.g. ``max_new_tokens=20, num_beams=4``.
    """
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
    """Prompts with generated continuations; made by ``replay``."""

    model: Model
    prompts: Inputs
    seed: int
    generate: dict[str, Any]

    @property
    def group_keys(self) -> Sequence[bytes]:
        """The groups of the prompts."""
        return self.prompts.group_keys

    @property
    def grouped(self) -> bool:
        """Whether the prompts are grouped."""
        return self.prompts.grouped

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
        for batch in self.prompts.batches(start, stop):
            yield self._continued(batch)

    def _continued(self, batch: InputBatch) -> InputBatch:
        config = self.model.config or self.model.module.__dict__.get("config")
        is_pair = bool(getattr(config, "is_encoder_decoder", False))
        prompts = batch if is_pair else left_padded(batch)
        sequences = self._generated(prompts)
        if is_pair:
            return self._as_target(prompts, sequences)
        n = prompts.kwargs["input_ids"].shape[1]
        mask = torch.cat((_mask(prompts), self._alive(sequences[:, n:])), dim=1)
        return replace(
            prompts,
            kwargs=_kept(prompts.kwargs) | {"input_ids": sequences, "attention_mask": mask.long()},
            mask=mask,
            special=self._special(prompts, sequences, mask),
            length=mask.sum(dim=1),
            columns=prompts.columns | {"prompt_length": _mask(prompts).sum(dim=1)},
        )

    def _as_target(self, prompts: InputBatch, sequences: Tensor) -> InputBatch:
        start = torch.ones(len(sequences), 1, dtype=torch.bool)
        mask = torch.cat((start, self._alive(sequences[:, 1:])), dim=1)
        target = {"decoder_input_ids": sequences, "decoder_attention_mask": mask.long()}
        return replace(prompts, kwargs=_kept(prompts.kwargs) | target, decoder_mask=mask)

    def _generated(self, prompts: InputBatch) -> Tensor:
        module = self.model.module
        place = placement(module)
        _, kwargs = moved(place, (), _kept(prompts.kwargs))
        devices = [place[0]] if place[0].type == "cuda" else []
        settings = {"pad_token_id": self._pad()} | self.generate
        with Session(module), torch.random.fork_rng(devices=devices), torch.no_grad():
            torch.manual_seed(self.seed + int(prompts.order[0]))
            out = module.generate(**kwargs, **settings, return_dict_in_generate=False)  # type: ignore[operator]
        return out.cpu()

    def _ends(self) -> list[int]:
        config = getattr(self.model.module, "generation_config", None)
        ends = self.generate.get("eos_token_id", getattr(config, "eos_token_id", None))
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    def _pad(self) -> int:
        config = getattr(self.model.module, "generation_config", None)
        pad = getattr(config, "pad_token_id", None)
        return pad if pad is not None else next(iter(self._ends()), 0)

    def _alive(self, generated: Tensor) -> Tensor:
        """Return which tokens stand up to and including the first end of text."""
        ended = torch.isin(generated, torch.tensor(self._ends(), dtype=generated.dtype))
        return (ended.long().cumsum(dim=1) - ended.long()) == 0

    def _special(self, prompts: InputBatch, sequences: Tensor, mask: Tensor) -> Tensor | None:
        if prompts.special is None:
            return None
        ids = getattr(self.model.processor, "all_special_ids", None) or self._ends()
        n = prompts.special.shape[1]
        new = torch.isin(sequences[:, n:], torch.tensor(ids, dtype=sequences.dtype))
        return torch.cat((prompts.special, new), dim=1) & mask


def _mask(batch: InputBatch) -> Tensor:
    if batch.mask is not None:
        return batch.mask
    return torch.ones(batch.kwargs["input_ids"].shape, dtype=torch.bool)


def _kept(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in NO_PROMPT}
