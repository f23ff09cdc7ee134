"""Requests of a vLLM that its user runs: hand over the states of each finished request."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sonde.core.errors import InputError
from sonde.engines._engine import WORKER, sampling_params
from sonde.engines._module import Shell
from sonde.engines._orders import Order, Orders, as_states, take

Check = Callable[[Mapping[str, str], Mapping[str, Tensor]], None]
"""Raises unless vLLM has the blocks, by the classes of its modules, and the expected states."""
CLOSE: Sequence[Order] = (("sonde_watch", ([], [])), ("sonde_drop", (None,)))


@dataclass(eq=False)
class FinishedText:
    """The completions of one prompt.

    Parameters
    ----------
    name : str
        Name of the request.
    n : int
        Number of completions that were asked for.
    prompt : list of int
    answers : dict of int to list of int
        Tokens of each completion so far.
    """

    name: str
    n: int
    prompt: list[int] = field(default_factory=list[int])
    answers: dict[int, list[int]] = field(default_factory=dict[int, list[int]])

    def add(self, output: Any, *, pieces: bool = False) -> None:
        """Add what vLLM returned; with ``pieces`` only the new tokens are in it."""
        self.prompt = list(output.prompt_token_ids or ())
        for one in output.outputs:
            before = self.answers.get(one.index, []) if pieces else []
            self.answers[one.index] = before + list(one.token_ids)

    def names(self) -> list[str]:
        """Return the names of vLLM's own requests: one request for each completion."""
        return [self.name] if self.n == 1 else [f"{i}_{self.name}" for i in range(self.n)]

    def lengths(self) -> dict[str, int]:
        """Return the number of positions with states by name of request."""
        each = enumerate(self.names())
        return {name: len(self.prompt) + len(self.answers[i]) - 1 for i, name in each}

    def hand_over(self, shell: Shell, states: list[dict[str, Tensor]]) -> None:
        """Give the states to the hooks on a module."""
        answers = [self.answers[i] for i in range(self.n)]
        shell.hand_over([self.prompt] * self.n, answers, states)


@dataclass(eq=False)
class Requests:
    """Requests of a ``vllm.LLM``, from each step of its engine."""

    llm: Any
    shell: Shell
    finished: Callable[[Any], None] | None
    orders: Orders = field(default_factory=Orders)

    @contextmanager
    def open(self, drawn: list[int], check: Check) -> Iterator[None]:
        """Hand over the states of each request that is finished meanwhile."""
        engine, blocks = self.llm.llm_engine, [*self.shell.blocks]
        names = self._tell([("sonde_modules", ()), ("sonde_watch", (blocks, []))])[0]
        done = self.llm.generate(
            {"prompt_token_ids": drawn}, sampling_params(max_tokens=1), use_tqdm=False
        )
        taken = self._tell([take({done[0].request_id: len(drawn)}), *CLOSE])
        check(names, as_states(taken[0])[0])
        step = engine.step

        def watched_step() -> list[Any]:
            self._tell(self.orders.update(self.shell.module, self.shell.blocks))
            outputs = step()
            for output in outputs:
                if output.finished:
                    self._finish(output)
            if not engine.has_unfinished_requests():
                self._tell([("sonde_drop", (None,))])  # those that were aborted
            return outputs

        engine.step = watched_step
        try:
            yield
        finally:
            engine.step = step
            self._tell(CLOSE)

    def _tell(self, orders: Sequence[Order]) -> list[Any]:
        return [self.llm.collective_rpc(method, args=args)[0] for method, args in orders]

    def _finish(self, output: Any) -> None:
        if self.orders.watched:
            text = FinishedText(output.request_id, len(output.outputs))
            text.add(output)
            text.hand_over(self.shell, as_states(self._tell([take(text.lengths())])[0]))
        if self.finished is not None:
            self.finished(output)


@dataclass(eq=False)
class AsyncRequests:
    """Requests of an ``AsyncLLM``; each is handed over in the task that reads its answer."""

    llm: Any
    shell: Shell
    finished: Callable[[Any], None] | None
    orders: Orders = field(default_factory=Orders)
    _is_checked: bool = False
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    @contextmanager
    def open(self, drawn: list[int], check: Check) -> Iterator[None]:
        """Hand over the states of each request that is finished meanwhile."""
        generate = self.llm.generate

        async def begin() -> None:
            if not self._is_checked:
                blocks, name = [*self.shell.blocks], "sonde-check"
                names = await self._ask(("sonde_modules", ()))
                await self._ask(("sonde_watch", (blocks, [])))
                one = sampling_params(max_tokens=1)
                async for _ in generate({"prompt_token_ids": drawn}, one, name):
                    pass
                check(names, as_states(await self._ask(take({name: len(drawn)})))[0])
                await self._ask(CLOSE[0])
                self._is_checked = True
            for order in self.orders.update(self.shell.module, self.shell.blocks):
                await self._ask(order)

        async def watched_generate(
            prompt: Any, sampling_params: Any, request_id: str, **settings: Any
        ) -> AsyncIterator[Any]:
            async with self._lock:
                await begin()
            text = FinishedText(request_id, int(sampling_params.n or 1))
            pieces = sampling_params.output_kind.name == "DELTA"
            try:
                async for output in generate(prompt, sampling_params, request_id, **settings):
                    text.add(output, pieces=pieces)
                    if output.finished:
                        await self._finish(output, text)
                    yield output
            finally:
                await self._ask(("sonde_drop", (text.names(),)))

        self.llm.generate = watched_generate
        try:
            yield
        finally:
            self.llm.generate = generate

    async def _ask(self, order: Order) -> Any:
        method, args = order
        return (await self.llm.collective_rpc(method, args=args))[0]

    async def _finish(self, output: Any, text: FinishedText) -> None:
        if self.orders.watched:
            states = as_states(await self._ask(take(text.lengths())))
            text.hand_over(self.shell, states)
        if self.finished is not None:
            self.finished(output)


def require_states(config: Any) -> None:
    """Raise if a vLLM was started so that the states of some tokens are missing or not the model's.

    Parameters
    ----------
    config : vllm.config.VllmConfig

    Raises
    ------
    InputError
        With what to pass instead.
    """
    parallel = config.parallel_config
    wrong = {
        f'worker_extension_cls="{WORKER}"': parallel.worker_extension_cls != WORKER,
        "enforce_eager=True (captured graphs run no hooks)": not config.model_config.enforce_eager,
        "enable_prefix_caching=False (cached tokens have no states)": bool(
            config.cache_config.enable_prefix_caching
        ),
        "no speculative_config (rejected tokens leave states)": config.speculative_config
        is not None,
        "tensor_parallel_size=1, pipeline_parallel_size=1 (states of several ranks are not read)": (
            max(parallel.tensor_parallel_size, parallel.pipeline_parallel_size) > 1
        ),
        "no enable_lora (an adapter makes it another model; merge it into a folder)": (
            config.lora_config is not None
        ),
    }
    if missing := [advice for advice, is_wrong in wrong.items() if is_wrong]:
        raise InputError(
            f"engine vllm: expected a vLLM that was started with {missing[0]}. Start it again so."
        )
