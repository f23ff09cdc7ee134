"""Answers whose tokens come from vLLM, which continues the prompts of many requests at once."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, final

from torch import Tensor

from sonde.engines.vllm import NewTokens, SharedEngine, sampling_settings
from sonde.serving.chat_pieces import TextPieces, TokenProbability
from sonde.serving.chat_requests import Settings
from sonde.serving.continuing import Continued, Continuing
from sonde.serving.verdicts import Verdict

InThread = Callable[[Callable[[], None]], Awaitable[None]]


@final
class EngineAnswers:
    """Continues prompts in vLLM; the detectors read the states that vLLM computed.

    Parameters
    ----------
    model : Continuing
    engine : SharedEngine
    in_thread : callable
        Runs a function in the thread of the model, where the detectors read.
    """

    def __init__(self, model: Continuing, engine: SharedEngine, in_thread: InThread) -> None:
        self._model, self._engine, self._in_thread = model, engine, in_thread
        self._ready_for: Any = self  # no calibration yet

    async def answer(
        self,
        ids: list[int],
        settings: Settings,
        pieces: TextPieces,
        on_prompt: Callable[[Verdict | None], bool],
    ) -> Continued:
        """Continue one prompt.

        Parameters
        ----------
        ids : list of int
        settings : Settings
        pieces : TextPieces
        on_prompt : callable
            Called with the verdict on the prompt before the first token is handed on; False ends
            the answer there.
        """
        model, loop = self._model, asyncio.get_running_loop()
        steps: asyncio.Queue[NewTokens | Exception] = asyncio.Queue()
        reads = model.served.fitted is not None
        if self._ready_for is not model.served.fitted:
            await self._in_thread(self._keep_states)
        wanted = model.room(ids, settings)
        config = getattr(model.model.module, "generation_config", None)
        chosen = sampling_settings(settings.for_generate(), config)
        name = self._engine.begin(
            ids,
            lambda step: loop.call_soon_threadsafe(steps.put_nowait, step),
            ends=() if reads else model.ends(),  # with a probe the end is read too
            holds=reads,
            max_tokens=wanted + reads,
            seed=settings.seed if chosen["temperature"] else None,
            logprobs=settings.logprobs,
            **chosen,
        )
        prompt, whole, length = None, None, None
        try:
            step = await _next(steps)
            if reads:
                prompt = await self._verdict(ids, [], step.prompt or {})
                self._engine.resume(name)
            if not on_prompt(prompt):
                pieces.cancelled.set()
            n_new = len(step.tokens)
            _hand_on(pieces, step, wanted, settings.logprobs)
            while not (pieces.is_over or len(pieces.ids) >= wanted or step.is_last):
                step = await _next(steps)
                n_new += len(step.tokens)
                _hand_on(pieces, step, wanted, settings.logprobs)
            pieces.end()
            while reads and n_new <= len(pieces.ids) and not pieces.cancelled.is_set():
                n_new += len((await _next(steps)).tokens)
            if reads and not pieces.cancelled.is_set():
                length = len(ids) + len(pieces.ids)
        finally:
            ending = self._engine.end(name, length)
        if length is not None:
            states = await asyncio.shield(asyncio.wrap_future(ending))
            whole = await self._verdict(ids, pieces.ids, states)
            self._engine.resume(name)
        return Continued(pieces, prompt, whole)

    def _keep_states(self) -> None:
        if self._ready_for is not (fitted := self._model.served.fitted):
            self._engine.keep(self._model.read_blocks())
            self._ready_for = fitted

    async def _verdict(
        self, ids: list[int], new: list[int], states: dict[str, Tensor]
    ) -> Verdict | None:
        verdicts: list[Verdict | None] = []

        def judge() -> None:
            verdicts.append(self._model.verdict_of_states(ids, new, states))

        await self._in_thread(judge)
        return verdicts[0]


async def _next(steps: "asyncio.Queue[NewTokens | Exception]") -> NewTokens:
    step = await steps.get()
    if isinstance(step, Exception):
        raise step
    return step


def _hand_on(pieces: TextPieces, step: NewTokens, wanted: int, n_likely: int | None) -> None:
    """Hand the tokens of a step on to the text, with their probabilities if they are asked for."""
    for i, token in enumerate(step.tokens[: wanted - len(pieces.ids)]):
        probability = None
        if step.logprobs:
            likely = step.likely[i][:n_likely]  # behind them the token itself may follow
            probability = TokenProbability(token, step.logprobs[i], likely)
        pieces.add(token, probability)
