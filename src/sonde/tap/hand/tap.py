"""``Tap``: read sites of a live model while it is used by hand.

For whole data sets use a stream (``sonde.read``): it finds axes by a probe forward, moves padding
and keeps ids. A tap keeps the rows of the last forward only.
"""

from collections.abc import Hashable, Iterable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch, Model
from sonde.core.site import ATTENTION_PORTS, Reducer
from sonde.core.token_masks import MaskMeaning, find_mask
from sonde.tap.attention.opening import watch_attention
from sonde.tap.attention.places import what_runs
from sonde.tap.hand.tapped import TappedModule, TappedSite
from sonde.tap.hooks.cache import cache_in, cached_length
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import arguments, decodes, find, find_input
from sonde.tap.hooks.port_view import PortView
from sonde.tap.hooks.session import Session, check_readable
from sonde.tap.model.axes import Axes, guess_axes
from sonde.tap.model.sites import Pattern, resolve
from sonde.tap.model.time_first import rows_first
from sonde.tap.rows.frame import Frame, all_set, unnamed
from sonde.tap.rows.mean_writer import MeanWriter
from sonde.tap.rows.nested import padded
from sonde.tap.rows.reduce import Reduction
from sonde.tap.rows.row_memory import RowMemory
from sonde.tap.rows.shared import SharedSelections
from sonde.tap.rows.waiting import Waiting


class Tap:
    """Reads sites of a model inside a ``with`` block; leaves the model as it was found.

    The model runs in eval mode meanwhile. Only calls made by the thread that opened the tap count.

    Parameters
    ----------
    model : Model or nn.Module
    sites : pattern, Site, or several
        A module that runs several times in one forward needs ``@call``.
    reducer : name, Reducer or None, default=None
        None keeps whole outputs, as copies. Otherwise outputs with three axes are taken as
        (example, token, feature), those with four as images whose features are the axis that has
        the size of a bias.
    stop : bool, default=False
        End forwards made by ``run`` after the last of the sites; they return None.

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
    ) -> None:
        self.module = model.module if isinstance(model, Model) else model
        check_readable(self.module)
        self.sites = resolve(self.module, sites)
        self._reducer = Reducer(reducer) if isinstance(reducer, str) else reducer
        self._stops = stop
        if any(site.port == "grad" for site in self.sites):
            raise SiteError("Tap: port grad needs an objective. Use sonde.read(objective=...).")
        names = ModuleNames(self.module)
        owners: dict[tuple[str, str], TappedModule] = {}
        for site in self.sites:
            owner = owners.setdefault(
                (site.path, site.port), TappedModule(site, names.modules[site.path])
            )
            owner.add(TappedSite(site, str(site)))
        self._owners = list(owners.values())
        self._session = Session(
            self.module,
            outputs=[(d.module, partial(self._after, d)) for d in self._owners if d.port == "out"],
            inputs=[
                (self.module, self._begin),
                *((d.module, partial(self._before, d)) for d in self._owners if d.port == "in"),
            ],
            inside=watch_attention(
                [
                    (d.module, d.port, partial(self._after, d))
                    for d in self._owners
                    if d.port in ATTENTION_PORTS
                ]
            ),
        )
        self._names = [str(site) for site in self.sites]
        self._batch: InputBatch | None = None
        self._shared, self._writer = SharedSelections(), MeanWriter(RowMemory())
        self._counted: Hashable = None
        self._meaning = MaskMeaning()
        self._reset()

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
        """What the last forward brought, by site.

        Raises
        ------
        SiteError
            If a site did not run in it.
        """
        if self._frame is not None:
            self._place(self._frame)
        taken = self._taken
        if missing := [name for name in self._names if name not in taken]:
            calls = {owner.path: owner.calls for owner in self._owners if owner.calls}
            raise SiteError(
                f"Tap.rows: {', '.join(missing)} did not run in the last forward (calls seen: "
                f"{calls}). Run the model inside the with block, or read {what_runs(self.sites)}."
            )
        return {
            name: own[0] if len(own) == 1 else torch.cat(own)
            for name in self._names
            for own in (taken[name],)
        }

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model under ``no_grad``; with ``stop``, only up to the last site."""
        if self._stops and cache_in(arguments(self.module, args, kwargs)) is not None:
            raise SiteError(
                "Tap.run: a forward that stops early leaves a key-value cache half filled. "
                "Pass use_cache=False and no cache, or stop=False."
            )
        self._to_come = len(self.sites) if self._stops else -1
        try:
            return self._session.run(args, kwargs)
        finally:
            self._to_come = -1

    def _reset(self) -> None:
        self._taken: dict[str, list[Tensor]] = {}
        self._waiting: Waiting[tuple[list[Tensor], int]] = Waiting()
        for owner in self._owners:
            owner.calls = 0
        self._masks: dict[str, Tensor | None] = {}
        self._has_target = False
        self._frame: Frame | None = None
        self._to_come = getattr(self, "_to_come", -1)

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = arguments(self.module, args, kwargs) if args else kwargs
        if (cache := cache_in(named)) is not None and cached_length(cache) > 0:
            raise SiteError(
                "Tap: generation and calls with a filled key-value cache cannot be read live: rows "
                "of beams and of rejected tokens would mix. Generate first, then read the result: "
                "sonde.tap.replay(model, inputs)."
            )
        self._reset()
        found = find_mask(named)
        target = named.get("decoder_attention_mask")
        self._masks = {
            "pos": None if found is None else self._meaning.real_tokens(*found),
            "pos2": target if isinstance(target, Tensor) and target.ndim == 2 else None,
        }
        self._has_target = decodes(self.module, named)
        counted = None if self._writer.is_empty else self._what_counts()
        if counted is not None and counted == self._counted:
            self._writer.again_as_before()
        else:
            self._writer.begin()
            self._counted = counted

    def _what_counts(self) -> Hashable:
        """Return the shapes of the masks, or None if a mask leaves out some tokens."""
        masks = tuple(self._masks.values())
        if any(mask is not None and not all_set(mask) for mask in masks):
            return None
        return self._has_target, *(None if mask is None else mask.shape for mask in masks)

    def _after(self, owner: TappedModule, output: Any) -> None:
        """Take rows from an output, by a shortcut if an earlier output was averaged alike."""
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
                return
        for tapped in owner.called():
            tapped.of_encoder = isinstance(output, PortView) and output.of_encoder
            self._keep(tapped, owner.module, find(output, tapped.leaf))

    def _before(self, owner: TappedModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for tapped in owner.called():
            self._keep(tapped, owner.module, find_input(owner.module, args, kwargs, tapped.leaf)[1])

    def _keep(self, tapped: TappedSite, module: nn.Module, leaf: Tensor | None) -> None:
        taken, name = self._taken, tapped.name
        if leaf is None:
            raise SiteError(f"Tap: {name!r} returned no such floating-point tensor.")
        if tapped.call is None and name in taken:
            raise SiteError(
                f"Tap: {tapped.site.path!r} is called more than once in one forward. "
                f"Write {tapped.site.path}@0, @1, ..., @last or @all."
            )
        parts = taken[name] = taken.get(name, []) if tapped.call == "all" else []
        parts.append(
            self._reduced(leaf.detach() if leaf.requires_grad else leaf, tapped, module, parts)
        )
        if len(taken) == self._to_come and tapped.call not in ("last", "all"):
            self._session.stop()

    def _reduced(
        self, x: Tensor, tapped: TappedSite, module: nn.Module, parts: list[Tensor]
    ) -> Tensor:
        """Return the rows, or a tensor that the rows will replace once other sites have run."""
        if x.is_nested:
            x = padded(x, self._masks["pos"])
        if self._reducer is None:
            return self._writer.memory.copy(x)
        if x.ndim == 0:
            raise SiteError(
                f"Tap: {tapped.name!r} returned a single number, which has no rows to reduce. "
                "Read it as it is: reducer=None."
            )
        given, x = x, rows_first(x, module, self.module)
        frame = self._frame
        if frame is None:
            frame = self._frame = self._framed(x)
        if tapped.reduction is None or tapped.shape != x.shape:
            axis = 2 if tapped.site.port in ATTENTION_PORTS else self._reducer.axis
            axes = guess_axes(x, module, self.module, axis)
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
        return self._writer.memory.keep(tapped.reduction(x, frame)[0])

    def _framed(self, x: Tensor) -> Frame:
        if self._batch is None or len(self._batch) != x.shape[0]:
            self._batch = unnamed(x.shape[0])
        frame = Frame(self._batch, x.device, self._shared)
        frame.masks |= self._masks
        for own in (own for own in self._taken.values() if own):
            frame.check(own[0].shape[0])  # taken the short way, without a frame
        return frame

    def _place(self, frame: Frame) -> None:
        """Make the rows that waited for other sites, and put them in place of the held tensors."""
        for reduction, places, held in self._waiting.groups():
            found = self._writer.memory.keep(reduction.stacked(held, frame)[0])
            for (parts, at), rows in zip(places, found.unbind(), strict=True):
                parts[at] = rows
