"""One call of ``generate`` and its texts, with columns that mark the generated tokens."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sonde.core.errors import InputError
from sonde.core.inputs import InputBatch, Model
from sonde.core.model_config import is_encoder_decoder
from sonde.tap.generating.recorder import StepRecorder
from sonde.tap.hooks.cache import NAMES, cache_of, counts_positions
from sonde.tap.hooks.session import Session
from sonde.tap.model.input_types import place_of
from sonde.tap.model.seeding import gpus_of, seed_devices

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
    *NAMES,
)


@dataclass(frozen=True)
class Generation:
    """Continue prompts by a model's ``generate``.

    Parameters
    ----------
    model : Model
    seed : int
        With the number of a batch's first prompt, the seed of sampling.
    chosen : dict of str to value
        What ``generate`` is given.
    """

    model: Model
    seed: int
    chosen: dict[str, Any]

    @property
    def new_tokens(self) -> int | None:
        """Largest number of generated tokens, or None if ``max_new_tokens`` is not given."""
        return self.chosen.get("max_new_tokens")

    @property
    def is_pair(self) -> bool:
        """True if an encoder reads the prompts and a decoder generates."""
        return is_encoder_decoder(self.model.config or self.model.module.__dict__.get("config"))

    @property
    def keeps_rows_in_place(self) -> bool:
        """True if the rows of a batch keep their order during generation."""
        chosen = self.chosen
        beams = self._setting("num_beams")
        is_moved = any(chosen.get(name) is not None for name in MOVING)
        plain = beams in (None, 1) and chosen.get("use_cache", True) and not is_moved
        return bool(plain) and not self.is_pair

    def run(self, prompts: InputBatch, recorder: StepRecorder | None) -> tuple[Tensor, Any]:
        """Return the sequences, and the cache if a recorder needs it."""
        self._check_ends(prompts)
        module = self.model.module
        _, kwargs = place_of(module, prompts).call((), _kept(prompts.kwargs))
        settings = {"pad_token_id": self._pad()} | self.chosen
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
                    f"replay: {type(module).__name__}.generate does not take {self.chosen} "
                    f"after prompts of up to {n} tokens: {error}"
                ) from error
        if recorder is None:
            return out.cpu(), None
        cache = cache_of(out)  # a recurrent state takes no mask of the tokens before
        return out.sequences.cpu(), cache if counts_positions(cache) else None

    def as_text(self, prompts: InputBatch, sequences: Tensor) -> InputBatch:
        """Return prompts, padded on the left, followed by the generated tokens."""
        n = prompts.kwargs["input_ids"].shape[1]
        alive = self._alive(sequences[:, n:])
        mask = torch.cat((mask_of(prompts), alive), dim=1)
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
            sink=None,  # of the prompts alone
            length=mask.sum(dim=1),
            columns=prompts.columns
            | {"prompt_length": mask_of(prompts).sum(dim=1)}
            | self._generated(sequences[:, n:], alive),
        )

    def as_target(self, prompts: InputBatch, sequences: Tensor) -> InputBatch:
        """Return the encoder's prompts with the sequences that the decoder generated."""
        start = torch.ones(len(sequences), 1, dtype=torch.bool)
        alive = self._alive(sequences[:, 1:])
        mask = torch.cat((start, alive), dim=1)
        target = {"decoder_input_ids": sequences, "decoder_attention_mask": mask.long()}
        columns = prompts.columns | {"prompt_length": mask_of(prompts).sum(dim=1)}
        return replace(
            prompts,
            kwargs=_kept(prompts.kwargs) | target,
            decoder_mask=mask,
            columns=columns | self._generated(sequences[:, 1:], alive),
        )

    def _generated(self, tokens: Tensor, alive: Tensor) -> dict[str, Tensor]:
        """Return the columns about generated tokens; ids are padded to ``max_new_tokens``."""
        columns = {"generated_length": alive.sum(dim=1)}
        if self.new_tokens is None:
            return columns
        ids = torch.full((len(tokens), self.new_tokens), NO_TOKEN)
        ids[:, : tokens.shape[1]] = tokens.masked_fill(~alive, NO_TOKEN)
        return columns | {"generated": ids}

    def _setting(self, name: str) -> Any:
        """Return a setting given to ``generate``, else from the model's generation config."""
        config = getattr(self.model.module, "generation_config", None)
        return self.chosen.get(name, getattr(config, name, None))

    def _check_ends(self, prompts: InputBatch) -> None:
        """Raise for several prompts without an end token, since padding would look like text."""
        names = [name for name in STOPPING if self._setting(name)]
        if names and len(prompts) > 1:
            raise InputError(
                f"replay: expected one prompt at a time, got {len(prompts)} in a batch: texts "
                f"end by {' and '.join(names)}, and padding after such an end cannot be "
                "recognised. Pass batch_size=1 (--batch-size 1), or name the end by "
                "eos_token_id."
            )

    def ends(self) -> list[int]:
        """Return the tokens that end a text."""
        ends = self._setting("eos_token_id")
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)

    def special_ids(self) -> list[int]:
        """Return the tokens that the tokenizer declares special, or those that end a text."""
        return list(getattr(self.model.processor, "all_special_ids", None) or self.ends())

    def _pad(self) -> int:
        pad = self._setting("pad_token_id")
        return pad if pad is not None else next(iter(self.ends()), 0)

    def _alive(self, generated: Tensor) -> Tensor:
        """Return the mask of tokens up to and including the first end token."""
        ended = torch.isin(generated, torch.tensor(self.ends(), dtype=generated.dtype))
        return (ended.long().cumsum(dim=1) - ended.long()) == 0

    def _special(self, prompts: InputBatch, sequences: Tensor, mask: Tensor) -> Tensor | None:
        if prompts.special is None:
            return None
        n = prompts.special.shape[1]
        special = torch.tensor(self.special_ids(), dtype=sequences.dtype)
        new = torch.isin(sequences[:, n:], special)
        return torch.cat((prompts.special, new), dim=1) & mask


def token_arguments(prompts: InputBatch) -> dict[str, Tensor]:
    """Return the prompts' arguments that have a value per token, except ids and mask.

    A new token takes the value of the last token, as in ``generate`` with ``token_type_ids``.
    """
    shape = prompts.kwargs["input_ids"].shape
    return {
        name: x
        for name, x in _kept(prompts.kwargs).items()
        if name not in ("input_ids", "attention_mask")
        and isinstance(x, Tensor)
        and x.shape[:2] == shape
    }


def mask_of(batch: InputBatch) -> Tensor:
    """Return the mask of prompt tokens without padding."""
    if batch.mask is not None:
        return batch.mask
    return torch.ones(batch.kwargs["input_ids"].shape, dtype=torch.bool)


def _kept(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in NO_PROMPT}
