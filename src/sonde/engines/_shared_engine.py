"""A running vLLM that answers many callers at once, as a server does."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.engines._engine import require_room, require_vllm, sampling_params, start_llm
from sonde.engines._orders import Order, Orders, as_states, take
from sonde.engines._request_loop import RequestLoop

States = dict[str, Tensor]
_GIVEN: ContextVar[list[States] | None] = ContextVar("sonde_given_states", default=None)
_OF_MODULES: "WeakKeyDictionary[nn.Module, SharedEngine]" = WeakKeyDictionary()


@final
@dataclass(frozen=True, eq=False)
class NewTokens:
    """Tokens that one step of vLLM added to a text.

    Parameters
    ----------
    tokens : tuple of int
    likely : tuple of tuple of (int, float)
        For each token the most likely tokens with their log probabilities, the likeliest first, and
        the token itself; empty if they were not asked for.
    logprobs : tuple of float
        Of each token, before temperature; empty as ``likely``.
    prompt : dict of str to Tensor or None
        States of the prompt by block, with the first token.
    is_last : bool
        True if vLLM has ended the text.
    """

    tokens: tuple[int, ...]
    likely: tuple[tuple[tuple[int, float], ...], ...]
    logprobs: tuple[float, ...]
    prompt: States | None
    is_last: bool


Deliver = Callable[[NewTokens | Exception], object]


@final
class SharedEngine:
    """A running vLLM whose workers take states, for callers in many threads.

    Parameters
    ----------
    llm : vllm.LLM
    room : int
        Most tokens of a text with what is generated after it.

    Attributes
    ----------
    orders : Orders
        What its workers do at present.
    kept : tuple of str
        Blocks whose states are taken of each text, whatever reads the module meanwhile.
    """

    def __init__(self, llm: Any, room: int) -> None:
        self.room, self.orders = room, Orders()
        self.kept: tuple[str, ...] = ()
        self._loop, self._numbers = RequestLoop(llm), count()
        self._open: set[str] = set()  # texts whose states may still be asked for
        self._read: set[str] = set()  # unfinished texts of ``run``

    @classmethod
    def start(
        cls, folder: str, dtype: torch.dtype, context: int | None, options: Mapping[str, Any]
    ) -> "SharedEngine":
        """Start vLLM with the model of a folder."""
        return cls(*start_llm(folder, dtype, context, options))

    @property
    def is_busy(self) -> bool:
        """True if a text is unfinished, or its states may still be asked for."""
        return bool(self._open) or self._loop.is_busy

    def attach(self, module: nn.Module) -> None:
        """Let ``shared_engine`` return this engine for a module."""
        _OF_MODULES[module] = self

    def follow(self, root: nn.Module, blocks: Mapping[str, nn.Module]) -> None:
        """Take the states that hooks on a module read now; unfinished texts lose none."""

        def update() -> None:
            kept = (*self.kept, *self.orders.watched) if self.is_busy else self.kept
            orders = self.orders.update(root, blocks, kept)
            if self.orders.edits:
                raise InputError("engine vllm: expected no open edit on a model that is served.")
            self._tell(orders)

        context = copy_context()  # says what is open on the module
        self._loop.call(lambda: context.run(update)).result()

    def tell(self, orders: Sequence[Order]) -> list[Any]:
        """Give orders to the workers; return the answers of the first worker."""
        return self._loop.call(lambda: self._tell(orders)).result()

    def modules(self) -> dict[str, str]:
        """Return the class of each module in vLLM, by name."""
        return self.tell([("sonde_modules", ())])[0]

    def run(
        self, texts: Sequence[list[int]], settings: Sequence[Any]
    ) -> tuple[list[list[int]], list[States]]:
        """Continue texts; return the new tokens of each, and its states at the watched blocks.

        Parameters
        ----------
        texts : sequence of list of int
        settings : sequence of vllm.SamplingParams
            For each text.
        """
        if (given := _GIVEN.get()) is not None:
            return [[] for _ in texts], given
        require_room(self.room, texts, settings)
        results = [Future[tuple[list[int], States]]() for _ in texts]

        def begin() -> None:
            self._loop.resume()  # who judges may be the thread that waits for these texts
            for ids, params, result in zip(texts, settings, results, strict=True):
                name = f"read-{next(self._numbers)}"
                self._loop.add(name, ids, params, partial(self._finished, name, ids, result))
                self._read.add(name)

        self._loop.call(begin).result()
        each = [result.result() for result in results]
        return [tokens for tokens, _ in each], [states for _, states in each]

    def _finished(
        self, name: str, ids: list[int], result: "Future[tuple[list[int], States]]", output: Any
    ) -> None:
        if isinstance(output, Exception):
            self._read.discard(name)
            result.set_exception(output)
        elif output.finished:
            self._read.discard(name)
            new = list(output.outputs[0].token_ids)
            result.set_result((new, self._states(name, len(ids) + len(new) - 1)))

    def keep(self, blocks: tuple[str, ...]) -> None:
        """Take the states behind some blocks of each text from now on."""

        def update() -> None:
            self.kept = blocks
            more = self.orders.watched if self.is_busy else ()
            watched = tuple(dict.fromkeys((*blocks, *more)))
            self.orders.watched = watched
            self._tell([("sonde_watch", ([*watched], []))])

        self._loop.call(update).result()

    def begin(
        self,
        ids: list[int],
        deliver: Deliver,
        *,
        ends: Sequence[int] = (),
        holds: bool = False,
        **settings: Any,
    ) -> str:
        """Begin to continue a text; return the name by which it must be ended.

        Parameters
        ----------
        ids : list of int
            The prompt.
        deliver : callable
            Takes the tokens of each step, or the error that ended the text, in another thread.
        ends : sequence of int
            Tokens after which vLLM ends the text.
        holds : bool, default=False
            After the first tokens vLLM waits for ``resume``, a tenth of a second at most.
        **settings
            Those of ``vllm.SamplingParams``.
        """
        name = f"text-{next(self._numbers)}"
        kinds = require_vllm().sampling_params.RequestOutputKind
        params = sampling_params(
            detokenize=False,
            ignore_eos=True,  # ``ends`` says which tokens end a text
            stop_token_ids=list(ends),
            output_kind=kinds.DELTA,
            **settings,
        )
        is_first = True

        def seen(output: Any) -> None:
            nonlocal is_first
            if isinstance(output, Exception):
                deliver(output)
                return
            prompt = self._states(name, len(ids), forget=False) if is_first else None
            if is_first and holds and not self._read:
                self._loop.hold(name)
            is_first = False
            deliver(_new_tokens(output, prompt))

        def add() -> None:
            self._open.add(name)
            try:
                self._loop.add(name, ids, params, seen)
            except Exception as error:
                deliver(error)

        self._loop.call(add)
        return name

    def resume(self, name: str) -> None:
        """Let vLLM go on after the first tokens of a text that holds it."""
        self._loop.call(lambda: self._loop.resume(name))

    def end(self, name: str, length: int | None = None) -> "Future[States]":
        """End a text; return the states of its first positions, or none.

        Parameters
        ----------
        name : str
        length : int, optional
            Positions with states; vLLM then waits for ``resume``, as after the first tokens.
        """

        def states() -> States:
            try:
                return {} if length is None else self._states(name, length)
            finally:
                self._open.discard(name)
                self._loop.end(name)
                if length is not None and not self._read:
                    self._loop.hold(name)
                self._tell([("sonde_drop", ([name] if self.is_busy else None,))])

        return self._loop.call(states)

    def _states(self, name: str, length: int, *, forget: bool = True) -> States:
        if not self.orders.watched:
            return {}
        return as_states(self._tell([take({name: length}, forget=forget)])[0])[0]

    def _tell(self, orders: Sequence[Order]) -> list[Any]:
        llm = self._loop.llm
        return [llm.collective_rpc(method, args=args)[0] for method, args in orders]


def shared_engine(module: nn.Module) -> SharedEngine | None:
    """Return the vLLM that runs a module for many callers, or None."""
    return _OF_MODULES.get(module)


@contextmanager
def given_states(states: States) -> Iterator[None]:
    """Let the next forward passes over one text take its states from here, not from vLLM."""
    token = _GIVEN.set([states])
    try:
        yield
    finally:
        _GIVEN.reset(token)


def _new_tokens(output: Any, prompt: States | None) -> NewTokens:
    one = output.outputs[0]
    tokens = tuple(one.token_ids)
    each = list(one.logprobs or ())
    ranked = [sorted(likely.items(), key=lambda item: item[1].rank) for likely in each]
    return NewTokens(
        tokens,
        tuple(tuple((token, float(x.logprob)) for token, x in likely) for likely in ranked),
        tuple(float(x[token].logprob) for token, x in zip(tokens, each, strict=False)),
        prompt,
        bool(output.finished),
    )
