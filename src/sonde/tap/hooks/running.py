"""Module calls that run in this thread, and the masks of their real tokens.

Hooks note the arguments of each watched call and forget them when the call ends, also by an
exception. Every thread has its own record. A call that ended without its hook (an interrupt, a tap
that stopped the forward) is dropped when the next call begins.
"""

import inspect
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from sonde.core.errors import InputError
from sonde.core.token_masks import NAMES, OF_DECODER, OPEN, REAL, MaskMeaning, find_mask, sights
from sonde.core.token_masks import real_tokens as real_in
from sonde.tap.hooks.cache import NAMES as CACHES
from sonde.tap.hooks.cache import cache_in, cached_length
from sonde.tap.hooks.call import encoder_of
from sonde.tap.hooks.following import CALL


class RunningCall(NamedTuple):
    """A call of a module that has not yet returned.

    Attributes
    ----------
    module : nn.Module
    named : dict
        The arguments by name.
    known : tuple of str
        Names of all parameters of the module's forward.
    past : int or None
        Tokens in the cache that the call goes on from; None if it takes no cache.
    in_graph : bool
        The call is compiled, so that Python's stack does not show it.
    """

    module: nn.Module
    named: dict[str, Any]
    known: tuple[str, ...]
    past: int | None
    in_graph: bool = False


_NOW = threading.local()  # a plain one: compiled graphs do not see what a subclass is given


def running_calls() -> tuple[RunningCall, ...]:
    """Return the watched calls that run in this thread, outermost first."""
    return getattr(_NOW, "calls", ())


@contextmanager
def no_calls() -> Iterator[None]:
    """Run a model inside another one's forward pass as if no call surrounded it."""
    calls, _NOW.calls = running_calls(), ()
    try:
        yield
    finally:
        _NOW.calls = calls


class Begin:
    """Hook before a module that records its call."""

    def __init__(self, module: nn.Module) -> None:
        parameters = list(inspect.signature(module.forward).parameters.values())
        by_place = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        self.places = tuple(p.name for p in parameters if p.kind in by_place)
        self.known = tuple(p.name for p in parameters)
        self.takes_cache = any(name in CACHES for name in self.known)

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Record the call inside the calls that run."""
        calls, in_graph = running_calls(), torch.compiler.is_compiling()
        if not in_graph:
            calls = _alive(calls, module)
        named = {**dict(zip(self.places, args, strict=False)), **kwargs}
        cache = cache_in(named)
        past = 0 if self.takes_cache else None
        past = past if cache is None else cached_length(cache)
        _NOW.calls = (*calls, RunningCall(module, named, self.known, past, in_graph))


class End:
    """Hook after a module, also after an exception, that removes its call."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Remove the last call of this module, and all calls inside it."""
        calls = running_calls()
        for i in range(len(calls) - 1, -1, -1):
            if calls[i].module is module:
                _NOW.calls = calls[:i]
                return


def watch_calls(module: nn.Module) -> None:
    """Record a module's calls from now on; the end hook runs after all current hooks."""
    ignore_calls(module)
    module.register_forward_pre_hook(Begin(module), with_kwargs=True)
    module.register_forward_hook(End(), always_call=True)


def ignore_calls(module: nn.Module) -> None:
    """Stop recording a module's calls."""
    before, behind = module._forward_pre_hooks, module._forward_hooks
    for key in [key for key, hook in before.items() if isinstance(hook, Begin)]:
        del before[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
    for key in [key for key, hook in behind.items() if isinstance(hook, End)]:
        del behind[key]
        module._forward_hooks_always_called.pop(key, None)


def _alive(calls: tuple[RunningCall, ...], module: nn.Module) -> tuple[RunningCall, ...]:
    """Return the enclosing calls that still run when a module's call begins."""
    frame, around = inspect.currentframe() if calls else None, []
    while frame is not None:
        if frame.f_code is CALL:
            around.append(id(frame.f_locals.get("self")))
        frame = frame.f_back
    around = around[1:] if around[:1] == [id(module)] else around
    while calls and not calls[-1].in_graph and id(calls[-1].module) not in around:
        calls = calls[:-1]
    return calls


def cached_tokens(calls: Sequence[RunningCall]) -> int:
    """Return how many cached tokens the running calls continue.

    The outermost call that takes a cache tells: inside it the cache is filled block by block.
    """
    return next((call.past for call in calls if call.past is not None), 0)


def mask_in(
    calls: Sequence[RunningCall], n: int, length: int, meaning: MaskMeaning
) -> Bool[Tensor, "row token"] | None:
    """Return the real tokens among ``length`` tokens of ``n`` rows, or None without a mask.

    The innermost call with a fitting mask tells. In a call with a mask for each side, the states of
    its encoder have the one mask and all others the mask of the decoder. Images have no tokens.

    Raises
    ------
    InputError
        If masks leave out tokens, and none of them has one entry for each state.
    """
    misfits: list[Tensor] = []
    past = cached_tokens(calls)
    for i in range(len(calls) - 1, -1, -1):
        call = calls[i]
        if _asks_others(call.named):
            continue
        sides = _of_pair(call, [c.module for c in calls[i + 1 :]])
        named_mask = find_mask(call.named, partial(_is_of_tokens, call, meaning))
        masks = ([] if named_mask is None else [named_mask]) if sides is None else sides
        fits, others = _fitting([_real(*m, meaning) for m in masks], n, length, past)
        misfits += others
        if len(fits) > 1 and not torch.equal(fits[0], fits[1]):
            raise InputError(
                f"expected a mask for these {length} states, got one mask for the encoder and "
                f"one for the decoder of {type(call.module).__name__}. Insert the layer "
                "inside its encoder or decoder."
            )
        if fits:
            return fits[0]
        if sides is not None or _is_of_image(call.named):
            break
    else:
        if not misfits:
            return _of_pairs_of_tokens(calls, n, length)
    for mask in misfits:
        if torch.compiler.is_compiling() or not bool(mask.all()):
            raise InputError(
                f"expected a state for each of the {tuple(mask.shape)} tokens of the mask, got "
                f"{(n, length)} states: it is not known which of them are padding. Choose a site "
                "that keeps the tokens, or run texts of one length without a mask."
            )
    return None


def _is_of_tokens(call: RunningCall, meaning: MaskMeaning, name: str, mask: Tensor) -> bool:
    """Return whether a square mask marks real tokens, rather than which tokens see which."""
    if torch.compiler.is_compiling():  # its values cannot be looked at
        return not any(other in call.known for other in NAMES if other not in OPEN)
    return meaning.is_of_tokens(name, mask, call.named, call.known)


def _of_pair(call: RunningCall, inside: Sequence[nn.Module]) -> list[tuple[str, Tensor]] | None:
    """Return the masks of the running encoder or decoder; None for any other model."""
    if not any(name in call.known for name in OF_DECODER):
        return None
    target = [(name, m) for name in OF_DECODER if (m := call.named.get(name)) is not None]
    named_mask = find_mask(call.named, lambda *_: False)
    source = [] if named_mask is None else [named_mask]
    if not any(name in call.known for name in NAMES):
        return target
    encoder = encoder_of(call.module) or call.module._modules.get("encoder")
    if encoder is None:
        return source + target
    return source if any(module is encoder for module in inside) else target


def _real(name: str, mask: Tensor, meaning: MaskMeaning) -> Tensor:
    plain = not mask.is_floating_point() and name not in OPEN
    if name in OF_DECODER:
        name = REAL if name == OF_DECODER[0] else NAMES[1]
    if plain:
        return real_in(name, mask, name == REAL)
    if torch.compiler.is_exporting():
        raise InputError(
            f"expected a mask whose name and type say which tokens are real, got {name!r} of "
            f"{mask.dtype}: an exported model cannot check its values. Pass whole numbers or "
            f"booleans under the name {REAL!r}."
        )
    return meaning.real_tokens(name, mask)


def _fitting(
    masks: Sequence[Tensor], n: int, length: int, past: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the masks of this size, also with cached tokens included, then the others."""
    fits: list[Tensor] = []
    others: list[Tensor] = []
    for mask in masks:
        if mask.ndim == 2 and mask.shape in ((n, length), (1, length)):
            fits.append(mask.expand(n, length))
        elif mask.ndim == 2 and past and mask.shape == (n, past + length):
            fits.append(mask[:, past:])
        else:
            others.append(mask)
    return fits, others


def _asks_others(named: dict[str, Any]) -> bool:
    """Return whether a call attends to other states than its own and gets their mask."""
    query, key = named.get("query"), named.get("key")
    apart = isinstance(query, Tensor) and isinstance(key, Tensor) and query is not key
    return apart or named.get("key_value_states") is not None


def _is_of_image(named: dict[str, Any]) -> bool:
    """Return whether a call gets images and neither texts nor states of tokens."""
    given = [x for x in named.values() if isinstance(x, Tensor)]
    tokens = any(x.ndim == 3 or (x.ndim == 2 and not x.is_floating_point()) for x in given)
    return not tokens and any(x.ndim > 3 and x.is_floating_point() for x in given)


def _of_pairs_of_tokens(calls: Sequence[RunningCall], n: int, length: int) -> Tensor | None:
    """Return the real tokens by a mask of (row, query, key) or (row, head, query, key).

    Raises
    ------
    InputError
        If the mask that the model was called with lets tokens see different tokens.
    """
    for call in reversed(calls):
        mask = call.named.get(REAL)
        if not isinstance(mask, Tensor) or mask.ndim not in (3, 4) or mask.shape[-1] != length:
            continue
        looks = sights(mask)
        if call is not calls[0]:
            looks = looks ^ _marks_unseen(looks)
        real = looks.any(1).expand(n, length)
        if call is calls[0] and not torch.compiler.is_compiling():
            _require_one_text(looks, real)
        return real
    return None


def _marks_unseen(looks: Tensor) -> Bool[Tensor, ""]:
    """Return whether a model's mask is True at hidden tokens, as in MPT.

    Texts are padded on one side, so some text begins and ends with a token that sees itself.
    """
    if looks.shape[1] != looks.shape[2]:
        return looks.new_zeros(())
    ends = looks[:, 0, 0].long() + looks[:, -1, -1].long()
    return (ends == 0).any() & ~(ends == 2).any()


def _require_one_text(looks: Tensor, real: Tensor) -> None:
    """Raise unless each real token sees all real tokens, or all up to itself."""
    shape = (len(real), *looks.shape[1:])
    whole = real[:, None].expand(shape)
    before = whole & torch.ones(shape[1:], dtype=torch.bool, device=real.device).tril()
    if looks.shape[1] == 1 or looks.shape[1] != looks.shape[2]:
        asks = torch.ones_like(whole)
    else:
        asks = real[:, :, None].expand(shape)
    if not any(bool(((looks == plain) | ~asks).all()) for plain in (whole, before)):
        raise InputError(
            f"expected an attention_mask (row, token), got a mask of shape {tuple(looks.shape)} "
            "that "
            "lets tokens of a row see different tokens: an inserted layer would mix tokens that "
            "the mask separates. Give each text a row of its own."
        )
