"""``Tap``: read sites of a live model that the user runs by hand.

For whole data sets use a stream (``sonde.read``): it finds axes by a probe forward, moves padding
and keeps ids. A tap keeps the rows of the last forward only.
"""

import threading
from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch, Model
from sonde.core.site import ATTENTION_PORTS, Reducer
from sonde.core.token_masks import MaskMeaning
from sonde.tap.attention.opening import watch_attention
from sonde.tap.attention.places import what_runs
from sonde.tap.hand.features_last import STATES
from sonde.tap.hand.tapped import TappedModule, TappedSite
from sonde.tap.hooks.cache import cache_in, cached_length
from sonde.tap.hooks.call import fed_tokens
from sonde.tap.hooks.latest import Latest
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import arguments, decodes, find, find_input, known_names
from sonde.tap.hooks.port_view import PortView
from sonde.tap.hooks.session import Followed, Session, check_readable
from sonde.tap.hooks.sharding import is_fully_sharded
from sonde.tap.model.axes import Axes, pads_itself
from sonde.tap.model.shown_axes import axes_here
from sonde.tap.model.sites import Pattern, resolve
from sonde.tap.model.time_first import has_time_first_parts, rows_first, unknown_order
from sonde.tap.rows.frame import Frame, all_set, unnamed
from sonde.tap.rows.mean_writer import MeanWriter
from sonde.tap.rows.nested import padded
from sonde.tap.rows.reduce import Reduction
from sonde.tap.rows.row_memory import RowMemory
from sonde.tap.rows.shared import SharedSelections
from sonde.tap.rows.waiting import Waiting


class TappedRows:
    """Rows of one forward pass, by site.

    Attributes
    ----------
    taken : dict of str to list of Tensor
        The rows of each call.
    calls : dict of str to int
        How often modules ran that ran, by path.
    frame : Frame or None
        The examples; None if no rows were reduced.
    """

    def __init__(self, memory: RowMemory) -> None:
        self.taken: dict[str, list[Tensor]] = {}
        self.waiting: Waiting[tuple[list[Tensor], int]] = Waiting()
        self.calls: dict[str, int] = {}
        self.frame: Frame | None = None
        self._memory, self._lock = memory, threading.Lock()

    def place(self) -> None:
        """Compute the delayed rows, and put them in place of the stored tensors."""
        frame = self.frame
        if frame is None:
            return
        with self._lock:
            for reduction, places, held in self.waiting.groups():
                kept = self._memory.keep(reduction.stacked(held, frame)[0])
                for (parts, at), rows in zip(places, kept.unbind(), strict=True):
                    parts[at] = rows


class TappedForward:
    """Collects rows at sites, one forward pass at a time.

    Parameters
    ----------
    root : nn.Module
    owners : sequence of TappedModule
    reducer : Reducer or None
    memory : RowMemory
    shared : SharedSelections
    meaning : MaskMeaning
        What masks meant in the forwards before.

    Attributes
    ----------
    rows : TappedRows
        Those of the running forward.
    """

    def __init__(
        self,
        root: nn.Module,
        owners: Sequence[TappedModule],
        reducer: Reducer | None,
        memory: RowMemory,
        shared: SharedSelections,
        meaning: MaskMeaning,
    ) -> None:
        self.module, self.owners, self._reducer = root, owners, reducer
        self._shared, self._meaning = shared, meaning
        self._memory, self._writer = memory, MeanWriter(memory)
        self._batch: InputBatch | None = None
        self._counted: Hashable = None
        self.reset(-1)

    def reset(self, to_come: int) -> None:
        """Clear the previous forward pass.

        Parameters
        ----------
        to_come : int
            Sites after which the forward may end; -1 if it runs to its end.
        """
        self.rows = TappedRows(self._memory)
        self._taken, self._waiting = self.rows.taken, self.rows.waiting
        for owner in self.owners:
            owner.calls = 0
        self._masks: dict[str, Tensor | None] = {}
        self._has_target, self._to_come = False, to_come
        self._frame: Frame | None = None
        self._named: Mapping[str, Any] = {}

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any], to_come: int) -> None:
        """Record the arguments of the root module's call."""
        named = arguments(self.module, args, kwargs) if args else kwargs
        if (cache := cache_in(named)) is not None and cached_length(cache) > 0:
            raise SiteError(
                "Tap: generation and calls with a filled key-value cache cannot be read live: rows "
                "of beams and of rejected tokens would mix. Generate first, then read the result: "
                "sonde.tap.replay(model, inputs). If another caller generates meanwhile, open the "
                "Tap with here=True."
            )
        self.reset(to_come)
        self._named = named
        target = named.get("decoder_attention_mask")
        self._masks = {
            "pos": self._meaning.real_in(named, known_names(self.module)),
            "pos2": target if isinstance(target, Tensor) and target.ndim == 2 else None,
        }
        self._has_target = decodes(self.module, named)
        counted = None if self._writer.is_empty else self._what_counts()
        if counted is not None and counted == self._counted:
            self._writer.again_as_before()
        else:
            self._writer.begin()
            self._counted = counted

    def done(self) -> TappedRows:
        """Return the rows of the finished forward pass."""
        self.rows.calls = {owner.path: owner.calls for owner in self.owners if owner.calls}
        return self.rows

    def _what_counts(self) -> Hashable:
        """Return the shapes of the masks, or None if a mask excludes some tokens."""
        masks = tuple(self._masks.values())
        if any(mask is not None and not all_set(mask) for mask in masks):
            return None
        return self._has_target, *(None if mask is None else mask.shape for mask in masks)

    def after(self, owner: TappedModule, output: Any) -> bool:
        """Collect rows of an output, reusing the mean of an earlier output of equal shape.

        Return whether the forward may end here.
        """
        tapped = owner.lone
        if (
            tapped is not None
            and output.__class__ is Tensor
            and not output.is_nested
            and output.shape == tapped.shape
            and not (owner.calls or output.requires_grad or self._to_come >= 0)
        ):
            rows = self._writer.again((tapped.mean, tapped.shape, output.dtype), output)
            if rows is not None:
                owner.calls, self._taken[tapped.name] = 1, [rows]
                return False
        may_end = False
        for tapped in owner.called():
            tapped.of_encoder = isinstance(output, PortView) and output.of_encoder
            may_end |= self._keep(tapped, owner.module, find(output, tapped.leaf))
        return may_end

    def before(self, owner: TappedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Collect rows of an input; return whether the forward pass may end here."""
        may_end = False
        for tapped in owner.called():
            leaf = find_input(owner.module, args, kwargs, tapped.leaf)[1]
            may_end |= self._keep(tapped, owner.module, leaf)
        return may_end

    def _keep(self, tapped: TappedSite, module: nn.Module, leaf: Tensor | None) -> bool:
        taken, name = self._taken, tapped.name
        if leaf is None:
            raise SiteError(f"Tap: {name!r} returned no such floating-point tensor.")
        if tapped.call is None and name in taken:
            raise SiteError(
                f"Tap: {tapped.site.path!r} is called more than once in one forward pass. Write "
                f"{tapped.site.path}@0, @1, ..., @last or @all."
            )
        parts = taken[name] = taken.get(name, []) if tapped.call == "all" else []
        parts.append(
            self._reduced(leaf.detach() if leaf.requires_grad else leaf, tapped, module, parts)
        )
        return len(taken) == self._to_come and tapped.call not in ("last", "all")

    def _reduced(
        self, x: Tensor, tapped: TappedSite, module: nn.Module, parts: list[Tensor]
    ) -> Tensor:
        """Return the rows, or a tensor that rows replace after other sites have run."""
        is_nested = x.is_nested
        if is_nested:
            x = padded(x, self._masks["pos"])
        if self._reducer is None:
            return self._memory.copy(x)
        if x.ndim == 0:
            raise SiteError(
                f"Tap: {tapped.name!r} returned a single number, which has no rows to reduce. "
                "Read it without a reducer: reducer=None."
            )
        given, x = x, x if is_nested else self._in_rows(x, tapped, module)
        frame = self._frame
        if frame is None:
            frame = self._frame = self.rows.frame = self._framed(x)
        if tapped.reduction is None or tapped.shape != x.shape:
            axis = 2 if tapped.site.port in ATTENTION_PORTS else self._reducer.axis
            is_flat = x.ndim > given.ndim
            ran, at = ((), self._named), (tapped.site.port, tapped.site.key)
            axes = STATES if is_flat else axes_here(x, module, self.module, ran, axis, *at)
            self._require_length(x, axes, tapped.name)
            in_encoder = tapped.of_encoder or "encoder" in tapped.site.path.split(".")
            if self._has_target and not in_encoder:
                axes = Axes(tuple("pos2" if word == "pos" else word for word in axes.words))
            tapped.reduction, tapped.shape = Reduction(self._reducer, axes), x.shape
            short = tapped.reduction.is_token_mean and x is given
            tapped.mean = tapped.reduction.stack_key if short else None
        if tapped.mean is not None:
            return tapped.reduction.token_mean(x, frame, self._writer)
        if Waiting.takes(tapped.reduction, x):
            copy = x.clone()
            self._waiting.add((parts, len(parts)), tapped.reduction, copy)
            return copy
        return self._memory.keep(tapped.reduction(x, frame)[0])

    def _in_rows(self, x: Tensor, tapped: TappedSite, module: nn.Module) -> Tensor:
        """Return states with the rows first; a joint token axis of all rows is split in two."""
        fed = fed_tokens(self._named)
        if fed is None or x.ndim != 2 or not len(x) == fed.numel() > fed.shape[0]:
            return rows_first(x, module, self.module, self._named, tapped.site.key)
        if has_time_first_parts(self.module):
            raise unknown_order(f"Tap: {tapped.name!r}", x)
        return x.reshape(*fed.shape, -1)

    def _require_length(self, x: Tensor, axes: Axes, name: str) -> None:
        """Raise for states of texts that the model itself padded to whole windows."""
        fed, embedded = fed_tokens(self._named), self._named.get("inputs_embeds")
        length = embedded.shape[1] if isinstance(embedded, Tensor) else None
        length = length if fed is None else fed.shape[-1]
        if length is None or x.ndim != 3 or x.shape[1] <= length or axes.kind != "pos":
            return
        if pads_itself(self.module):
            raise SiteError(
                f"Tap: {name!r} gives {x.shape[1]} states for {length} tokens: the model "
                "pads texts itself, to whole windows. Read texts at their own length with "
                "sonde.read, or pad them to whole windows yourself, with an attention_mask."
            )

    def _framed(self, x: Tensor) -> Frame:
        if self._batch is None or len(self._batch) != x.shape[0]:
            self._batch = unnamed(x.shape[0])
        frame = Frame(self._batch, x.device, self._shared)
        frame.masks |= self._masks
        for own in (own for own in self._taken.values() if own):
            frame.check(own[0].shape[0])  # taken the short way, without a frame
        return frame


class Tap:
    """Reads sites of a model inside a ``with`` block, then restores the model.

    The model runs in eval mode meanwhile. Every forward of the model is read, whoever calls it:
    ``rows`` are those of the thread or task that asks.

    Parameters
    ----------
    model : Model or nn.Module
        Model whose forward passes are read; it is not changed.
    sites : pattern, Site, or several
        A module that runs several times in one forward needs ``@call``.
    reducer : name, Reducer or None, default=None
        None keeps whole outputs, as copies. Otherwise outputs with three axes are taken as
        (example, token, feature), those with four as images whose features are the axis that has
        the size of a bias.
    stop : bool, default=False
        End forwards made by ``run`` after the last of the sites; they return None.
    here : bool, default=False
        Read the forwards of the thread or task that opens the tap alone.

    Examples
    --------
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True))
    >>> with Tap(net, ["0"]) as tap:
    ...     _ = net(torch.ones(4, 2))
    >>> tap.rows["0:out"].shape
    torch.Size([4, 3])
    """

    def __init__(
        self,
        model: Model | nn.Module,
        sites: Pattern | Iterable[Pattern],
        reducer: str | Reducer | None = None,
        *,
        stop: bool = False,
        here: bool = False,
    ) -> None:
        self.module = model.module if isinstance(model, Model) else model
        check_readable(self.module, sharded=True)
        if stop and is_fully_sharded(self.module):
            raise SiteError(
                f"Tap: {type(self.module).__name__} is fully sharded, so that every layer has to "
                "finish its forward pass. Leave stop=True out."
            )
        self.sites = resolve(self.module, sites)
        self._reducer = Reducer(reducer) if isinstance(reducer, str) else reducer
        self._stops = stop
        self._memory, self._shared = RowMemory(), SharedSelections()
        self._meaning = MaskMeaning()
        if any(site.port == "grad" for site in self.sites):
            raise SiteError("Tap: port grad needs an objective. Use sonde.read(objective=...).")
        names = ModuleNames(self.module)
        self._modules = names.modules
        self._free = [self._new()]
        self._parts: TappedForward | None = None
        owners = list(enumerate(self._free[0].owners))
        self._session = Session(
            self.module,
            outputs=[(d.module, partial(self._after, i)) for i, d in owners if d.port == "out"],
            inputs=[(d.module, partial(self._before, i)) for i, d in owners if d.port == "in"],
            follows=[Followed(self.module, self._begin, self._finish)],
            inside=watch_attention(
                [
                    (d.module, d.port, partial(self._after, i))
                    for i, d in owners
                    if d.port in ATTENTION_PORTS
                ],
                here=here,
            ),
            here=here,
        )
        self._names = [str(site) for site in self.sites]
        self._latest: Latest[TappedRows] = Latest()

    def __enter__(self) -> "Tap":
        self._session.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._session.__exit__(kind, error, trace)

    @property
    def rows(self) -> dict[str, Tensor]:
        """Rows of the last forward pass, by site.

        It is the last forward of the thread or task that asks; if it made none, that of any.

        Raises
        ------
        SiteError
            If a site did not run in it.
        """
        forward = self._latest.get()
        if forward is not None:
            forward.place()
        taken = {} if forward is None else forward.taken
        if missing := [name for name in self._names if name not in taken]:
            calls = {} if forward is None else forward.calls
            raise SiteError(
                f"Tap.rows: {', '.join(missing)} did not run in the last forward pass (calls "
                f"seen: {calls}). Run the model inside the with block, or read "
                f"{what_runs(self.sites)}."
            )
        return {
            name: own[0] if len(own) == 1 else torch.cat(own)
            for name in self._names
            for own in (taken[name],)
        }

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model under ``no_grad``, with ``stop`` only up to the last site."""
        if self._stops and cache_in(arguments(self.module, args, kwargs)) is not None:
            raise SiteError(
                "Tap.run: a forward pass that stops early leaves a key-value cache half filled. "
                "Pass use_cache=False and no cache, or stop=False."
            )
        return self._session.run(args, kwargs)

    def _new(self) -> TappedForward:
        owners: dict[tuple[str, str], TappedModule] = {}
        for site in self.sites:
            key, module = (site.path, site.port), self._modules[site.path]
            owners.setdefault(key, TappedModule(site, module)).add(TappedSite(site, str(site)))
        return TappedForward(
            self.module,
            list(owners.values()),
            self._reducer,
            self._memory,
            self._shared,
            self._meaning,
        )

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TappedForward:
        stops = self._stops and self._session.runs_here
        if self._parts is not None and self._session.is_opener:
            self._parts = None
        try:
            forward = self._free.pop()  # of this thread now, forwards of several may run at once
        except IndexError:
            forward = self._new()
        try:
            forward.begin(args, kwargs, len(self.sites) if stops else -1)
        except BaseException:
            self._free.append(forward)
            raise
        return forward

    def _finish(self, forward: TappedForward) -> None:
        self._latest.put(forward.done())
        self._free.append(forward)

    def _now(self) -> TappedForward | None:
        """Return the collector of this context, or None for calls from other contexts."""
        forward = self._session.state
        if forward is not None:
            return forward
        if not self._session.is_opener:
            self._session.count_outside()
            return None
        if self._parts is None:  # a part of the model is called by itself
            self._parts = self._new()
            self._latest.put(self._parts.rows)
        return self._parts

    def _after(self, number: int, output: Any) -> None:
        forward = self._now()
        if forward is not None and forward.after(forward.owners[number], output):
            self._session.stop()

    def _before(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        forward = self._now()
        if forward is not None and forward.before(forward.owners[number], args, kwargs):
            self._session.stop()
