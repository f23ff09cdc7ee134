"""The module of transformers whose forward pass and ``generate`` are vLLM's."""

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.generation.utils import GenerateDecoderOnlyOutput

from sonde.core.errors import InputError
from sonde.engines._engine import Engine, sampling_params
from sonde.engines._shared_engine import SharedEngine

States = list[dict[str, Tensor]]
UNREAD = (
    "Read blocks (--sites blocks), or leave out --engine vllm to read the model with transformers."
)
KNOWN = frozenset({"do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty"})
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (None, 1),
    "use_cache": (None, True, False),
    "logits_processor": (None, []),
}
"""Further settings of ``generate``, with the values that change nothing."""
_HANDING: ContextVar[bool] = ContextVar("sonde_states_of_vllm", default=False)


@dataclass(eq=False)
class ReadPositions:
    """Stands for the key-value cache of texts that vLLM has read.

    Parameters
    ----------
    length : int
        Positions of the texts so far, padding among them.
    last : list of dict of str to Tensor
        States of one more token of each text, if they are known.
    """

    length: int = 0
    last: States = field(default_factory=list[dict[str, Tensor]])

    def get_seq_length(self) -> int:
        """Return the number of positions."""
        return self.length


@dataclass(eq=False)
class Shell:
    """The forward pass and ``generate`` of a module that vLLM runs.

    Parameters
    ----------
    module : nn.Module
    engine : Engine, SharedEngine or None
        None if vLLM is run by its user: then the module stays as it is but for ``hand_over``.
    blocks : dict of str to nn.Module
    """

    module: nn.Module
    engine: Engine | SharedEngine | None
    blocks: dict[str, nn.Module] = field(repr=False)

    def attach(self) -> None:
        """Let the module take states of vLLM, and ask vLLM for them if the module has an engine."""
        for block in self.blocks.values():
            block.forward = _or_given(block.forward)  # type: ignore[method-assign]
        if self.engine is None:
            forward = _or_states(self.module.forward, self.forward)
            self.module.forward = forward  # type: ignore[method-assign]
        else:
            self.module.forward = self.forward  # type: ignore[method-assign]
            self.module.generate = self.generate  # type: ignore[assignment]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: ReadPositions | None = None,
        states: States | None = None,
        use_cache: bool = True,
    ) -> dict[str, Any]:
        """Give the states of texts to the hooks on each block.

        Parameters
        ----------
        input_ids : Tensor
        attention_mask : Tensor, optional
            Real tokens, those of earlier calls first.
        past_key_values : ReadPositions, optional
            The texts that these tokens go on from.
        states : list of dict of str to Tensor, optional
            States of each text's tokens by block; by default those of the last token that are
            known, or those that vLLM computes.
        use_cache : bool, default=True
            Has no effect.
        """
        if states is None and past_key_values is not None:
            states = past_key_values.last or None
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        before = real.shape[-1] - input_ids.shape[-1]
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if real.ndim != 2 or before != past or (past and states is None):
            raise InputError(
                f"engine vllm: expected whole texts and a mask of shape {tuple(input_ids.shape)}, "
                f"got a mask of {tuple(real.shape)} after {past} tokens. {UNREAD}"
            )
        real = real[:, before:].bool()
        chosen = [i for i in range(len(input_ids)) if states or bool(real[i].any())]
        if states is None:
            states = self._computed([input_ids[i][real[i]].tolist() for i in chosen])
        for path in states[0] if states else ():
            first = states[0][path]
            whole = first.new_zeros(*input_ids.shape, first.shape[1])
            for i, of_text in zip(chosen, states, strict=True):
                whole[i, real[i]] = of_text[path]
            token = _HANDING.set(True)
            try:
                self.blocks[path](whole)
            finally:
                _HANDING.reset(token)
        return {}

    def _computed(self, texts: Sequence[list[int]]) -> States:
        """Return the states of whole texts at the blocks that are hooked."""
        engine = cast(Engine | SharedEngine, self.engine)
        engine.follow(self.module, self.blocks)
        if not engine.orders.watched:
            return []
        one = sampling_params(max_tokens=1, temperature=0, detokenize=False)
        return engine.run(texts, [one] * len(texts))[1]

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        max_new_tokens: int = 20,
        return_dict_in_generate: bool = False,
        streamer: Any = None,
        **settings: Any,
    ) -> Any:
        """Continue texts, padded on the left; the settings are those of transformers.

        Hooks on blocks get the states afterwards: those of the prompts in one forward pass, those
        of the generated tokens but the last in another one. A streamer gets all tokens at the end.

        Returns
        -------
        Tensor, or an output with the tensor as ``sequences``
        """
        engine = cast(Engine | SharedEngine, self.engine)
        ends, pad = self._ends(settings), settings.pop("pad_token_id", None)
        how = sampling_settings(settings, getattr(self.module, "generation_config", None))
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        texts = [ids[mask].tolist() for ids, mask in zip(input_ids, real.bool(), strict=True)]
        seed = torch.initial_seed()
        engine.follow(self.module, self.blocks)
        is_recorded = bool(return_dict_in_generate and engine.orders.watched)
        is_recorded = is_recorded and not engine.orders.edits  # these depend on the step
        longest = max(map(len, texts)) + max_new_tokens
        one_more = is_recorded and longest < engine.room  # so that the last token is read
        each = [
            sampling_params(
                max_tokens=max_new_tokens + one_more,
                stop_token_ids=ends,
                ignore_eos=True,  # the model's own end; ``ends`` says which count
                detokenize=False,
                seed=None if how["temperature"] == 0 else (seed + i) % 2**63,
                **how,
            )
            for i in range(len(texts))
        ]
        filler = pad if pad is not None else next(iter(ends), 0)
        new, states = engine.run(texts, each)
        answers = [tokens[:max_new_tokens] for tokens in new]
        cache = None
        if engine.orders.watched:
            if is_recorded:
                self._complete(texts, answers, states)
            given = (input_ids.cpu(), real.cpu(), filler)
            cache = self.hand_over(texts, answers, states, given, whole=is_recorded)
        tail = _padded(answers, "right", filler)[0].to(input_ids.dtype)
        sequences = torch.cat((input_ids.cpu(), tail), dim=1)
        if streamer is not None:
            streamer.put(input_ids.cpu())
            for token in tail.T:
                streamer.put(token)
            streamer.end()
        if not return_dict_in_generate:
            return sequences
        return GenerateDecoderOnlyOutput(
            sequences=sequences,  # type: ignore[arg-type]
            past_key_values=cache if is_recorded else None,  # type: ignore[arg-type]
        )

    def _complete(self, prompts: list[list[int]], answers: list[list[int]], states: States) -> None:
        """Read texts again whose last token vLLM has not read, as it ended them."""
        pairs = zip(prompts, answers, strict=True)
        whole = [prompt + answer for prompt, answer in pairs]
        lacking = [
            i
            for i, (text, of_text) in enumerate(zip(whole, states, strict=True))
            if len(text) > len(next(iter(of_text.values())))
        ]
        if lacking:
            computed = self._computed([whole[i] for i in lacking])
            for i, of_text in zip(lacking, computed, strict=True):
                states[i] = of_text

    def hand_over(
        self,
        prompts: Sequence[list[int]],
        answers: Sequence[list[int]],
        states: States,
        given: tuple[Tensor, Tensor, int] | None = None,
        *,
        whole: bool = False,
    ) -> ReadPositions:
        """Give the states of finished texts to the hooks on the module, as ``generate`` would.

        Parameters
        ----------
        prompts, answers : sequence of list of int
            Tokens of each text.
        states : list of dict of str to Tensor
            By block, for each token but the last.
        given : tuple of Tensor, Tensor and int, optional
            The prompts with padding, their mask, and the token behind shorter answers.
        whole : bool, default=False
            States of all tokens are there: the last token of each answer but the longest ones is
            handed over too, and the last one of these is kept for one more forward pass.

        Returns
        -------
        ReadPositions
        """
        ids, real, filler = (*_padded(prompts, "left"), 0) if given is None else given
        parts = list(zip(states, [len(prompt) for prompt in prompts], strict=True))
        texts, width = ReadPositions(), max(map(len, answers))
        first = [_cut(of_text, 0, n) for of_text, n in parts]
        fed = [answer[: width - 1] if whole else answer[:-1] for answer in answers]
        further, more = _padded(fed, "right", filler, width - 1)
        rest = [
            _cut(of_text, n, n + len(tokens))
            for (of_text, n), tokens in zip(parts, fed, strict=True)
        ]
        with torch.no_grad():
            self.module(input_ids=ids, attention_mask=real, past_key_values=texts, states=first)
            texts.length = ids.shape[1]
            if width > 1 and bool(more.any()):
                mask = torch.cat((real, more), dim=1)
                self.module(
                    input_ids=further, attention_mask=mask, past_key_values=texts, states=rest
                )
        if whole:
            texts.length += width - 1
            texts.last = [_cut(of_text, n + width - 1, n + width, 1) for of_text, n in parts]
        return texts

    def _ends(self, settings: dict[str, Any]) -> list[int]:
        config = getattr(self.module, "generation_config", None)
        ends = settings.pop("eos_token_id", getattr(config, "eos_token_id", None))
        return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def _or_given(own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a block's forward pass that returns states of vLLM as they are."""

    @wraps(own)
    def forward(states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return states if _HANDING.get() else own(states, *args, **kwargs)

    return forward


def _or_states(own: Callable[..., Any], given: Callable[..., Any]) -> Callable[..., Any]:
    """Return a module's forward pass that takes ``states`` of vLLM too."""

    @wraps(own)
    def forward(*args: Any, states: States | None = None, **kwargs: Any) -> Any:
        if states is None:
            return own(*args, **kwargs)
        return given(*args, states=states, **kwargs)

    return forward


def _cut(states: dict[str, Tensor], start: int, stop: int, least: int = 0) -> dict[str, Tensor]:
    """Return the states of some positions; zeros fill them up to ``least`` positions."""
    parts = {path: x[start:stop] for path, x in states.items()}
    return {
        path: x if len(x) >= least else x.new_zeros(least, x.shape[1]) for path, x in parts.items()
    }


def _padded(
    texts: Sequence[list[int]], side: str, filler: int = 0, width: int | None = None
) -> tuple[Tensor, Tensor]:
    """Return texts of several lengths as one tensor, and the mask of their tokens."""
    width = max(map(len, texts)) if width is None else width
    ids = torch.full((len(texts), width), filler)
    real = torch.zeros(len(texts), width, dtype=torch.long)
    for i, text in enumerate(texts):
        start = width - len(text) if side == "left" else 0
        ids[i, start : start + len(text)] = torch.tensor(text, dtype=torch.long)
        real[i, start : start + len(text)] = 1
    return ids, real


def sampling_settings(settings: Mapping[str, Any], config: Any) -> dict[str, Any]:
    """Return settings of ``generate`` in vLLM's words; refuse those that have none."""
    for name, value in settings.items():
        if name in KNOWN or value is None or value in PLAIN.get(name, ()):
            continue
        raise InputError(
            f"engine vllm: expected settings of generate among {', '.join(sorted(KNOWN))}, got "
            f"{name}={value!r}. Leave it out, or leave engine out."
        )

    def of(name: str, default: Any) -> Any:
        value = settings.get(name, getattr(config, name, None))
        return default if value is None else value

    samples = bool(of("do_sample", False))
    plain = {"temperature": 0.0, "repetition_penalty": float(of("repetition_penalty", 1.0))}
    if not samples:
        return plain
    return plain | {
        "temperature": float(of("temperature", 1.0)),
        "top_k": int(of("top_k", 50)) or -1,
        "top_p": float(of("top_p", 1.0)),
        "min_p": float(of("min_p", 0.0)),
    }
