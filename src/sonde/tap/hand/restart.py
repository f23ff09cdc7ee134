"""Rerun a model from the output of a site on, any number of times."""

import copy
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import ShapeError, SiteError
from sonde.core.inputs import Model
from sonde.core.site import ATTENTION_PORTS, Site
from sonde.core.wording import plural
from sonde.tap.attention.opening import watch_attention
from sonde.tap.hand.recording import CallRecorder, Forward, RecordedCall, intercepted
from sonde.tap.hooks.cache import cache_in
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import (
    arguments,
    find,
    find_input,
    leaves,
    replaced,
    with_input,
)
from sonde.tap.hooks.session import Session, active_sessions, check_readable
from sonde.tap.model.sites import Pattern, resolve
from sonde.tap.rows.nested import nested_like

LOOKS = frozenset({"mask", "src_mask", "attn_mask", "tgt_mask", "memory_mask"})


def record_forward(model: Model | nn.Module, *args: Any, **kwargs: Any) -> "RecordedForward":
    """Run a model once, and store every module's output.

    A model that can do without a key-value cache is told to, unless ``use_cache`` is given.

    Parameters
    ----------
    model : Model or nn.Module
        Run as it is: a model in training mode is not put in eval mode.
    *args, **kwargs
        What it is called with; examples come first in every tensor.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> run = record_forward(net, torch.ones(1, 2))
    >>> bool((run.from_site("1", torch.zeros(5, 3)) == net[2].bias).all())
    True
    """
    module = model.module if isinstance(model, Model) else model
    check_readable(module)
    root = ModuleNames(module).modules[""]
    named = arguments(root, args, kwargs)
    if "use_cache" not in named and cache_in(named) is None and _has_cache_switch(root):
        kwargs = {**kwargs, "use_cache": False}
    given = (copy.deepcopy(args), copy.deepcopy(kwargs))
    recorder = CallRecorder()
    with torch.no_grad(), intercepted(_modules(root), recorder):
        output = root(*args, **kwargs)
    return RecordedForward(module, given, output, recorder.calls)


class RecordedForward:
    """A recorded forward pass, which can be rerun from any site with other states there.

    Parameters
    ----------
    module : Module
        Module that was run.
    given : object
        Arguments of the call, by position and by name.
    calls : list[RecordedCall]
        Calls of the module's parts, in order of execution.

    Attributes
    ----------
    output : object
        What the model returned.
    n : int
        How many examples were recorded.
    whole_because : str
        Why each restart is a whole forward; empty where calls before the site are skipped.
    """

    def __init__(
        self,
        module: nn.Module,
        given: tuple[tuple[Any, ...], dict[str, Any]],
        output: Any,
        calls: list[RecordedCall],
    ) -> None:
        self.module, self.output = module, output
        self._root = ModuleNames(module).modules[""]
        self._paths = ModuleNames(module).modules
        self._given, self._calls = given, calls
        self._edits = _open_edits(self._root)
        named = arguments(self._root, *given)
        self.n = next((len(x) for x in leaves(named).values() if x.ndim), 1)
        self.whole_because = ""
        is_mapping = isinstance(output, Mapping)
        if any(m.training for m in self._root.modules()):
            self.whole_because = "the model is in training mode"
        elif cache_in(named) is not None or (is_mapping and cache_in(dict(output)) is not None):
            self.whole_because = "a key-value cache is in use"

    def states(self, sites: Pattern | Iterable[Pattern]) -> dict[str, Tensor]:
        """Return the states at sites by name, as ``editing(others=...)`` takes them.

        Raises
        ------
        SiteError
            If a site did not run, or its module returned what cannot be kept.
        """
        states_of: dict[str, Tensor] = {}
        for site in resolve(self.module, sites):
            call = self._call(site)
            leaf = None if call is None or site.port != "out" else find(call.output, site.key)
            if leaf is None:
                raise SiteError(
                    f"RecordedForward.states: {site} holds no recorded tensor. Name the output of "
                    "a module that ran, or read it by a Tap."
                )
            states_of[str(site)] = leaf
        return states_of

    def from_site(self, site: Pattern, value: Tensor) -> Any:
        """Return the model's output with other states at a site.

        The result equals that of a whole forward with all states replaced, padding too, to the bit.
        Gradients reach ``value``.

        Parameters
        ----------
        site : pattern or Site
            Every port but ``grad``; a port of an attention costs a whole forward. A module that ran
            several times needs ``@call``.
        value : Tensor
            In the shape of the site's own states, or k times as many: in each run of n entries,
            entry ``i`` belongs to example ``i`` of the n recorded examples.

        Raises
        ------
        SiteError
            If the site names several modules, or one that never runs.
        ShapeError
            If the value has another shape than the states, or is no multiple of them.
        """
        sites = resolve(self.module, site)
        if len(sites) != 1 or sites[0].port == "grad":
            raise SiteError(
                f"RecordedForward.from_site: expected one site with port out or in, or of an "
                f"attention, got "
                f"{', '.join(map(str, sites))}."
            )
        repeats, rest = divmod(len(value), self.n)
        if rest or not repeats:
            raise ShapeError(
                f"RecordedForward.from_site: expected {self.n} examples or a multiple, got "
                f"{len(value)} at {sites[0]}."
            )
        call = self._call(sites[0]) if sites[0].port in ("out", "in") else None
        args, kwargs = self.arguments(repeats)
        if call is not None and not self.whole_because and _open_edits(self._root) == self._edits:
            replay = Replay(self._calls[0], call, sites[0], value, repeats, self.n)
            try:
                with intercepted(_modules(self._root), replay):
                    return self._root(*args, **kwargs)
            except Diverged:
                args, kwargs = self.arguments(repeats)
        return self._whole(sites[0], value, args, kwargs)

    def arguments(self, repeats: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return arguments in which the whole batch is repeated along the example axis."""
        args, kwargs = copy.deepcopy(self._given)
        if repeats > 1:
            args = tuple(_tiled(x, repeats, self.n) for x in args)
            kwargs = {
                name: x if name in LOOKS else _tiled(x, repeats, self.n)
                for name, x in kwargs.items()
            }
        return args, kwargs

    def _call(self, site: Site) -> RecordedCall | None:
        """Return the recorded call of a site, or None if a fused kernel bypassed the module."""
        module = self._paths[site.path]
        calls = [call for call in self._calls if call.module is module]
        if site.call is None and len(calls) > 1:
            raise SiteError(
                f"RecordedForward: {site.path!r} ran {len(calls)} times. Write {site.path}@0, @1."
            )
        index = {"last": -1, None: 0}.get(site.call, site.call) if calls else None
        return calls[index] if isinstance(index, int) and index < len(calls) else None

    def _whole(
        self, site: Site, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        n_calls, done = 0, False

        def is_turn() -> bool:
            nonlocal n_calls, done
            n_calls += 1
            turn = n_calls - 1 == (site.call or 0)
            done = done or turn
            return turn

        def after(output: Any) -> Any:
            return _with_value(output, site, value) if is_turn() else None

        def before(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return _with_input(module, site, value, args, kwargs) if is_turn() else None

        module = self._paths[site.path]
        outputs = [(module, after)] if site.port == "out" else []
        inputs = [(module, before)] if site.port == "in" else []
        inside = [(module, site.port, after)] if site.port in ATTENTION_PORTS else []
        look = watch_attention(inside, edits=True)
        with Session(self._root, outputs, inputs, reading=False, inside=look):
            output = self._root(*args, **kwargs)
        if not done:
            ran = plural(n_calls, "time")
            raise SiteError(
                f"RecordedForward.from_site: expected a call that runs, got {site}, whose module "
                f"ran {ran} in this forward pass. "
                + (f"Write a call below @{n_calls}." if n_calls else "Name a module that runs.")
            )
        return output


class Diverged(Exception):
    """The model called other modules than in the recording."""


class Replay:
    """Returns recorded outputs before a site and new states at the site; later modules run."""

    def __init__(
        self,
        first: RecordedCall,
        target: RecordedCall,
        site: Site,
        value: Tensor,
        repeats: int,
        n: int,
    ) -> None:
        self._target, self._site, self._value = target, site, value
        self._until = target.end if site.port == "out" else target.begin
        self._repeats, self._n = repeats, n
        self._expected = [iter((first,))]
        self._is_past = False

    def __call__(
        self, module: nn.Module, forward: Forward, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Return the recorded output of a call before the site; run the others."""
        if self._is_past:
            return forward(*args, **kwargs)
        call = next(self._expected[-1], None)
        if call is None or call.module is not module:
            raise Diverged
        if call is self._target:
            self._is_past = True
            if self._site.port == "in":
                new = _with_input(module, self._site, self._value, args, kwargs)
                return forward(*new[0], **new[1])
            skips = self._can_skip(call)
            output = self._recorded(call, args, kwargs) if skips else forward(*args, **kwargs)
            return _with_value(output, self._site, self._value)
        if call.end < self._until and self._can_skip(call):
            return self._recorded(call, args, kwargs)
        self._expected.append(iter(call.children))
        output = forward(*args, **kwargs)
        if not self._is_past and next(self._expected.pop(), None) is not None:
            raise Diverged
        return output

    def _can_skip(self, call: RecordedCall) -> bool:
        """Return whether a call's recorded output is also valid for the repeated examples."""
        if not call.can_skip or self._repeats == 1:
            return call.can_skip
        is_recurrent = isinstance(call.module, nn.RNNBase)
        firsts = [x.shape[0] if x.ndim else 0 for x in leaves(call.output).values()]
        return not is_recurrent and all(first in (1, self._n) for first in firsts)

    def _recorded(self, call: RecordedCall, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        output, given = call.output, leaves((args, kwargs)) if call.same else {}
        for key, x in leaves(output).items():
            new = _tiled(x, self._repeats, self._n)
            if key in call.same:
                held = given[call.same[key]]
                new = held if torch.equal(held, new) else held.copy_(new)
            output = replaced(output, x, new.clone() if new is x else new)
        return output


def _with_value(output: Any, site: Site, value: Tensor) -> Any:
    leaf = find(output, site.key)
    if leaf is None:
        raise SiteError(f"RecordedForward.from_site: {site} returned no such tensor.")
    return replaced(output, leaf, _fitting(value, leaf, site))


def _with_input(
    module: nn.Module, site: Site, value: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    _, leaf = find_input(module, args, kwargs, site.key)
    return with_input(args, kwargs, leaf, _fitting(value, leaf, site))


def _fitting(value: Tensor, leaf: Tensor, site: Site) -> Tensor:
    """Return new states in the shape and type of the states that they replace."""
    if leaf.is_nested:
        return nested_like(leaf, value.to(leaf.dtype))
    if leaf.shape[1:] != value.shape[1:]:
        raise ShapeError(
            f"RecordedForward.from_site: expected states of shape {tuple(leaf.shape)}, got "
            f"{tuple(value.shape)} at {site}."
        )
    return value.to(leaf).clone()  # modules may write into it


def _tiled(value: Any, repeats: int, n: int) -> Any:
    """Return a value with the batch of each of its tensors repeated ``repeats`` times."""
    if repeats == 1:
        return value
    for x in leaves(value).values():
        if x.ndim and len(x) == n:
            value = replaced(value, x, x.repeat(repeats, *[1] * (x.ndim - 1)))
    return value


def _modules(root: nn.Module) -> list[nn.Module]:
    return [module for _, module in ModuleNames(root).primary()]


def _open_edits(root: nn.Module) -> list[Session]:
    """Return the open edits of a model that act in this context."""
    edits = [session for session in active_sessions() if not session.reading]
    own = set(map(id, root.modules())) if edits else set[int]()
    return [s for s in edits if any(id(m) in own for m, _ in (*s.outputs, *s.inputs))]


def _has_cache_switch(root: nn.Module) -> bool:
    return "use_cache" in inspect.signature(root.forward).parameters
