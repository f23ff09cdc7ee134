"""``Tap``: read sites of a live model while it is used by hand.

For whole data sets use a stream (``sonde.read``): it finds axes by a probe forward, moves padding
and keeps ids. A tap keeps the rows of the last forward only.
"""

from collections.abc import Iterable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import Model
from sonde.core.site import ATTENTION_PORTS, Reducer
from sonde.core.token_masks import MaskMeaning
from sonde.tap.attention.opening import watch_attention
from sonde.tap.attention.places import what_runs
from sonde.tap.hand.tapped import TappedModule, TappedSite
from sonde.tap.hand.tapped_forward import TappedForward, TappedRows
from sonde.tap.hooks.cache import cache_in
from sonde.tap.hooks.latest import Latest
from sonde.tap.hooks.names import ModuleNames
from sonde.tap.hooks.outputs import arguments
from sonde.tap.hooks.session import Followed, Session, check_readable
from sonde.tap.model.sites import Pattern, resolve
from sonde.tap.rows.row_memory import RowMemory
from sonde.tap.rows.shared import SharedSelections


class Tap:
    """Reads sites of a model inside a ``with`` block; leaves the model as it was found.

    The model runs in eval mode meanwhile. Every forward of the model is read, whoever calls it:
    ``rows`` are those of the thread or task that asks.

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
        check_readable(self.module)
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
        """What the last forward brought, by site.

        It is the last forward of the thread or task that asks; if it made none, that of any.

        Raises
        ------
        SiteError
            If a site did not run in it.
        """
        found = self._latest.get()
        if found is not None:
            found.place()
        taken = {} if found is None else found.taken
        if missing := [name for name in self._names if name not in taken]:
            calls = {} if found is None else found.calls
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
        """Return what takes the rows; None for parts of the model that other contexts call."""
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
