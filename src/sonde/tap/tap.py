"""``Tap``: read sites of a live model while it is used by hand.

For whole data sets use a stream (``sonde.read``): it finds axes by a probe forward, moves padding
and keeps ids. A tap keeps the rows of the last forward only.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from sonde.core.errors import SiteError
from sonde.core.inputs import InputBatch, Model
from sonde.core.site import Reducer, Site
from sonde.tap._cache import cache_in, cached_length
from sonde.tap._hooks import Session, check_readable
from sonde.tap._names import Names
from sonde.tap._slab import Slab
from sonde.tap._waiting import Waiting
from sonde.tap.axes import guess_axes
from sonde.tap.outputs import arguments, find, find_input
from sonde.tap.reduce import Frame, Reduction, Shared
from sonde.tap.sites import Pattern, resolve


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
        names = Names(self.module)
        if any(site.port == "grad" for site in self.sites):
            raise SiteError("Tap: port grad needs an objective. Use sonde.read(objective=...).")
        watched = {(s.path, s.port): names.modules[s.path] for s in self.sites}
        self._session = Session(
            self.module,
            outputs=[
                (m, partial(self._after, p)) for (p, port), m in watched.items() if port == "out"
            ],
            inputs=[
                (self.module, self._begin),
                *(
                    (m, partial(self._before, p, m))
                    for (p, port), m in watched.items()
                    if port == "in"
                ),
            ],
        )
        self._modules = names.modules
        self._keys = {site: str(site) for site in self.sites}
        self._at: dict[tuple[str, str], list[Site]] = {}
        for site in self.sites:
            self._at.setdefault((site.path, site.port), []).append(site)
        self._reductions: dict[tuple[str, tuple[int, ...]], Reduction] = {}
        self._batch: InputBatch | None = None
        self._shared, self._slab = Shared(), Slab()
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
        missing = [key for key in self._keys.values() if key not in self._taken]
        if missing:
            calls = {path: n for (path, _), n in self._calls.items()}
            raise SiteError(
                f"Tap.rows: {', '.join(missing)} did not run in the last forward (calls seen: "
                f"{calls}). Run the model inside the with block, or read a module that runs."
            )
        if self._frame is not None:
            self._place(self._frame)
        return {key: self._joined(self._taken[key]) for key in self._keys.values()}

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
        self._calls: Counter[tuple[str, str]] = Counter()
        self._mask: Tensor | None = None
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
        mask = named.get("attention_mask")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None

    def _after(self, path: str, output: Any) -> None:
        self._read(path, "out", lambda site: find(output, site.key))

    def _before(
        self, path: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._read(path, "in", lambda site: find_input(module, args, kwargs, site.key)[1])

    def _read(self, path: str, port: str, leaf_of: Callable[[Site], Tensor | None]) -> None:
        call = self._calls[path, port]
        self._calls[path, port] += 1
        for site in self._at[path, port]:
            if isinstance(site.call, int) and site.call != call:
                continue
            leaf = leaf_of(site)
            if leaf is None:
                raise SiteError(f"Tap: {str(site)!r} returned no such floating-point tensor.")
            self._keep(site, leaf, call)

    def _keep(self, site: Site, leaf: Tensor, call: int) -> None:
        key = self._keys[site]
        if site.call is None and key in self._taken:
            raise SiteError(
                f"Tap: {site.path!r} is called more than once in one forward. "
                f"Write {site.path}@0, @1, ..., @last or @all."
            )
        parts = self._taken[key] = self._taken.get(key, []) if site.call == "all" else []
        parts.append(self._reduced(leaf.detach(), site.path, parts))
        if len(self._taken) == self._to_come and site.call not in ("last", "all"):
            self._session.stop()

    def _reduced(self, x: Tensor, path: str, parts: list[Tensor]) -> Tensor:
        """Return rows; where they wait for those of other sites, a copy that they will replace."""
        if self._reducer is None:
            copy = self._slab.keep(x)
            return x.clone() if copy is x else copy
        if self._frame is None:
            if self._batch is None or len(self._batch) != len(x):
                self._batch = _unnamed(len(x))
            self._frame = Frame(self._batch, x.device, self._shared)
            self._frame.masks["pos"] = self._mask
        known = path, (x.ndim,) if x.is_nested else tuple(x.shape[1:])
        if known not in self._reductions:
            axes = guess_axes(x, self._modules[path], self.module, self._reducer.axis)
            self._reductions[known] = Reduction(self._reducer, axes)
        reduction = self._reductions[known]
        if Waiting.takes(reduction, x):
            copy = x.clone()
            self._waiting.add((parts, len(parts)), reduction, copy)
            return copy
        return self._slab.keep(reduction(x, self._frame)[0])

    def _place(self, frame: Frame) -> None:
        """Put the rows that waited for those of other sites in the places of their copies."""
        for reduction, places, outputs in self._waiting.groups():
            found, _ = reduction.stacked(outputs, frame)
            for (parts, at), rows in zip(places, self._slab.keep(found).unbind(), strict=True):
                parts[at] = rows

    @staticmethod
    def _joined(parts: list[Tensor]) -> Tensor:
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _unnamed(n: int) -> InputBatch:
    index = torch.arange(n)
    keys = [b""] * n
    return InputBatch(
        args=(),
        kwargs={},
        ids=[str(i) for i in range(n)],
        keys=keys,
        order=index,
        occurrence=torch.zeros_like(index),
        group_keys=keys,
        label=torch.full((n,), -1),
    )
