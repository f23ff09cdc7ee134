"""Run a model with fewer tokens from block to block; no other module shortens its states."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sonde.core.errors import InputError, SiteError
from sonde.core.inputs import Model
from sonde.core.token_masks import MaskMeaning
from sonde.core.token_rule import InsideTokens, Reduction, TokenRule
from sonde.tap.attention.interface import WITH_MASKS, kernels_through
from sonde.tap.attention.places import asks_interface
from sonde.tap.hooks.cache import require_no_cache
from sonde.tap.hooks.latest import Latest
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import arguments, known_names
from sonde.tap.hooks.session import Followed, Session
from sonde.tap.hooks.sharding import require_whole
from sonde.tap.hooks.stack import require_one_run
from sonde.tap.model.blocks import block_paths

TURNED = "position_embeddings"


@dataclass(frozen=True, eq=False)
class _Step:
    """One reduction, so that it can be undone."""

    place: Int[Tensor, "row token"]  # of each old token among the new ones; -1: dropped
    before: Float[Tensor, "row token dim"]


@dataclass(eq=False)
class _ShorterCall:
    """The tokens in one call of a shortened model.

    Attributes
    ----------
    inside : bool
        Whether the call is between the first block and the end of the last one.
    with_grad : bool
        Whether gradients were on where it began.
    """

    rule: TokenRule
    mask: Tensor | None
    index: Tensor | None = None
    size: Tensor | None = None
    counts: list[int] = field(default_factory=list[int])
    position: Tensor | None = None
    real: Tensor | None = None
    keys: Tensor | None = None
    received: Tensor | None = None
    n_input: Tensor | None = None
    steps: list[_Step] = field(default_factory=list[_Step])
    inside: bool = True
    with_grad: bool = field(default_factory=torch.is_grad_enabled)

    def begin(self, x: Float[Tensor, "row token dim"]) -> None:
        """Record the tokens before the first block."""
        rows, n = x.shape[:2]
        if self.mask is not None and self.mask.shape != (rows, n):
            raise InputError(
                f"shortening: expected a mask of the {rows} x {n} tokens before the first block, "
                f"got {tuple(self.mask.shape)}."
            )
        every = torch.ones(rows, n, dtype=torch.bool, device=x.device)
        self.real = every if self.mask is None else self.mask.to(x.device)
        self.size = self.real.to(x.dtype)
        self.position = torch.arange(n, device=x.device).expand(rows, n)
        self.index = torch.where(self.real, self.position, -1)
        self.n_input = self.real.sum(1)

    def reduce(self, x: Float[Tensor, "row token dim"]) -> Float[Tensor, "row token2 dim"]:
        """Return fewer tokens, chosen by the rule."""
        real, size, index = self.real, self.size, self.index
        assert real is not None
        assert size is not None
        assert index is not None
        assert self.position is not None
        assert self.n_input is not None
        if self.keys is None:
            raise SiteError(
                "shortening: expected in each block an attention layer that takes its kernel "
                "from the AttentionInterface of transformers, got a block without one."
            )
        reduced = self.rule.reduce(InsideTokens(self.keys, self.received, real, size, self.n_input))
        place, member = _places(reduced, real)
        if member.shape[2] == real.shape[1]:
            return x  # nothing became fewer
        weight = (reduced.weight.to(x.dtype) * real)[:, :, None] * member
        share = weight / weight.sum(1, keepdim=True).clamp(min=torch.finfo(x.dtype).tiny)
        self.steps.append(_Step(place, x))
        self.size = (size[:, :, None] * member).sum(1)
        self.real = member.any(1)
        own = torch.arange(place.shape[1], device=x.device).expand_as(place)
        leads = (reduced.leader == own) & real
        first = torch.where(leads, place, member.shape[2])  # the slot behind the last is cut off
        position = self.position.new_zeros(len(x), member.shape[2] + 1)
        self.position = position.scatter(1, first, self.position)[:, :-1]
        self.index = torch.where(index < 0, -1, place.gather(1, index.clamp(min=0)))
        return share.mT @ x

    def restored(self, x: Float[Tensor, "row token2 dim"]) -> Float[Tensor, "row token dim"]:
        """Return a state for each input token: its merged token's state, or its own if dropped."""
        for step in reversed(self.steps):
            at = step.place.clamp(min=0)[..., None].expand(-1, -1, x.shape[2])
            x = torch.where((step.place < 0)[..., None], step.before, x.gather(1, at))
        return x


class Shortening:
    """Tokens kept in the last call of a shortened model.

    It is the last call of the thread or task that asks; if it made none, that of any.
    """

    def __init__(self) -> None:
        self._latest: Latest[_ShorterCall] = Latest()
        self._meaning = MaskMeaning()

    @property
    def index(self) -> Int[Tensor, "row token"] | None:
        """Index of each input token's final token, or -1 if it was dropped."""
        latest = self._latest.get()
        return None if latest is None else latest.index

    @property
    def size(self) -> Float[Tensor, "row token2"] | None:
        """Number of input tokens in each final token; 0 at padding."""
        latest = self._latest.get()
        return None if latest is None else latest.size

    @property
    def counts(self) -> list[int]:
        """Number of columns after each block."""
        latest = self._latest.get()
        return [] if latest is None else latest.counts

    def begin(
        self, rule: TokenRule, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> _ShorterCall:
        """Record the real tokens of a call."""
        named = arguments(module, args, kwargs)
        require_no_cache(named)
        return _ShorterCall(rule, self._meaning.real_in(named, known_names(module)))

    def finish(self, call: _ShorterCall) -> None:
        """Store the call as the last one."""
        call.keys = call.received = call.position = call.real = call.mask = None
        call.steps = []
        self._latest.put(call)


def _places(found: Reduction, real: Bool[Tensor, "row token"]) -> tuple[Tensor, Tensor]:
    """Return each token's new position, and the old tokens of each new one."""
    own = torch.arange(real.shape[1], device=real.device).expand_as(real)
    leader = torch.where(real, found.leader, -1)
    stays = leader == own
    number = stays.long().cumsum(1) - 1
    place = torch.where(leader < 0, -1, number.gather(1, leader.clamp(min=0)))
    new = torch.arange(int(stays.sum(1).max()), device=real.device)
    return place, place[:, :, None] == new


@contextlib.contextmanager
def shortening(
    model: Model | nn.Module, rule: TokenRule, *, here: bool = False
) -> Iterator[Shortening]:
    """Open a model of transformers whose blocks work on fewer and fewer tokens.

    Behind a block for which the rule ``acts`` tokens are merged or dropped, so that later blocks
    have less to do. Behind the last block every token of the input has a state again: that of the
    token that it was merged into, or its own when it was dropped. Outputs keep their shape.
    Batches may be padded. Caches are refused: their layers would hold unlike numbers of tokens.
    The model itself is not changed.

    Parameters
    ----------
    model : Model or nn.Module
        Model of transformers with ``sdpa`` or ``eager`` attention.
    rule : TokenRule
        Rule that removes or merges tokens after blocks.
    here : bool, default=False
        Shorten the calls of the thread or task that opens the block alone; by default those of
        every caller.

    Yields
    ------
    Shortening
        ``index``, ``size`` and ``counts`` are those of the last call.

    Raises
    ------
    SiteError
        If the blocks of the model have no attention whose kernel can be reached.
    """
    module: Any = model.module if isinstance(model, Model) else model
    require_whole("shortening", module)
    names = ModuleNames(module)
    blocks = [names.modules[path] for path in block_paths(names, None)]
    parts = [[m for m in block.modules() if asks_interface(type(m))] for block in blocks]
    config = getattr(module, "config", None)
    kernel = getattr(config, "_attn_implementation", None)
    if not blocks or not all(parts) or kernel not in WITH_MASKS:
        raise SiteError(
            "shortening: expected blocks with an attention of transformers each, run by 'sdpa' or "
            f"'eager', got {len(blocks)} blocks of {type(module).__name__} and {kernel!r}."
        )
    run = Shortening()
    inputs: list[tuple[nn.Module, Any]] = [(module, partial(_without_cache, module))]
    begin, session = partial(run.begin, rule, module), list[Session]()
    now: Callable[[], _ShorterCall | None] = lambda: session[0].state  # noqa: E731
    inputs += [(b, partial(_shorter_arguments, now, b, i)) for i, b in enumerate(blocks)]
    outputs = [(b, partial(_behind, now, i, len(blocks))) for i, b in enumerate(blocks)]
    session.append(
        Session(
            module,
            outputs,
            inputs,
            reading=False,
            follows=[Followed(module, begin, run.finish)],
            owner="shortening",
            here=here,
        )
    )
    attentions = frozenset(id(part) for own in parts for part in own)
    with session[0], kernels_through(partial(_attend, now, attentions), here=here):
        yield run


def _without_cache(module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Run a call without a cache."""
    config: Any = module.config
    return (args, kwargs | {"use_cache": False}) if hasattr(config, "use_cache") else None


def _shorter_arguments(
    now: Callable[[], _ShorterCall | None], block: nn.Module, number: int, args: Any, kwargs: Any
) -> Any:
    """Pass a block the rotations of the remaining tokens."""
    run = now()
    if run is None or not run.inside:
        return None
    require_one_run(f"shortening: {type(block).__name__}", run.with_grad)
    run.keys = run.received = None
    if number == 0:
        run.begin(_states(args, kwargs))
    given, position = kwargs.get(TURNED), run.position
    assert position is not None
    if given is None or not run.steps:
        return None
    if not isinstance(given, tuple) or given[0].ndim != 3:
        raise SiteError(
            "shortening: expected rotary embeddings of shape (row, token, plane), got "
            f"another shape in {type(block).__name__}."
        )
    at = position[..., None]
    each = (x.expand(len(at), -1, -1).gather(1, at.expand(-1, -1, x.shape[2])) for x in given)
    return args, kwargs | {TURNED: tuple(each)}


def _states(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _behind(now: Callable[[], _ShorterCall | None], number: int, n_blocks: int, output: Any) -> Any:
    """Return a block's output with fewer tokens, or with all tokens after the last block."""
    run = now()
    if run is None or not run.inside:
        return None
    x = output if isinstance(output, Tensor) else output[0]
    if run.rule.acts(number, n_blocks) and number < n_blocks - 1:
        x = run.reduce(x)
    run.counts.append(x.shape[1])
    if number == n_blocks - 1:
        x = run.restored(x)
        run.inside = False
    return x if isinstance(output, Tensor) else (x, *output[1:])


def _attend(
    now: Callable[[], _ShorterCall | None],
    attentions: frozenset[int],
    kernel: Callable[..., Any],
    implementation: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Run a kernel on the remaining tokens, and store the values that the rule needs."""
    run = now() if id(module) in attentions else None
    if run is None or not run.inside or run.position is None:
        return kernel(module, query, key, value, attention_mask, *args, **kwargs)
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    run.keys = key.detach()
    if run.steps:
        attention_mask = _mask(run, query, bool(causal))
        kwargs = kwargs | {"is_causal": False}
    if run.rule.asks is not None:
        scale = kwargs.get("scaling")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        run.received = _received(run, query, key, scale)
    return kernel(module, query, key, value, attention_mask, *args, **kwargs)


def _mask(run: _ShorterCall, query: Tensor, causal: bool) -> Tensor:
    """Return the values added to scores: -inf for hidden keys, and the logarithms of sizes."""
    assert run.real is not None
    assert run.position is not None
    assert run.size is not None
    seen = run.real[:, None, None, :]
    if causal:
        seen = seen & (run.position[:, None, None, :] <= run.position[:, None, :, None])
    seen = seen | ~seen.any(-1, keepdim=True)  # a query at padding: nobody reads what it gives
    added = torch.zeros(seen.shape, dtype=query.dtype, device=query.device)
    if run.rule.counts_sizes:
        added = added + run.size.clamp(min=1).log()[:, None, None, :].to(query.dtype)
    return added.masked_fill(~seen, torch.finfo(query.dtype).min)


@torch.no_grad()
def _received(
    run: _ShorterCall, query: Tensor, key: Tensor, scale: float
) -> Float[Tensor, "row token"]:
    """Return the attention of the first or the last real token, averaged over heads."""
    assert run.real is not None
    real = run.real
    place = torch.arange(real.shape[1], device=real.device)
    at = torch.where(real, place, -1).amax(1) if run.rule.asks == "last" else real.int().argmax(1)
    rows = torch.arange(len(real), device=real.device)
    own = query[rows, :, at].float().unflatten(1, (key.shape[1], -1))
    logits = (own @ key.float().mT).flatten(1, 2) * scale
    hidden = ~real | (place > at[:, None]) if run.rule.asks == "last" else ~real
    return logits.masked_fill(hidden[:, None], -torch.inf).softmax(-1).mean(1)
